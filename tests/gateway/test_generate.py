"""The use case over real HTTP: every way in which a WebUI can answer ends in one stored result or one honest error."""

from __future__ import annotations

import contextlib
import io
import json
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app.config import WebuiAddress
from app.gateway.generate import WebuiBackend, hopeless_requirements
from app.jobs import leases
from app.jobs.leases import Lease
from app.jobs.model import Claim, Job
from app.jobs.sql.statements import LEASE_SECONDS
from app.jobs.worker import timing
from app.jobs.worker.attempt import Attempt, Attempts
from app.jobs.worker.backend import AttemptLost, BackendDown, LeaseLost, Poll
from app.records.errors import StorageFailed
from app.simulator import SimulatorServer
from app.webui.catalogue import Catalogue, Model, Requirements
from app.webui.client import Webui
from tests.inprocess import DEADLINE, FIELDS, Gateway, arm, hurry, make_clean, png_base64, simulator, stats, until
from tests.proxy import Proxy


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        patch.setattr(timing, "INTERRUPT_SECONDS", 0.2)
        yield


class Pair:
    """A gateway and the one simulator behind it."""

    def __init__(self, gateway: Gateway, server: SimulatorServer) -> None:
        self.gateway = gateway
        self.server = server


def _pair(folder: Path, empty: Path, *, settings: dict[str, Any] | None = None, **environ: object) -> Iterator[Pair]:
    with simulator(**(settings or {})) as server, Gateway(folder, empty, [server.url], **environ) as gateway:
        yield Pair(gateway.start(), server)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Pair]:
    yield from _pair(tmp_path_factory.mktemp("gateway"), migrated_sqlite)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Pair]:
    """One whose attempts may take no longer than a second."""
    yield from _pair(tmp_path_factory.mktemp("gateway"), migrated_sqlite, job_timeout=1)


@pytest.fixture
def upscaling(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Pair]:
    """One whose upscaling takes a while."""
    yield from _pair(tmp_path, migrated_sqlite, settings={"seconds_per_upscale": 0.5})


@pytest.fixture
def pair(shared: Pair) -> Iterator[Pair]:
    """The shared pair, checked afterwards: the slot is free, and never were two generations in flight."""
    yield shared
    shared.server.simulator.faults.clear()
    shared.gateway.settled()
    assert stats(shared.server)["max_in_flight"] <= 1
    shared.server.simulator.stats.reset()


def attempt_at(gateway: Gateway, claim: Claim) -> Attempt:
    return Attempt(claim, Lease(gateway.services.slots.leases, claim.task_id, claim.leased_at), Attempts())


def payloads(server: SimulatorServer) -> list[dict[str, Any]]:
    return [entry["payload"] for entry in server.simulator.stats.payloads()]


class TestSuccess:
    def test_the_pictures_stand_on_disk_as_the_row_says(self, pair: Pair) -> None:
        view = pair.gateway.post(batch_size=2, seed="41")
        assert (view["status"], view["simulated"], view["progress"]) == ("succeeded", True, 1.0)
        assert [image["seed"] for image in view["images"]] == ["41", "42"]
        for index, image in enumerate(view["images"]):
            assert image["filename"] == f"{view['name']}-1-{index}.png"
            data = pair.gateway.services.archive.file("u1", "txt2img", image["filename"]).path.read_bytes()
            assert (len(data), image["media_type"]) == (image["bytes"], "image/png")
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.size == (image["width"], image["height"]) == (64, 64)
                assert picture.text["parameters"] == image["infotext"]

    def test_the_document_is_the_job_as_it_stands_in_its_row(self, pair: Pair) -> None:
        view = pair.gateway.post()
        path = pair.gateway.services.records.path("u1", "txt2img", f"{view['name']}-1.json")
        assert json.loads(path.read_bytes()) == {"format": 1} | json.loads(json.dumps(view))

    @pytest.mark.parametrize(
        ("kind", "extension", "media_type"), [("jpeg", "jpg", "image/jpeg"), ("webp", "webp", "image/webp")]
    )
    def test_the_format_is_the_one_that_came(self, pair: Pair, kind: str, extension: str, media_type: str) -> None:
        arm(pair.server, kind)
        [image] = pair.gateway.post()["images"]
        assert image["filename"].endswith(f".{extension}")
        assert image["media_type"] == media_type

    def test_a_grid_in_front_is_no_picture(self, pair: Pair) -> None:
        arm(pair.server, "grid")
        view = pair.gateway.post(batch_size=2)
        assert [(image["width"], image["height"]) for image in view["images"]] == [(64, 64)] * 2

    def test_the_hires_fix_makes_bigger_pictures(self, pair: Pair) -> None:
        [image] = pair.gateway.post(hr_upscaler="Latent", hr_scale=1.5)["images"]
        assert (image["width"], image["height"]) == (96, 96)

    def test_img2img_uses_the_stored_reference_image(self, pair: Pair) -> None:
        view = pair.gateway.post("img2img", init_images=png_base64(color="red"))
        assert view["init_image"]["filename"] == f"{view['name']}-init.png"
        other = pair.gateway.post("img2img", init_images=png_base64(color="green"))
        first, second = (
            pair.gateway.services.archive.file("u1", "img2img", each["images"][0]["filename"]).path.read_bytes()
            for each in (view, other)
        )
        assert first != second

    def test_upscaled_img2img_goes_through_extras(self, pair: Pair) -> None:
        view = pair.gateway.post("img2img", hr_upscaler="Lanczos", batch_size=2, seed="5")
        assert [(image["width"], image["seed"]) for image in view["images"]] == [(128, "5"), (128, "6")]
        assert len(payloads(pair.server)) == 2


