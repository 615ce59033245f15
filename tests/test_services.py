"""One process's objects, built and wired: readiness, notifications, draining, and the whole way from request to picture."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from app import EXTENSION, create_app
from app.config import ConfigError, load
from app.jobs import changes as changes_module
from app.jobs.errors import DatabaseUnavailable
from app.jobs.model import Failure
from app.jobs.worker import timing
from app.records.errors import StoreUnavailable
from app.services import build
from app.simulator import SimulatorServer
from app.webui.presets import PresetError
from tests.inprocess import DEADLINE, FIELDS, Gateway, arm, hurry, simulator, stats, until

NEVER = 3600.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


class TestBuild:
    def test_nothing_runs_before_the_start(self, gateway: Gateway, server: SimulatorServer) -> None:
        assert gateway.services.worker is None
        assert gateway.services.notifications.wake is None
        assert stats(server)["generations"] == 0
        gateway.services.drain()

    def test_a_data_folder_that_can_not_be_made_is_told(self, environ: dict[str, str], instance: Path) -> None:
        (instance / "file").touch()
        with pytest.raises(StoreUnavailable):
            build(load(environ | {"SDG_DATA_DIR": str(instance / "file" / "data")}, instance))

    def test_a_database_that_can_not_be_used_is_told(self, environ: dict[str, str], instance: Path) -> None:
        (instance / "file").touch()
        with pytest.raises(DatabaseUnavailable):
            build(load(environ | {"SDG_DATABASE_URL": f"sqlite:///{instance}/file/gateway.db"}, instance))

    def test_styles_that_can_not_be_read_are_told(self, environ: dict[str, str], instance: Path) -> None:
        (instance / "styles.toml").write_text("[oil")
        with pytest.raises(PresetError):
            build(load(environ, instance))

    def test_an_unknown_setting_builds_nothing(self, environ: dict[str, str], instance: Path) -> None:
        with pytest.raises(ConfigError, match="SDG_NONSENSE"):
            load(environ | {"SDG_NONSENSE": "1"}, instance)


class TestReadiness:
    NOTHING = (
        "No worker is running.",
        "No WebUI answers.",
        "No WebUI has told what it offers yet: requests are refused with 503 (no-catalogue).",
    )

    def test_every_reason_is_told_until_it_is_gone(self, gateway: Gateway, server: SimulatorServer) -> None:
        services = gateway.services
        assert services.readiness() == list(self.NOTHING)
        gateway.start()
        assert services.readiness() == []
        server.stop()
        gateway.accept()
        until(lambda: services.readiness() == ["No WebUI answers."])
        services.drain()
        gateway.sql("UPDATE workers SET heartbeat_at = 0")
        assert services.readiness() == ["No worker is running.", "No WebUI answers."]

    def test_a_webui_that_was_never_there_leaves_the_rest_alone(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        with simulator() as server:
            url = server.url
        with Gateway(tmp_path, migrated_sqlite, [url]) as gateway:
            gateway.services.start(worker=True)
            until(lambda: gateway.services.readiness() == list(self.NOTHING[1:]))

    def test_without_database_nothing_is_ready(self, gateway: Gateway) -> None:
        gateway.sql("DROP TABLE clock")
        with pytest.raises(DatabaseUnavailable):
            gateway.services.readiness()

    def test_without_data_folder_nothing_is_ready(self, gateway: Gateway) -> None:
        shutil.rmtree(gateway.data)
        with pytest.raises(StoreUnavailable):
            gateway.services.readiness()

    def test_no_webui_is_asked(self, gateway: Gateway, server: SimulatorServer) -> None:
        gateway.start()
        arm(server, "hang")
        view = gateway.accept()
        until(lambda: stats(server)["generations"])
        before = len(server.simulator.stats.payloads())
        assert gateway.services.readiness() == []
        assert len(server.simulator.stats.payloads()) == before
        server.simulator.engine.interrupt()
        gateway.finished(view)


class TestHints:
    def test_another_process_starts_the_job_and_wakes_its_client(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without polling, by notifications alone: one process accepts a job, the other one makes it, and both hear of its end."""
        with (
            Gateway(tmp_path, migrated_sqlite, [server.url]) as one,
            Gateway(tmp_path, migrated_sqlite, [server.url]) as two,
        ):
            one.start()
            two.services.start(worker=False)
            monkeypatch.setattr(changes_module, "_POLL_SECONDS", NEVER)
            monkeypatch.setattr(timing, "CLAIM_POLL_SECONDS", NEVER)
            two.post()
            assert two.post()["status"] == "succeeded"
            assert one.services.notifications.wake is not None

    def test_a_client_is_told_at_once_that_no_webui_can_make_its_job_any_more(
        self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(changes_module, "_POLL_SECONDS", NEVER)
        gateway.start()
        gateway.services.worker.stop_claiming()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.post)
            [(number,)] = until(lambda: gateway.sql("SELECT requirements_id FROM jobs WHERE status = 'queued'"))
            until(lambda: gateway.services.waiters._waiting, "the client waits")
            gateway.services._fail_queued(Failure("no-longer-available", "It is gone."), requirement_sets=[number])
            assert waiting.result(DEADLINE)["error"]["slug"] == "no-longer-available"

    def test_a_second_elected_process_waits_for_the_first(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer
    ) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url]) as one:
            one.start()
            with Gateway(tmp_path, migrated_sqlite, [server.url]) as two:
                two.services.start(worker=True)
                owners = one.sql("SELECT owner FROM workers")
                assert two.post()["status"] == "succeeded"
                one.services.drain()
                assert two.post()["status"] == "succeeded"
                assert two.sql("SELECT owner FROM workers") != owners

    @pytest.mark.parametrize(
        "message",
        [b"", b"nonsense", b"finished ", b"finished x", b"finished txt2img", b"finished \xff \xff \xff", b"accepted"],
    )
    def test_a_notification_that_means_nothing_does_nothing(self, gateway: Gateway, message: bytes) -> None:
        gateway.services.notifications.heard(message)


