"""History, images, args and deletion of records; sweep, verify and reindex, which compare job table and data folder."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.api.http.representation import Presenter
from app.gateway.archive import PAGE_BYTES, Archive, PageBudget
from app.gateway.maintenance import Maintenance
from app.gateway.signing import LONGEST, Signing
from app.jobs.errors import JobNotFound
from app.jobs.model import Failure
from app.jobs.table import JobTable
from app.jobs.view import describe
from app.parameters import LONGEST_USER_ID
from app.records.errors import MissingFile, StorageFailed
from app.records.layout import user_folder
from app.runtime.jsontext import dumps
from app.simulator import SimulatorServer
from tests.inprocess import Gateway, arm, hurry, png_base64, simulator, stats, until
from tests.jobs.conftest import EVERYTHING

LONG_AGO = 2 * 3600


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    with simulator() as server:
        yield server


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, server: SimulatorServer
) -> Iterator[Gateway]:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        with Gateway(tmp_path_factory.mktemp("gateway"), migrated_sqlite, [server.url]) as gateway:
            yield gateway.start()


@pytest.fixture
def gateway(shared: Gateway, server: SimulatorServer) -> Iterator[Gateway]:
    """The gateway of this file, emptied after each test."""
    server.simulator.stats.reset()
    yield shared
    server.simulator.faults.clear()
    server.simulator.engine.interrupt()
    until(lambda: shared.sql("SELECT unfinished FROM clock WHERE unfinished > 0") == [], "the end of all jobs")
    _empty(shared)


def _empty(gateway: Gateway) -> None:
    for table in ("jobs", "users", "idempotency"):
        gateway.sql(f"DELETE FROM {table}")
    for path in gateway.data.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


@pytest.fixture
def resting(tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> Iterator[Gateway]:
    """A gateway that accepts and makes nothing."""
    with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
        gateway.start()
        gateway.services.begin_drain()
        yield gateway


@pytest.fixture
def maintenance(gateway: Gateway) -> Maintenance:
    return gateway.services.maintenance


@pytest.fixture
def archive(gateway: Gateway) -> Archive:
    return gateway.services.archive


def day_folder(gateway: Gateway, view: dict[str, Any]) -> Path:
    name = view["name"]
    return gateway.data / user_folder(view["id"]) / view["type"] / f"{name[:4]}-{name[4:6]}-{name[6:8]}"


def age(path: Path, seconds: float = LONG_AGO) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


class TestHistory:
    def test_a_page_of_the_longest_urls_is_no_larger_than_it_may_be(self, gateway: Gateway) -> None:
        """Jobs that are hardly more than their URLs, which are signed and long."""
        made = gateway.job(gateway.post("img2img", batch_size=8))
        job = made._replace(user_id="猫" * LONGEST_USER_ID, images=[image | {"infotext": ""} for image in made.images])
        signing = Signing({"k" * 16: b"k" * 32})
        presenter = Presenter(f"https://{'h' * 292}", 300.0, 4096, signing, lifetime=LONGEST)
        size = len(dumps(presenter.job(describe(job))))
        budget, count = PageBudget(10_000), 0
        while budget.takes(job):
            count += 1
        assert 0.9 * PAGE_BYTES < count * size <= PAGE_BYTES

    def test_pages_newest_first_and_the_last_has_no_cursor(self, gateway: Gateway, archive: Archive) -> None:
        names = [gateway.post(seed=str(n))["name"] for n in range(5)]
        pages, before = [], None
        while True:
            views, before = archive.history("u1", "txt2img", 2, before)
            pages.append([view["name"] for view in views])
            if before is None:
                break
        assert pages == [[names[4], names[3]], [names[2], names[1]], [names[0]]]

    def test_a_page_that_is_exactly_full_is_the_last(self, gateway: Gateway, archive: Archive) -> None:
        for _ in range(2):
            gateway.post()
        views, cursor = archive.history("u1", "txt2img", 2, None)
        assert (len(views), cursor) == (2, None)

    def test_only_what_succeeded_and_only_the_users_own(
        self, gateway: Gateway, archive: Archive, server: SimulatorServer
    ) -> None:
        mine = gateway.post()
        gateway.post(id="u2")
        gateway.post("img2img")
        arm(server, "wrong-model")
        failed = gateway.post()
        assert [view["name"] for view in archive.history("u1", "txt2img", 9, None)[0]] == [mine["name"]]
        assert archive.history("nobody", "txt2img", 9, None) == ([], None)
        in_any_state, _ = archive.jobs("u1", None, 9, None)
        assert [view["type"] for view in in_any_state] == ["txt2img", "img2img", "txt2img"]
        [found], _ = archive.jobs("u1", "failed", 9, None)
        assert (found["name"], found["error"]["slug"]) == (failed["name"], "webui-wrong-model")

    def test_waiting_jobs_show_their_place(self, gateway: Gateway, archive: Archive, server: SimulatorServer) -> None:
        arm(server, "hang")
        running = gateway.accept()
        until(lambda: stats(server)["generations"])
        waiting = [gateway.accept() for _ in range(2)]
        views, _ = archive.jobs("u1", "queued", 9, None)
        assert [view["position"] for view in views] == [2, 1]
        shown = gateway.shown(running)
        assert (shown["status"], shown["position"]) == ("running", None)
        # The job is watched, so its WebUI is polled.
        until(lambda: gateway.job(running).progress_at is not None)
        server.simulator.engine.interrupt()
        for view in [running, *waiting]:
            gateway.finished(view)
        assert gateway.shown(running)["progress"] == 1.0


class TestFile:
    def test_only_what_a_row_names_is_found(self, gateway: Gateway, archive: Archive) -> None:
        view = gateway.post("img2img")
        image, init = view["images"][0]["filename"], view["init_image"]["filename"]
        for name in (image, init):
            found = archive.file("u1", "img2img", name)
            assert (found.path.name, found.media_type, found.etag) == (name, "image/png", name)
        for user, type_, name in [
            ("u2", "img2img", image),
            ("u1", "txt2img", image),
            ("u1", "img2img", f"{view['name']}-2-0.png"),
            ("u1", "img2img", f"{view['name']}-1.json"),
            ("u1", "img2img", view["name"]),
            ("u1", "img2img", "../../etc/passwd"),
        ]:
            with pytest.raises(JobNotFound):
                archive.file(user, type_, name)

    def test_a_file_that_is_gone_is_told_apart(self, gateway: Gateway, archive: Archive) -> None:
        view = gateway.post()
        archive.file("u1", "txt2img", view["images"][0]["filename"]).path.unlink()
        with pytest.raises(MissingFile):
            archive.file("u1", "txt2img", view["images"][0]["filename"])


class TestArgs:
    def test_of_a_record_they_can_be_posted_again(self, gateway: Gateway, archive: Archive) -> None:
        view = gateway.post("img2img", batch_size=2, seed="", init_images=png_base64(color="red"))
        args = archive.args("u1", "img2img", view["name"])
        assert args | {"init_images": None} == view["args"] | {"init_images": None}
        prefix = "data:image/png;base64,"
        stored = gateway.services.records.read_init("u1", "img2img", view["name"])
        assert args["init_images"] == prefix + base64.b64encode(stored).decode()
        again = gateway.post("img2img", **args)
        pairs = zip(view["images"], again["images"], strict=True)
        for one, other in pairs:
            paths = [archive.file("u1", "img2img", image["filename"]).path for image in (one, other)]
            assert paths[0].read_bytes() == paths[1].read_bytes()

    def test_of_one_image_they_name_its_seed_and_one_picture(self, gateway: Gateway, archive: Archive) -> None:
        view = gateway.post(batch_size=2, seed="40")
        args = archive.args("u1", "txt2img", view["images"][1]["filename"])
        assert (args["seed"], args["batch_size"]) == ("41", 1)
        assert "init_images" not in args

    def test_there_are_none_of_what_did_not_succeed(
        self, gateway: Gateway, archive: Archive, server: SimulatorServer
    ) -> None:
        arm(server, "wrong-model")
        failed = gateway.post()
        made = gateway.post()
        for name in (failed["name"], f"{made['name']}-9-0.png", f"{made['name']}-init.png", "nonsense"):
            with pytest.raises(JobNotFound):
                archive.args("u1", "txt2img", name)


class TestDelete:
    def test_a_record_goes_with_all_its_files(self, gateway: Gateway, archive: Archive) -> None:
        view = gateway.post("img2img", batch_size=2)
        kept = gateway.post()
        name = view["name"]
        deleted = archive.delete("u1", "img2img", name)
        assert set(deleted) == {f"{name}-1-0.png", f"{name}-1-1.png", f"{name}-1.json", f"{name}-init.png"}
        assert gateway.files() == {f"{kept['name']}-1-0.png", f"{kept['name']}-1.json"}
        with pytest.raises(JobNotFound):
            gateway.shown(view)
        with pytest.raises(JobNotFound):
            archive.delete("u1", "img2img", name)
        assert gateway.services.table.deletion.pending_unlink() == []

    def test_one_image_goes_alone_and_the_last_takes_the_record(self, gateway: Gateway, archive: Archive) -> None:
        view = gateway.post(batch_size=2)
        first, second = (image["filename"] for image in view["images"])
        assert archive.delete("u1", "txt2img", first) == [first]
        [left], _ = archive.history("u1", "txt2img", 9, None)
        assert [image["filename"] for image in left["images"]] == [second]
        assert gateway.files() == {second, f"{view['name']}-1.json"}
        with pytest.raises(JobNotFound):
            archive.delete("u1", "txt2img", first)
        assert set(archive.delete("u1", "txt2img", second)) == {second, f"{view['name']}-1.json"}
        assert gateway.files() == set()
        assert archive.history("u1", "txt2img", 9, None) == ([], None)

    def test_a_failed_job_goes_too(self, gateway: Gateway, archive: Archive, server: SimulatorServer) -> None:
        arm(server, "wrong-model")
        view = gateway.post("img2img")
        assert archive.delete("u1", "img2img", view["name"]) == [f"{view['name']}-init.png"]
        assert gateway.files() == set()

    @pytest.mark.parametrize("suffix", ["-1.json", "-init.png", "-1-7.png"])
    def test_no_other_file_can_be_deleted(self, gateway: Gateway, archive: Archive, suffix: str) -> None:
        view = gateway.post("img2img")
        before = gateway.files()
        with pytest.raises(JobNotFound):
            archive.delete("u1", "img2img", view["name"] + suffix)
        assert gateway.files() == before

    def test_a_running_job_that_is_deleted_leaves_nothing(
        self, gateway: Gateway, archive: Archive, server: SimulatorServer
    ) -> None:
        arm(server, "hang")
        view = gateway.accept("img2img")
        until(lambda: stats(server)["generations"])
        assert archive.delete("u1", "img2img", view["name"]) == []
        with pytest.raises(JobNotFound):
            gateway.shown(view)
        server.simulator.engine.interrupt()
        gateway.post()
        until(lambda: gateway.sql("SELECT count(*) FROM jobs WHERE owner IS NOT NULL")[0][0] == 0)
        archive.tidy()
        assert not [name for name in gateway.files() if view["name"] in name]

    def test_files_that_can_not_be_removed_are_gone_for_their_user(
        self, gateway: Gateway, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        view = gateway.post()
        with monkeypatch.context() as patch:
            patch.setattr(gateway.services.records, "remove_files", _refuse)
            assert archive.delete("u1", "txt2img", view["name"])
        with pytest.raises(JobNotFound):
            gateway.shown(view)
        assert gateway.files() != set()
        archive.tidy()
        assert gateway.files() == set()


def _refuse(*_: Any) -> Any:
    raise StorageFailed(OSError(5, "Input/output error"), doing="removed")


class TestTidy:
    """A crash between the commit of a deletion and the unlinking of its files."""

    def test_a_deleted_record_is_finished_off(self, gateway: Gateway, archive: Archive) -> None:
        view, kept = gateway.post("img2img"), gateway.post()
        gateway.services.table.deletion.delete("u1", "img2img", view["name"])
        archive.tidy()
        assert gateway.files() == {f"{kept['name']}-1-0.png", f"{kept['name']}-1.json"}
        assert gateway.services.table.deletion.pending_unlink() == []

    def test_of_a_deleted_image_only_that_goes(self, gateway: Gateway, archive: Archive) -> None:
        view = gateway.post("img2img", batch_size=2)
        first, second = (image["filename"] for image in view["images"])
        gateway.services.table.deletion.delete_image("u1", "img2img", view["name"], first)
        archive.tidy()
        assert gateway.files() == {second, f"{view['name']}-1.json", f"{view['name']}-init.png"}
        assert gateway.services.table.deletion.pending_unlink() == []

    def test_one_that_fails_does_not_stop_the_others(
        self, gateway: Gateway, archive: Archive, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stuck, other = gateway.post(), gateway.post()
        for view in (stuck, other):
            gateway.services.table.deletion.delete("u1", "txt2img", view["name"])
        remove = gateway.services.records.remove

        def sometimes(user: str, type_: str, name: str, **of: Any) -> list[str]:
            return _refuse() if name == stuck["name"] else remove(user, type_, name, **of)

        monkeypatch.setattr(gateway.services.records, "remove", sometimes)
        archive.tidy()
        assert {name for name in gateway.files() if other["name"] in name} == set()
        assert [job.name for job, _ in gateway.services.table.deletion.pending_unlink()] == [stuck["name"]]

    def test_a_job_that_failed_while_it_waited_leaves_no_picture_of_earlier_claims(self, resting: Gateway) -> None:
        """Their worker died when it had stored the pictures, and no WebUI can make them any more."""
        table, slot = resting.services.table, resting.slot().key
        view = resting.accept("img2img")
        resting.sql("UPDATE slots SET state = 'clean'")
        claim = table.claim(slot, "testhost/dead", "task", EVERYTHING)
        assert claim is not None
        name = view["name"]
        resting.services.records.save("u1", "img2img", name, 1, [(f"{name}-1-0.png", b"picture")], {"format": 1})
        [lost] = table.losses.take_over("testhost", "testhost/next")
        gone = Failure("no-longer-available", "Gone.")
        assert [job.name for job in table.losses.fail_queued(gone, jobs=[lost.identity])] == [name]
        resting.services.archive.tidy()
        assert resting.files() == {f"{name}-init.png"}
        assert table.deletion.pending_unlink() == []

    def test_the_worker_does_it_at_its_start(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer
    ) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            view = gateway.start().post()
            gateway.services.table.deletion.delete("u1", "txt2img", view["name"])
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as again:
            again.start()
            until(lambda: again.files() == set())


def record_of(view: dict[str, Any]) -> dict[str, Any]:
    """The document of a job that succeeded, but for its images."""
    done = {"started_at": None, "finished_at": view["created_at"], "webui": {}, "simulated": True, "format": 1}
    return {name: view[name] for name in ("id", "type", "name", "created_at", "args", "init_image")} | done


class TestSweep:
    def stray(self, folder: Path, name: str, seconds: float = 0.0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        path.write_bytes(b"stray")
        return age(path, seconds)

    def test_a_complete_record_is_left_alone(self, gateway: Gateway, maintenance: Maintenance) -> None:
        gateway.post("img2img", batch_size=2)
        before = gateway.files()
        assert maintenance.sweep().count == 0
        assert gateway.files() == before

    def test_of_a_succeeded_job_only_the_winning_claim_stays(self, gateway: Gateway, maintenance: Maintenance) -> None:
        view = gateway.post()
        folder, name = day_folder(gateway, view), view["name"]
        before = gateway.files()
        for filename in (
            f"{name}-2-0.png", f"{name}-2.json", f"{name}-1-1.png", f"{name}-init.png",
            f".{name}-1-0.png.0123abcd.tmp",
        ):  # fmt: skip
            if "-init" not in filename:
                self.stray(folder, filename)
        assert maintenance.sweep().count == 4
        assert gateway.files() == before

    def test_while_a_job_runs_the_files_of_its_claim_stay(
        self, gateway: Gateway, maintenance: Maintenance, server: SimulatorServer
    ) -> None:
        arm(server, "hang")
        view = gateway.accept("img2img")
        until(lambda: stats(server)["generations"])
        folder, name = day_folder(gateway, view), view["name"]
        mine = [f"{name}-1-0.png", f".{name}-1.json.0123abcd.tmp", f"{name}-init.png"]
        for filename in [*mine[:2], f"{name}-2-0.png", f".{name}-init.png.0123abcd.tmp"]:
            self.stray(folder, filename, LONG_AGO)
        assert maintenance.sweep().count == 2
        assert gateway.files() == set(mine)
        server.simulator.engine.interrupt()
        gateway.finished(view)

    def test_a_lost_lease_protects_nothing_but_the_reference_image(self, resting: Gateway) -> None:
        gateway, maintenance = resting, resting.services.maintenance
        view = gateway.accept("img2img")
        gateway.sql("UPDATE jobs SET status = 'running', claims = 1, owner = 'x/y', lease_expires = 0")
        self.stray(day_folder(gateway, view), f"{view['name']}-1-0.png")
        assert maintenance.sweep().count == 1
        assert gateway.files() == {f"{view['name']}-init.png"}
        gateway.sql("UPDATE jobs SET status = 'queued', owner = NULL")
        assert maintenance.sweep().count == 0

    def test_a_failed_job_keeps_its_reference_image_until_it_is_deleted(
        self, gateway: Gateway, archive: Archive, maintenance: Maintenance, server: SimulatorServer
    ) -> None:
        arm(server, "wrong-model")
        view = gateway.post("img2img")
        init = gateway.job(view).init_image["filename"]
        for path in gateway.data.rglob("*.png"):
            age(path)
        self.stray(day_folder(gateway, view), f"{view['name']}-1-0.png")
        assert maintenance.sweep().count == 1
        assert archive.file("u1", "img2img", init).path.is_file()
        assert archive.delete("u1", "img2img", view["name"]) == [init]
        assert gateway.files() == set()

    def test_of_a_deleted_job_nothing_stays(self, gateway: Gateway, maintenance: Maintenance) -> None:
        view = gateway.post("img2img")
        gateway.services.table.deletion.delete("u1", "img2img", view["name"])
        assert maintenance.sweep().count == 3
        assert gateway.files() == set()

    def test_temporaries_and_reference_images_without_a_row_go_when_they_are_old(
        self, gateway: Gateway, maintenance: Maintenance
    ) -> None:
        folder = gateway.data / user_folder("u9") / "txt2img" / "2026-11-22"
        old = [
            self.stray(folder, "20261122T061530123-9f2c4e7a-init.png", LONG_AGO),
            self.stray(folder, ".20261122T061530123-9f2c4e7a-1-0.png.0123abcd.tmp", LONG_AGO),
        ]
        young = [
            self.stray(folder, "20261122T061530123-00000000-init.png", 1800),
            self.stray(folder, ".20261122T061530123-00000000-1.json.0123abcd.tmp", 1800),
        ]
        foreign = self.stray(folder, "notes.txt", LONG_AGO)
        planned = maintenance.sweep(dry_run=True)
        assert (planned.count, planned.unindexed, planned.problems) == (2, 0, [])
        assert all(path.exists() for path in old)
        assert maintenance.sweep() == planned
        assert [path.exists() for path in (*old, *young, foreign)] == [False, False, True, True, True]

    @pytest.mark.parametrize("document", ["whole", "damaged", "missing"])
    def test_images_that_may_be_a_records_stay_without_a_row(
        self, gateway: Gateway, maintenance: Maintenance, document: str
    ) -> None:
        view = gateway.post("img2img", batch_size=2)
        gateway.sql("DELETE FROM jobs")
        path = day_folder(gateway, view) / f"{view['name']}-1.json"
        if document == "damaged":
            path.write_text(path.read_text()[:-2])
        elif document == "missing":
            path.unlink()
        self.stray(path.parent, f".{path.name}.0123abcd.tmp", LONG_AGO)
        before = gateway.files() - {f".{path.name}.0123abcd.tmp"}
        for found in gateway.data.rglob("*.*"):
            age(found)
        report = maintenance.sweep()
        assert (report.count, report.unindexed) == (1, 1 if document == "whole" else 0)
        assert len(report.problems) == (0 if document == "whole" else 1)
        assert gateway.files() == before

    def test_a_row_older_than_its_record_takes_nothing_from_it(self, resting: Gateway) -> None:
        """A backup of the database was taken while the job ran; the record was made after it."""
        gateway, maintenance = resting, resting.services.maintenance
        view = gateway.accept("img2img")
        folder, name = day_folder(gateway, view), view["name"]
        for status, claims, owner in (("queued", 0, None), ("running", 1, "x/y")):
            gateway.sql(
                "UPDATE jobs SET status = :status, claims = :claims, owner = :owner, lease_expires = 0",
                status=status, claims=claims, owner=owner,
            )  # fmt: skip
            document = record_of(view) | {"images": [{"filename": f"{name}-1-0.png"}]}
            self.stray(folder, f"{name}-1-0.png", LONG_AGO)
            self.stray(folder, f"{name}-1.json").write_text(json.dumps(document))
            self.stray(folder, f"{name}-2-0.png", LONG_AGO)
            assert maintenance.sweep().count == 1
            assert gateway.files() == {f"{name}-1-0.png", f"{name}-1.json", f"{name}-init.png"}

    def test_a_row_of_another_user_accounts_for_nothing(self, gateway: Gateway, maintenance: Maintenance) -> None:
        view = gateway.post()
        folder = gateway.data / user_folder("u9") / "txt2img" / day_folder(gateway, view).name
        copy = self.stray(folder, view["images"][0]["filename"], LONG_AGO)
        report = maintenance.sweep()
        assert (report.count, len(report.problems)) == (0, 1)
        assert str(copy) in report.problems[0]

    def test_what_can_not_be_removed_is_reported(
        self, gateway: Gateway, maintenance: Maintenance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = gateway.data / user_folder("u9") / "txt2img" / "2026-11-22"
        stuck = self.stray(folder, "20261122T061530123-9f2c4e7a-init.png", LONG_AGO)
        monkeypatch.setattr(gateway.services.records, "remove_stored", _refuse)
        report = maintenance.sweep()
        assert (report.count, len(report.problems)) == (0, 1)
        assert str(stuck) in report.problems[0]


class TestVerify:
    def test_every_file_of_every_record_opens(
        self, gateway: Gateway, archive: Archive, maintenance: Maintenance, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("app.gateway.archive._BATCH", 2)
        for _ in range(3):
            gateway.post()
        gateway.post("img2img")
        report = maintenance.verify()
        assert (report.count, report.problems) == (4, [])

    def test_what_is_missing_or_damaged_is_named(self, gateway: Gateway, maintenance: Maintenance) -> None:
        view = gateway.post("img2img", batch_size=2)
        folder, name = day_folder(gateway, view), view["name"]
        (folder / f"{name}-1-0.png").unlink()
        (folder / f"{name}-1-1.png").write_bytes((folder / f"{name}-1-1.png").read_bytes()[:-40])
        (folder / f"{name}-1.json").write_text("{")
        (folder / f"{name}-init.png").write_bytes(b"")
        report = maintenance.verify()
        assert report.count == 1
        assert [problem.split()[2].rstrip(":") for problem in report.problems] == [
            f"{name}-1-0.png", f"{name}-1-1.png", f"{name}-1.json", f"{name}-init.png",
        ]  # fmt: skip


class TestReindex:
    def lose_rows(self, gateway: Gateway) -> None:
        gateway.sql("DELETE FROM jobs")

    def test_the_folder_alone_is_a_full_backup(
        self, gateway: Gateway, archive: Archive, maintenance: Maintenance
    ) -> None:
        gateway.post(batch_size=2, prompt="一座灯塔", id="用户")
        gateway.post("img2img", id="用户", hr_upscaler="Lanczos")
        before = {type_: archive.history("用户", type_, 9, None)[0] for type_ in ("txt2img", "img2img")}
        assert maintenance.reindex().count == 0
        self.lose_rows(gateway)
        assert maintenance.reindex(dry_run=True).count == 2
        assert archive.history("用户", "txt2img", 9, None) == ([], None)
        report = maintenance.reindex()
        assert (report.count, report.problems) == (2, [])
        assert maintenance.reindex(dry_run=True).count == 0
        after = {type_: archive.history("用户", type_, 9, None)[0] for type_ in ("txt2img", "img2img")}
        assert after == before
        assert maintenance.verify().problems == []
        assert maintenance.sweep().count == 0
        assert maintenance.reindex().count == 0

    def test_it_counts_from_the_highest_claim(
        self, gateway: Gateway, archive: Archive, maintenance: Maintenance, server: SimulatorServer
    ) -> None:
        arm(server, "error-500")
        view = gateway.post()
        folder, name = day_folder(gateway, view), view["name"]
        # What a lost attempt left: its document would win if the order of names decided.
        document = json.loads((folder / f"{name}-2.json").read_text())
        document["images"][0]["filename"] = f"{name}-1-0.png"
        (folder / f"{name}-1.json").write_text(json.dumps(document))
        (folder / f"{name}-1-0.png").write_bytes((folder / f"{name}-2-0.png").read_bytes())
        self.lose_rows(gateway)
        assert maintenance.reindex().count == 1
        [found], _ = archive.history("u1", "txt2img", 9, None)
        assert [image["filename"] for image in found["images"]] == [f"{name}-2-0.png"]
        assert gateway.job(view).claims == 2
        assert maintenance.sweep().count == 2

    def test_an_image_that_is_gone_is_left_out(
        self, gateway: Gateway, archive: Archive, maintenance: Maintenance
    ) -> None:
        view = gateway.post(batch_size=2)
        first, second = (image["filename"] for image in view["images"])
        archive.delete("u1", "txt2img", first)
        self.lose_rows(gateway)
        assert maintenance.reindex().count == 1
        [found], _ = archive.history("u1", "txt2img", 9, None)
        assert [image["filename"] for image in found["images"]] == [second]
        (day_folder(gateway, view) / second).unlink()
        self.lose_rows(gateway)
        report = maintenance.reindex()
        assert (report.count, len(report.problems)) == (0, 1)

    def test_a_deleted_record_stays_away(self, gateway: Gateway, archive: Archive, maintenance: Maintenance) -> None:
        view = gateway.post()
        gateway.services.table.deletion.delete("u1", "txt2img", view["name"])
        assert maintenance.reindex().count == 0
        assert archive.history("u1", "txt2img", 9, None) == ([], None)

    @pytest.mark.parametrize(
        "change",
        [
            {"format": 2},
            {"type": "img2img"},
            {"name": "20261122T061530123-9f2c4e7a"},
            {"id": "somebody else"},
            {"images": None},
            {"created_at": "yesterday"},
            {"finished_at": "2026-11-22T06:15:30"},
            {"webui": ...},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_a_document_that_does_not_fit_is_reported_and_left_out(
        self, gateway: Gateway, archive: Archive, maintenance: Maintenance, change: dict[str, Any]
    ) -> None:
        view, kept = gateway.post(), gateway.post()
        path = day_folder(gateway, view) / f"{view['name']}-1.json"
        document = json.loads(path.read_text()) | change
        path.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))
        self.lose_rows(gateway)
        report = maintenance.reindex()
        assert (report.count, len(report.problems)) == (1, 1)
        assert str(path) in report.problems[0]
        [found], _ = archive.history("u1", "txt2img", 9, None)
        assert found["name"] == kept["name"]

    @pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b"[" * 100_000])
    def test_a_damaged_document_is_reported(self, gateway: Gateway, maintenance: Maintenance, content: bytes) -> None:
        view = gateway.post()
        (day_folder(gateway, view) / f"{view['name']}-1.json").write_bytes(content)
        self.lose_rows(gateway)
        report = maintenance.reindex()
        assert (report.count, len(report.problems)) == (0, 1)

    def test_an_unfinished_document_is_no_record(self, gateway: Gateway, maintenance: Maintenance) -> None:
        view = gateway.post()
        path = day_folder(gateway, view) / f"{view['name']}-1.json"
        path.rename(path.with_name(f".{path.name}.0123abcd.tmp"))
        self.lose_rows(gateway)
        assert (maintenance.reindex().count, maintenance.reindex().problems) == (0, [])

    def test_a_job_that_never_started_has_no_start(self, gateway: Gateway, maintenance: Maintenance) -> None:
        view = gateway.post()
        path = day_folder(gateway, view) / f"{view['name']}-1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"started_at": None}))
        self.lose_rows(gateway)
        assert maintenance.reindex().count == 1
        assert gateway.job(view).started_at is None

    def test_a_restored_record_is_never_run_again(
        self, gateway: Gateway, archive: Archive, maintenance: Maintenance
    ) -> None:
        view = gateway.post()
        self.lose_rows(gateway)
        maintenance.reindex()
        table: JobTable = gateway.services.table
        assert table.queries.queued_requirements() == {}
        assert archive.delete("u1", "txt2img", view["name"])
        assert gateway.post()["status"] == "succeeded"