#: Every fault after which another attempt may end better, with the slug of a job that never met anything else.
RETRIED = {
    "error-500": "webui-error",
    "error-plain": "webui-error",
    "error-forge": "webui-error",
    "bad-json": "webui-bad-answer",
    "bad-base64": "webui-bad-answer",
    "torn": "webui-disconnected",
    "close": "webui-disconnected",
    "no-images": "webui-bad-answer",
    "fewer-images": "webui-bad-answer",
    "oom": "webui-out-of-memory",
}
FINAL = {"error-http": "webui-refused", "error-422": "webui-refused", "wrong-model": "webui-wrong-model"}
EXTRAS_RETRIED = {
    "extras-500": "webui-error",
    "extras-bad-json": "webui-bad-answer",
    "extras-bad-base64": "webui-bad-answer",
    "extras-no-images": "webui-bad-answer",
    "extras-close": "webui-disconnected",
    "extras-torn": "webui-disconnected",
}


def failed_with(pair: Pair, view: dict[str, Any], slug: str, attempts: int) -> None:
    job = pair.gateway.job(view)
    assert (view["status"], view["error"]["slug"], job.attempts, job.losses) == ("failed", slug, attempts, 0)
    assert pair.server.url.removeprefix("http://") not in view["error"]["detail"]
    assert "simulated" not in view["error"]["detail"]
    assert not [name for name in pair.gateway.files() if view["name"] in name and "-init" not in name]


def shown(pair: Pair, view: dict[str, Any]) -> list[bytes]:
    """The pictures as they lie on disk."""
    archive = pair.gateway.services.archive
    return [archive.file(view["id"], view["type"], image["filename"]).path.read_bytes() for image in view["images"]]


class TestRestoredDatabase:
    """After a restore of an older dump, the numbers of newer requirements go to others, while the worker remembers the old ones."""

    def test_a_job_is_made_with_its_own_model(self, pair: Pair) -> None:
        sql, models = pair.gateway.sql, ("simulated-one", "simulated-two")
        for model in models:
            pair.gateway.post(model=model)
        rows = {
            model: row
            for row in sql("SELECT id, body FROM requirements")
            for model in models
            if json.loads(row.body)["model"] == model
        }
        one, two = (rows[model] for model in models)
        for number, body in ((one.id, "between"), (two.id, one.body), (one.id, two.body)):
            sql("UPDATE requirements SET body = :body WHERE id = :id", body=body, id=number)
        for model in models:
            view = pair.gateway.post(model=model)
            assert (view["status"], view["args"]["model"], view["webui"]["model"]) == ("succeeded", model, model)

    def test_a_job_is_not_taken_for_one_that_the_webui_can_not_serve(self, pair: Pair) -> None:
        sql, worker = pair.gateway.sql, pair.gateway.services.worker
        assert worker is not None
        gone, wanted = (Requirements("txt2img", "Heun", model).to_json() for model in ("gone", "simulated-one"))
        sql("INSERT INTO requirements (body) VALUES (:body)", body=gone)
        [(number,)] = sql("SELECT id FROM requirements WHERE body = :body", body=gone)
        assert number in worker._runners[0].backend.serving().unservable
        sql("UPDATE requirements SET body = :body WHERE id = :id", body=wanted, id=number)
        view = pair.gateway.post(model="simulated-one", sampler_name="Heun")
        assert (view["status"], pair.gateway.job(view).requirements_id) == ("succeeded", number)