class TestSimulatorSetting:
    def test_the_worker_runs_one_of_its_own(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        with Gateway(tmp_path, migrated_sqlite, ["simulator"]) as gateway:
            gateway.start()
            view = gateway.post()
            assert (view["status"], view["simulated"]) == ("succeeded", True)
            assert gateway.slot().key == "simulator"


class TestDrain:
    def test_a_waiting_client_is_answered_at_once_and_its_picture_finished(
        self, gateway: Gateway, server: SimulatorServer
    ) -> None:
        gateway.start()
        arm(server, "hang", seconds=0.5)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.post)
            until(lambda: stats(server)["generations"])
            gateway.services.begin_drain()
            view = waiting.result(DEADLINE)
        assert view["status"] == "running"
        assert gateway.finished(view).status == "succeeded"

    def test_it_begins_beside_the_caller(self, gateway: Gateway, server: SimulatorServer) -> None:
        gateway.start()
        gateway.services.drain_soon()
        until(gateway.services.waiters._draining.is_set)
        until(gateway.services.worker._context.stopping.is_set)
        assert gateway.accept()["status"] == "queued"
        assert stats(server)["generations"] == 0

    def test_afterwards_nothing_runs_any_more(self, gateway: Gateway) -> None:
        """Else a late heartbeat would go on in the rows of the next worker, on a connection that nobody closes."""
        others = set(threading.enumerate())

        def running() -> set[str]:
            return {thread.name.partition(" ")[0] for thread in threading.enumerate() if thread not in others}

        gateway.start()
        gateway.post()
        ours = {"worker", "heartbeat", "monitor", "runner", "changes"}
        assert running() >= ours
        database = gateway.services.database
        with contextlib.closing(sqlite3.connect(database.url.database)) as neighbour, ThreadPoolExecutor(1) as pool:
            neighbour.execute("BEGIN IMMEDIATE")
            until(database._writer.locked, "a thread that waits for the neighbour's transaction")
            drained = pool.submit(gateway.services.drain)
            assert not wait([drained], 0.2).done
            neighbour.rollback()
            drained.result(DEADLINE)
        assert not running() & ours

    def test_it_may_be_called_twice(self, gateway: Gateway) -> None:
        gateway.start()
        gateway.services.drain()
        gateway.services.drain()


def test_a_request_over_http_comes_back_as_a_picture(
    environ: dict[str, str], instance: Path, server: SimulatorServer
) -> None:
    app = create_app(load(environ | {"SDG_WEBUI_URLS": server.url, "SDG_DRAIN_TIMEOUT": "0"}, instance))
    services = app.extensions[EXTENSION]
    services.start(worker=True)
    try:
        client = app.test_client()
        until(lambda: client.get("/readyz").json == {"status": "ok", "reasons": []})
        assert client.get("/options").json["default_model"] == "simulated-one"
        posted = client.post("/txt2img", json=FIELDS)
        assert posted.status_code == 200
        [image] = posted.json["images"]
        with client.get(image["url"]) as picture:
            assert picture.data.startswith(b"\x89PNG")
        assert client.get(f"/get_args/u1/txt2img/{posted.json['name']}").json == posted.json["args"]
        assert [record["name"] for record in client.get("/t2ihistory/u1").json["records"]] == [posted.json["name"]]
        arm(server, "error-500", 3)
        failed = client.post("/txt2img", json=FIELDS)
        assert (failed.status_code, failed.json["type"]) == (502, "webui-error")
        assert failed.json["url"].startswith("/jobs/u1/txt2img/")
        assert client.delete(f"/delete/u1/txt2img/{posted.json['name']}").status_code == 200
        assert client.get("/t2ihistory/u1").json == {"records": [], "next": None}
    finally:
        services.drain()