class TestFaults:
    @pytest.mark.parametrize("kind", RETRIED)
    def test_one_such_answer_costs_an_attempt_and_no_picture(self, pair: Pair, kind: str) -> None:
        arm(pair.server, kind)
        view = pair.gateway.post()
        job = pair.gateway.job(view)
        assert (view["status"], job.attempts, job.claims, job.losses) == ("succeeded", 1, 2, 0)
        names = {name for name in pair.gateway.files() if view["name"] in name}
        assert names == {f"{view['name']}-2-0.png", f"{view['name']}-2.json"}

    @pytest.mark.parametrize(("kind", "slug"), RETRIED.items())
    def test_the_third_one_fails_the_job(self, pair: Pair, kind: str, slug: str) -> None:
        arm(pair.server, kind, 3)
        failed_with(pair, pair.gateway.post(), slug, 3)

    @pytest.mark.parametrize(("kind", "slug"), FINAL.items())
    def test_what_would_only_happen_again_is_not_repeated(self, pair: Pair, kind: str, slug: str) -> None:
        arm(pair.server, kind)
        failed_with(pair, pair.gateway.post(), slug, 1)
        assert pair.gateway.post()["status"] == "succeeded"

    def test_a_model_that_left_is_noticed_before_it_is_asked_for(self, pair: Pair) -> None:
        pair.gateway.post(model="simulated-one")
        before = stats(pair.server)["generations"]
        arm(pair.server, "lost-model")
        failed_with(pair, pair.gateway.post(model="simulated-two"), "no-longer-available", 0)
        assert stats(pair.server)["generations"] == before

    def test_an_answer_that_comes_byte_by_byte_is_an_answer(self, pair: Pair) -> None:
        arm(pair.server, "trickle", seconds=0.3)
        view = pair.gateway.post()
        assert (view["status"], pair.gateway.job(view).attempts) == ("succeeded", 0)

    @pytest.mark.parametrize(
        ("type_", "fields"),
        [
            ("txt2img", {}),
            ("txt2img", {"batch_size": 2}),
            ("txt2img", {"hr_upscaler": "Latent"}),
            ("img2img", {}),
            ("img2img", {"hr_upscaler": "Lanczos"}),
        ],
    )
    def test_a_picture_that_a_person_interrupted_is_made_again(
        self, pair: Pair, type_: str, fields: dict[str, Any]
    ) -> None:
        whole = shown(pair, pair.gateway.post(type_, **fields))
        arm(pair.server, "interrupted")
        view = pair.gateway.post(type_, **fields)
        assert (view["status"], pair.gateway.job(view).attempts) == ("succeeded", 1)
        assert shown(pair, view) == whole

    def test_an_interrupted_img2img_is_not_upscaled(self, pair: Pair) -> None:
        """The extras would lower the flag that tells of the interrupt."""
        arm(pair.server, "interrupted", 3)
        failed_with(pair, pair.gateway.post("img2img", hr_upscaler="Lanczos"), "webui-interrupted", 3)
        assert len(payloads(pair.server)) == 3

    def test_a_picture_that_a_person_interrupted_is_not_upscaled(self, pair: Pair) -> None:
        arm(pair.server, "interrupted")
        view = pair.gateway.post("img2img", hr_upscaler="Lanczos")
        assert (view["status"], pair.gateway.job(view).attempts) == ("succeeded", 1)
        paths = [request["path"] for request in pair.server.simulator.stats.payloads()]
        assert paths == ["/sdapi/v1/img2img", "/sdapi/v1/img2img", "/sdapi/v1/extra-batch-images"]

    def test_a_picture_whose_upscaling_a_person_interrupted_is_made_again(self, upscaling: Pair) -> None:
        gateway, server = upscaling.gateway, upscaling.server.simulator
        whole = shown(upscaling, gateway.post("img2img", hr_upscaler="Lanczos"))
        view = gateway.accept("img2img", hr_upscaler="Lanczos")
        until(lambda: server.engine.progress()["state"]["job"] == "Upscale", "the picture is upscaled")
        server.engine.interrupt()
        done = gateway.finished(view)
        assert (done.status, done.attempts) == ("succeeded", 1)
        assert shown(upscaling, view | {"images": done.images}) == whole

    def test_while_the_webui_is_slow_to_say_whether_it_was_interrupted_nobody_waits_and_nobody_gets_it(
        self, pair: Pair
    ) -> None:
        arm(pair.server, "interrupted")
        arm(pair.server, "slow-progress", seconds=2.0)
        first = pair.gateway.accept()
        until(lambda: pair.server.simulator.faults.armed() == [], "it was asked")
        # A writer comes through while the question is open: the slot is still that of the first job.
        second = pair.gateway.accept(seed="9")
        assert (pair.gateway.slot().state, stats(pair.server)["generations"]) == ("held", 1)
        assert pair.gateway.finished(first).attempts == 1
        assert pair.gateway.finished(second).attempts == 0
        assert stats(pair.server)["max_in_flight"] == 1

    def test_after_out_of_memory_the_pictures_are_made_one_by_one(self, pair: Pair) -> None:
        arm(pair.server, "oom-batch", 9)
        view = pair.gateway.post(batch_size=3, seed="8")
        assert [image["seed"] for image in view["images"]] == ["8", "9", "10"]
        shapes = [(payload["batch_size"], payload["n_iter"]) for payload in payloads(pair.server)]
        assert shapes == [(3, 1), (1, 3)]
        assert view["args"]["batch_size"] == 3

    @pytest.mark.parametrize("kind", EXTRAS_RETRIED)
    def test_extras_that_fail_cost_an_attempt(self, pair: Pair, kind: str) -> None:
        arm(pair.server, kind)
        view = pair.gateway.post("img2img", hr_upscaler="Lanczos")
        assert (view["status"], pair.gateway.job(view).attempts) == ("succeeded", 1)
        assert view["images"][0]["width"] == 128

    @pytest.mark.parametrize("kind", ["extras-500", "extras-close"])
    def test_extras_that_always_fail_fail_the_job(self, pair: Pair, kind: str) -> None:
        arm(pair.server, kind, 3)
        failed_with(pair, pair.gateway.post("img2img", hr_upscaler="Lanczos"), EXTRAS_RETRIED[kind], 3)

    def test_extras_that_refuse_are_not_asked_again(self, pair: Pair) -> None:
        arm(pair.server, "extras-error-422")
        failed_with(pair, pair.gateway.post("img2img", hr_upscaler="Lanczos"), "webui-refused", 1)

    @pytest.mark.parametrize("kind", ["bad-json", "error-500"])
    def test_what_img2img_did_not_make_is_not_upscaled(self, pair: Pair, kind: str) -> None:
        arm(pair.server, kind)
        assert pair.gateway.post("img2img", hr_upscaler="Lanczos")["status"] == "succeeded"
        assert [entry["path"].rpartition("/")[2] for entry in pair.server.simulator.stats.payloads()] == [
            "img2img", "img2img", "extra-batch-images",
        ]  # fmt: skip

    def test_a_reference_image_that_is_gone_is_an_honest_error(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arm(pair.server, "hang")
        blocker = pair.gateway.accept()
        assert pair.server.simulator.engine.wait_busy(0.0) is False
        pair.gateway.claimed(blocker)
        view = pair.gateway.accept("img2img")
        next(pair.gateway.data.rglob(view["init_image"]["filename"])).unlink()
        until(lambda: stats(pair.server)["generations"] == 1)
        pair.server.simulator.engine.interrupt()
        job = pair.gateway.finished(view)
        assert (job.status, job.error_slug) == ("failed", "file-missing")
        pair.gateway.finished(blocker)

    def test_a_full_disk_is_an_honest_error_and_leaves_nothing(
        self, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> None:
            raise StorageFailed(OSError(28, "No space left on device"), doing="written")

        monkeypatch.setattr(pair.gateway.services.records, "save", full)
        failed_with(pair, pair.gateway.post(), "storage-failed", 1)


class TestTime:
    @pytest.fixture
    def pair(self, hasty: Pair) -> Iterator[Pair]:
        yield hasty
        hasty.server.simulator.faults.clear()
        hasty.server.simulator.engine.interrupt()
        hasty.gateway.settled()
        assert stats(hasty.server)["max_in_flight"] <= 2
        hasty.server.simulator.stats.reset()

    def test_a_webui_that_hangs_is_interrupted_and_asked_again(self, pair: Pair) -> None:
        arm(pair.server, "hang")
        view = pair.gateway.post()
        job = pair.gateway.job(view)
        assert (view["status"], job.attempts) == ("succeeded", 1)
        assert stats(pair.server)["interrupts"] == 1
        assert {name for name in pair.gateway.files() if view["name"] in name} == {
            f"{view['name']}-2-0.png",
            f"{view['name']}-2.json",
        }

    def test_one_that_hangs_three_times_fails_the_job(self, pair: Pair) -> None:
        arm(pair.server, "hang", 3)
        failed_with(pair, pair.gateway.post(), "webui-timeout", 3)
        pair.gateway.settled()
        assert stats(pair.server)["interrupts"] == 3
        assert pair.gateway.post()["status"] == "succeeded"

    def test_one_that_is_done_but_never_answers_is_not_interrupted(self, pair: Pair) -> None:
        arm(pair.server, "hang-idle")
        view = pair.gateway.post()
        assert (view["status"], pair.gateway.job(view).attempts) == ("succeeded", 1)
        assert stats(pair.server)["interrupts"] == 0

    def test_extras_that_hang_are_not_interrupted_as_a_generation(self, pair: Pair) -> None:
        arm(pair.server, "extras-hang-idle")
        view = pair.gateway.post("img2img", hr_upscaler="Lanczos")
        assert (view["status"], pair.gateway.job(view).attempts) == ("succeeded", 1)

    def test_without_task_ids_what_runs_on_our_slot_is_ours(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        for pair in _pair(tmp_path, migrated_sqlite, settings={"flavour": "nowebui"}, job_timeout=1):
            arm(pair.server, "hang")
            assert pair.gateway.post()["status"] == "succeeded"
            assert stats(pair.server)["interrupts"] == 1


class TestComingAndGoing:
    @pytest.mark.parametrize("flavour", ["a1111-1.10", "nowebui"])
    def test_what_runs_on_a_new_webui_is_waited_for_and_not_interrupted(
        self, tmp_path: Path, migrated_sqlite: Path, flavour: str
    ) -> None:
        with simulator(flavour=flavour) as server, Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            engine = server.simulator.engine
            engine.begin("scripts_txt2img", "task(of a gateway with another host name)")
            gateway.start()
            view = gateway.accept()
            until(lambda: gateway.slot().state == "quiescing", "the WebUI is looked at")
            looks = server.connections()
            until(lambda: server.connections() != looks or gateway.slot().state != "quiescing")
            assert (gateway.job(view).status, stats(server)["generations"]) == ("queued", 0)
            engine.end()
            assert gateway.finished(view).status == "succeeded"
            assert stats(server)["interrupts"] == 0

    def test_a_job_waits_for_a_webui_that_is_away(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        with simulator() as server, Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            gateway.start().settled()
            server.stop()
            first, second = gateway.accept(), gateway.accept()
            gateway.claimed(first)
            until(lambda: gateway.slot().health == "down")
            job = gateway.job(first)
            assert (job.status, job.attempts, job.losses) == ("queued", 0, 0)
            assert gateway.services.archive.job("u1", "txt2img", first["name"])[0]["position"] == 1
            assert gateway.services.readiness() == ["No WebUI answers."]
            with SimulatorServer(server.simulator.settings, port=server.port):
                assert [gateway.finished(view).status for view in (first, second)] == ["succeeded"] * 2
            assert gateway.job(first).seq < gateway.job(second).seq
            assert gateway.job(first).finished_at <= gateway.job(second).finished_at
            assert gateway.job(first).attempts == 0

    def test_what_no_webui_offers_any_more_fails_while_it_waits(
        self, tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "REFRESH_SECONDS", 0.05)
        with simulator() as server, Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            gateway.start()
            arm(server, "hang")
            blocker = gateway.accept()
            gateway.claimed(blocker)
            gone = gateway.accept(model="simulated-two")
            arm(server, "lost-model", 1000)
            job = gateway.finished(gone)
            assert (job.error_slug, job.attempts, job.claims) == ("no-longer-available", 0, 0)
            until(lambda: stats(server)["generations"])
            server.simulator.engine.interrupt()
            assert gateway.finished(blocker).status == "succeeded"


class TestDrain:
    def running(
        self, gateway: Gateway, server: SimulatorServer, kind: str, seconds: float | None = None
    ) -> dict[str, Any]:
        """A job that runs for so long, or until somebody stops it."""
        before = stats(server)["generations"]
        arm(server, kind, seconds=seconds)
        view = gateway.accept()
        until(lambda: stats(server)["generations"] > before)
        return view

    def test_half_a_picture_is_never_shown(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "INTERRUPT_SECONDS", DEADLINE)
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            view = self.running(gateway.start(), server, "hang")
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            job = gateway.job(view)
            assert (job.status, job.attempts, job.losses, job.claims) == ("queued", 0, 0, 1)
            assert gateway.services.slots.get(gateway.services.config.webuis[0].key).state == "clean"
            assert stats(server)["interrupts"] == 1
            assert gateway.files() == set()
            gateway.start()
            assert gateway.finished(view).status == "succeeded"
            assert gateway.files() == {f"{view['name']}-2-0.png", f"{view['name']}-2.json"}

    def test_a_picture_that_is_ready_in_time_is_kept(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer
    ) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url], drain_timeout=DEADLINE) as gateway:
            view = self.running(gateway.start(), server, "hang", 0.5)
            waiting = gateway.accept()
            gateway.services.drain()
            assert stats(server)["interrupts"] == 0
            assert gateway.job(view).status == "succeeded"
            assert gateway.job(waiting).status == "queued"

    def test_one_that_does_not_stop_is_left_to_the_next_process(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer
    ) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            view = self.running(gateway.start(), server, "hang-idle")
            until(lambda: server.simulator.engine.progress()["state"]["job_count"] == 0, "the end of the work")
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            assert gateway.services.slots.get(gateway.services.config.webuis[0].key).state == "unclean"
            gateway.start()
            job = gateway.finished(view)
            assert (job.status, job.attempts, job.losses) == ("succeeded", 0, 0)
            assert stats(server)["interrupts"] == 0


class TestManyWorkers:
    def test_two_workers_with_one_database_send_each_webui_one_job_at_a_time(
        self, tmp_path: Path, migrated_sqlite: Path
    ) -> None:
        with simulator() as one, simulator() as two:
            urls = [one.url, two.url]
            with (
                Gateway(tmp_path, migrated_sqlite, urls, host_id="a", worker="external") as first,
                Gateway(tmp_path, migrated_sqlite, urls, host_id="a", worker="external") as second,
            ):
                first.start(elected=False)
                second.start(elected=False)
                views = [(first, second)[n % 2].accept(id=f"u{n % 3}", seed=str(n)) for n in range(12)]
                assert {first.finished(view).status for view in views} == {"succeeded"}
                assert all(first.job(view).claims == 1 for view in views)
            counts = [stats(one), stats(two)]
            assert [count["max_in_flight"] for count in counts] == [1, 1]
            assert sum(count["generations"] for count in counts) == 12

    def test_the_late_picture_of_a_lost_lease_is_removed(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        with simulator() as server, Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            gateway.start()
            arm(server, "hang")
            view = gateway.accept()
            until(lambda: stats(server)["generations"] == 1)
            # As if this process had stood still for so long that another one noticed.
            gateway.sql("UPDATE jobs SET owner = 'other/x', lease_expires = 0")
            gateway.sql("UPDATE slots SET owner = 'other/x', lease_expires = 0")
            until(lambda: gateway.job(view).losses == 1)
            server.simulator.engine.interrupt()
            job = gateway.finished(view)
            assert (job.status, job.claims, job.attempts) == ("succeeded", 2, 0)
            wanted = {f"{view['name']}-2-0.png", f"{view['name']}-2.json"}
            until(lambda: gateway.files() == wanted, "the removal of the loser's files")
            assert gateway.services.maintenance.sweep().count == 0


class Impatient(Proxy):
    """Stands before a WebUI as a proxy does, and dismisses whoever is silent for a moment while a picture is made.

    :param farewell: the bytes that it says before it closes such a connection.
    """

    _MOMENT = 0.05

    def __init__(self, server: SimulatorServer, farewell: bytes) -> None:
        self._server = ("127.0.0.1", server.port)
        self._farewell = farewell
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._generating = threading.Event()
        self._silent = threading.Semaphore(0)
        self.dismissed = 0
        super().__init__(listener)

    def serve(self, client: socket.socket) -> None:
        while not select.select([client], [], [], self._MOMENT)[0]:
            if self._generating.is_set():
                self.dismissed += 1
                client.sendall(self._farewell)
                self._silent.release()
                return
        request = client.recv(1 << 16)
        generates = request.startswith(b"POST /sdapi/v1/txt2img ")
        if generates:
            self._generating.set()
            assert self._silent.acquire(timeout=DEADLINE)
        with socket.create_connection(self._server) as server:
            server.sendall(request)
            while data := self._either(client, server):
                if generates:
                    self._generating.clear()
                client.sendall(data)

    def _either(self, client: socket.socket, server: socket.socket) -> bytes:
        """Pass on what the client still says, and return what the server does; empty at the end of either."""
        while True:
            readable, _, _ = select.select([client, server], [], [])
            if server in readable:
                return server.recv(1 << 16)
            if not (data := client.recv(1 << 16)):
                return b""
            server.sendall(data)


class TestImpatientProxy:
    @pytest.mark.parametrize(
        "farewell",
        [
            pytest.param(b"", id="closes"),
            pytest.param(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", id="says 408"
            ),
        ],
    )
    def test_an_interrupt_is_noticed_though_the_waiting_question_was_dismissed(
        self, tmp_path: Path, migrated_sqlite: Path, farewell: bytes
    ) -> None:
        with (
            simulator() as server,
            contextlib.closing(Impatient(server, farewell)) as proxy,
            Gateway(tmp_path, migrated_sqlite, [proxy.url]) as gateway,
        ):
            gateway.start()
            arm(server, "interrupted")
            view = gateway.post()
            job = gateway.job(view)
            assert (view["status"], job.attempts, job.losses) == ("succeeded", 1, 0)
            assert proxy.dismissed >= 2

    def test_it_is_noticed_too_where_the_next_job_waits(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        """Its beginning would lower the flag that tells of the interrupt."""
        with (
            simulator(seconds_per_image=0.3) as server,
            contextlib.closing(Impatient(server, b"")) as proxy,
            Gateway(tmp_path, migrated_sqlite, [proxy.url]) as gateway,
        ):
            gateway.start()
            arm(server, "interrupted")
            views = [gateway.accept(seed=str(seed)) for seed in range(3)]
            jobs = [gateway.finished(view) for view in views]
            assert [(job.status, job.attempts) for job in jobs] == [
                ("succeeded", 1),
                ("succeeded", 0),
                ("succeeded", 0),
            ]


class TestStation:
    """What the worker asks of one WebUI, beside a gateway that does not run."""

    @pytest.fixture(params=["a1111-1.10", "nowebui"])
    def server(self, request: pytest.FixtureRequest) -> Iterator[SimulatorServer]:
        with simulator(flavour=request.param) as server:
            yield server

    @pytest.fixture
    def gateway(self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> Iterator[Gateway]:
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            yield gateway

    @pytest.fixture
    def backend(self, gateway: Gateway, server: SimulatorServer) -> WebuiBackend:
        services = gateway.services
        webui = Webui(WebuiAddress("gpu0", server.url), job_timeout=DEADLINE)
        services.slots.register("testhost/t", "testhost", ["gpu0"], only=True)
        make_clean(services.slots, "gpu0")
        backend = WebuiBackend(
            webui,
            services.tables,
            services.records,
            services.offering,
            replace(services.config, job_timeout=0.2),
        )
        backend.refresh()
        return backend

    def claim(self, gateway: Gateway, backend: WebuiBackend) -> Claim:
        gateway.accept()
        claim = gateway.services.table.claim("gpu0", "testhost/t", "task(one)", backend.serving())
        assert claim is not None
        return claim

    def test_refreshing_keeps_the_catalogue_and_chooses_a_default_model(
        self, gateway: Gateway, backend: WebuiBackend
    ) -> None:
        assert [catalogue.models[0].model_name for catalogue in gateway.services.offering.known()[0]] == [
            "simulated-one"
        ]
        assert gateway.services.tables.catalogues.default_model() == "simulated-one"

    def test_a_webui_that_does_not_answer_is_down(self, server: SimulatorServer, backend: WebuiBackend) -> None:
        arm(server, "catalogue-500")
        with pytest.raises(BackendDown):
            backend.refresh()
        server.stop()
        with pytest.raises(BackendDown):
            backend.refresh()

    def test_demands_are_judged_once_and_again_when_the_catalogue_changed(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        gateway.accept(model="simulated-two")
        served = backend.serving()
        assert (served.known, served.unservable) == (1, frozenset())
        arm(server, "lost-model", 100)
        backend.refresh()
        assert backend.serving().unservable == frozenset({1})

    def test_a_held_job_is_sent_once_and_only_when_it_may_go(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        attempt = attempt_at(gateway, self.claim(gateway, backend))
        sending = []
        backend.prepare(attempt)
        until(server.connections, "its connection is made")
        assert stats(server)["generations"] == 0
        assert backend.generate(attempt, lambda: sending.append(stats(server)["generations"])).ok
        assert (sending, stats(server)["generations"]) == ([0], 1)

    def test_a_job_whose_lease_ran_out_is_not_sent(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        claim = replace(self.claim(gateway, backend), leased_at=leases.now() - LEASE_SECONDS)
        attempt = attempt_at(gateway, claim)
        for prepare in (backend.cancel, lambda: backend.prepare(attempt)):
            prepare()
            with pytest.raises(LeaseLost):
                backend.generate(attempt, lambda: None)
        assert stats(server)["generations"] == 0
        # A heartbeat that found the lease says that it is held all the same.
        gateway.services.slots.leases.renewed(leases.now(), [claim.task_id])
        assert backend.generate(attempt_at(gateway, claim), lambda: None).ok

    def test_a_repair_whose_lease_ran_out_is_not_sent(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        with pytest.raises(LeaseLost):
            backend.repair(Lease(gateway.services.slots.leases, "task(probe)", leases.now() - LEASE_SECONDS))
        assert stats(server)["generations"] == 0

    def test_pictures_are_not_upscaled_when_the_lease_ran_out_while_they_were_made(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        view = gateway.accept("img2img", hr_upscaler="Lanczos")
        claim = gateway.services.table.claim("gpu0", "testhost/t", "task(one)", backend.serving())
        assert claim is not None
        assert claim.job.name == view["name"]
        claim = replace(claim, leased_at=leases.now() - LEASE_SECONDS)
        known = gateway.services.slots.leases
        known.renewed(leases.now(), [claim.task_id])
        arm(server, "hang", seconds=0.5)
        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(backend.generate, attempt_at(gateway, claim), lambda: None)
            until(lambda: stats(server)["generations"] == 1, "it was sent")
            known.renewed(leases.now(), [])
            with pytest.raises(LeaseLost):
                sent.result(DEADLINE)
        assert [request["path"] for request in server.simulator.stats.payloads()] == ["/sdapi/v1/img2img"]

    def test_a_held_job_that_is_called_off_is_never_sent(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        claim = self.claim(gateway, backend)
        attempt = attempt_at(gateway, claim)
        for drop in (backend.cancel, lambda: backend.prepare(attempt), backend.cancel):
            backend.prepare(attempt)
            until(server.connections, "its connection is made")
            drop()
        until(lambda: not server.connections(), "all connections are closed")
        assert stats(server)["generations"] == 0
        other = replace(claim, job=claim.job._replace(args=claim.job.args | {"seed": "77"}))
        backend.prepare(attempt)
        assert backend.generate(attempt_at(gateway, other), lambda: None).ok
        assert [payload["seed"] for payload in payloads(server)] == [77]

    @pytest.mark.parametrize("kind", ["close", "error-500", "error-422"])
    def test_of_a_generation_that_failed_nobody_asks_whether_it_was_interrupted(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer, kind: str
    ) -> None:
        claim = self.claim(gateway, backend)
        arm(server, kind)
        arm(server, "slow-progress")
        with contextlib.suppress(AttemptLost):
            assert not backend.generate(attempt_at(gateway, claim), lambda: None).ok
        until(lambda: not server.connections(), "all connections are closed")
        assert [fault["kind"] for fault in server.simulator.faults.armed()] == ["slow-progress"]

    def test_looking_at_what_runs(self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer) -> None:
        claim = self.claim(gateway, backend)
        by_task = server.simulator.flavour.internal
        assert backend.poll(claim) == Poll(0.0, None, idle=True, by_task=by_task)
        arm(server, "hang")
        sending = threading.Thread(target=backend.generate, args=[attempt_at(gateway, claim), lambda: None])
        sending.start()
        until(lambda: stats(server)["generations"])
        until(lambda: (poll := backend.poll(claim)) is not None and not poll.idle)
        backend.interrupt(claim)
        sending.join(DEADLINE)
        assert not sending.is_alive()
        after = backend.poll(claim)
        assert after.idle
        server.stop()
        assert backend.poll(claim) is None

    def test_an_idle_webui_is_not_interrupted(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        claim = self.claim(gateway, backend)
        backend.interrupt(claim)
        assert stats(server)["interrupts"] == 0
        server.stop()
        backend.interrupt(claim)

    def test_an_idle_webui_is_settled(self, backend: WebuiBackend, server: SimulatorServer) -> None:
        for task in (None, "task(unknown)"):
            assert backend.quiesce(task, patience=DEADLINE, stopping=threading.Event())
        assert stats(server)["interrupts"] == 0

    def test_a_look_only_interrupts_nothing(
        self, gateway: Gateway, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        claim = self.claim(gateway, backend)
        arm(server, "hang")
        sending = threading.Thread(target=backend.generate, args=[attempt_at(gateway, claim), lambda: None])
        sending.start()
        until(lambda: stats(server)["generations"])
        assert not backend.quiesce(claim.task_id, patience=0, stopping=threading.Event())
        assert stats(server)["interrupts"] == 0
        assert backend.quiesce(claim.task_id, patience=DEADLINE, stopping=threading.Event())
        assert stats(server)["interrupts"] == 1
        sending.join(DEADLINE)

    def test_a_webui_that_is_away_is_not_settled(self, backend: WebuiBackend, server: SimulatorServer) -> None:
        server.stop()
        with pytest.raises(BackendDown):
            backend.quiesce("task(one)", patience=0.05, stopping=threading.Event())

    def test_quiescing_ends_when_the_worker_stops(self, backend: WebuiBackend) -> None:
        stopping = threading.Event()
        stopping.set()
        assert not backend.quiesce("task(one)", patience=DEADLINE, stopping=stopping)


class TestFirstLoad:
    @pytest.mark.parametrize("flavour", ["nowebui", "a1111-1.10", "forge"])
    def test_a_webui_that_loads_its_first_model_for_longer_than_it_may_be_stuck_is_waited_for(
        self, tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch, flavour: str
    ) -> None:
        """Without task ids it looks idle meanwhile, though it owes an answer."""
        monkeypatch.setattr(timing, "STUCK_SECONDS", 0.3)
        monkeypatch.setattr(timing, "UNWATCHED_POLL_SECONDS", 0.03)
        settings = {"flavour": flavour, "seconds_per_first_load": 1.5}
        for pair in _pair(tmp_path, migrated_sqlite, settings=settings):
            view = pair.gateway.post()
            job = pair.gateway.job(view)
            assert (view["status"], job.attempts, job.losses) == ("succeeded", 0, 0)
            assert stats(pair.server)["generations"] == 1

    def test_without_task_ids_a_webui_that_was_busy_and_is_idle_is_still_stuck(
        self, tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "STUCK_SECONDS", 0.3)
        monkeypatch.setattr(timing, "UNWATCHED_POLL_SECONDS", 0.03)
        settings = {"flavour": "nowebui", "seconds_per_image": 0.3}
        for pair in _pair(tmp_path, migrated_sqlite, settings=settings):
            arm(pair.server, "hang-idle")
            view = pair.gateway.post()
            assert (view["status"], pair.gateway.job(view).attempts) == ("succeeded", 1)


class TestOrphanRule:
    """Idle or not: what two questions to a WebUI mean together."""

    @pytest.fixture
    def backend(self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> Iterator[WebuiBackend]:
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as gateway:
            services = gateway.services
            webui = Webui(WebuiAddress("gpu0", server.url), job_timeout=DEADLINE)
            yield WebuiBackend(
                webui,
                services.tables,
                services.records,
                services.offering,
                replace(services.config, job_timeout=0.3),
            )

    def settles(self, backend: WebuiBackend, task: str, patience: float = 0.0) -> bool:
        return backend.quiesce(task, patience=patience, stopping=threading.Event())

    def test_somebody_elses_work_is_waited_for_and_not_interrupted(
        self, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        engine = server.simulator.engine
        engine.begin("scripts_txt2img", "task(a person)")
        assert not self.settles(backend, "task(ours)", 0.1)
        assert stats(server)["interrupts"] == 0
        engine.end()
        assert self.settles(backend, "task(ours)")

    def test_a_task_that_stays_active_while_nothing_runs_is_a_leak(
        self, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        server.simulator.engine.begin("scripts_txt2img", "task(ours)")
        server.simulator.engine.end()
        assert self.settles(backend, "task(ours)")

    def test_the_leftover_of_failed_extras_is_idle(self, backend: WebuiBackend, server: SimulatorServer) -> None:
        engine = server.simulator.engine
        engine.begin("Upscale")
        engine.plan(1)
        assert not self.settles(backend, "task(ours)")
        engine.next_job()
        assert self.settles(backend, "task(ours)")

    def test_a_task_that_waits_for_its_turn_is_not_idle_until_it_is_a_leak(
        self, backend: WebuiBackend, server: SimulatorServer
    ) -> None:
        server.simulator.engine.enqueue("task(ours)")
        assert not self.settles(backend, "task(ours)")
        assert not self.settles(backend, "task(ours)")
        # After as long as a job may take it can't be waiting any more.
        assert self.settles(backend, "task(ours)", DEADLINE)

    def test_each_task_has_its_own_patience(self, backend: WebuiBackend, server: SimulatorServer) -> None:
        server.simulator.engine.enqueue("task(one)")
        server.simulator.engine.enqueue("task(two)")
        assert self.settles(backend, "task(one)", DEADLINE)
        assert not self.settles(backend, "task(two)")


class TestHopelessDemands:
    CATALOGUE = Catalogue(samplers=("Euler",), models=(Model("a", "a", "a", ("a",)),))

    def requirement_sets(self) -> dict[int, str]:
        return {
            number: Requirements("txt2img", "Euler", model).to_json()
            for number, model in enumerate(["a", "b"], start=1)
        }

    def test_what_one_configured_webui_serves_is_not_hopeless(self) -> None:
        other = Catalogue(samplers=("Euler",), models=(Model("b", "b", "b", ("b",)),))
        both = {"gpu0": self.CATALOGUE, "gpu1": other}
        assert hopeless_requirements(self.requirement_sets(), both, ["gpu0", "gpu1"]) == []
        assert hopeless_requirements(self.requirement_sets(), both, ["gpu0"]) == [2]

    @pytest.mark.parametrize("configured", [[], ["gpu0", "never seen"]])
    def test_nothing_is_hopeless_while_a_catalogue_is_unknown(self, configured: list[str]) -> None:
        assert hopeless_requirements(self.requirement_sets(), {"gpu0": self.CATALOGUE}, configured) == []


def test_a_job_is_what_its_fields_say(shared: Pair) -> None:
    """The args of a job hold every documented field as posted, and the names that were really used."""
    view = shared.gateway.post(prompt="一座灯塔", cfg_scale=3.5)
    job: Job = shared.gateway.job(view)
    assert {name: job.args[name] for name in FIELDS} == FIELDS | {"prompt": "一座灯塔", "cfg_scale": 3.5}
    assert (job.args["model"], job.args["sampler_name"]) == ("simulated-one", "Euler")
