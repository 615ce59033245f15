"""The sd-gateway command."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import pwd
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result

from app import cli
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from tests.inprocess import Gateway, hurry, simulator, until

STRAY = "20261122T061530123-9f2c4e7a-init.png"


@pytest.fixture
def place(tmp_path: Path, migrated_sqlite: Path) -> Path:
    shutil.copy(migrated_sqlite, tmp_path / "gateway.db")
    return tmp_path


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command with the settings of this test alone."""
    for name in [name for name in os.environ if name.startswith("SDG_")]:
        monkeypatch.delenv(name)

    def invoke(*arguments: str, **settings: str) -> Result:
        environ = {
            "SDG_INSTANCE": str(place),
            "SDG_DATA_DIR": str(place / "data"),
            "SDG_DATABASE_URL": f"sqlite:///{place}/gateway.db",
            "SDG_HOST_ID": "testhost",
            "SDG_WEBUI_URLS": "http://127.0.0.1:9",
        }
        return CliRunner().invoke(cli.main, arguments, env=environ | settings, catch_exceptions=False)

    return invoke


@pytest.fixture
def _handlers() -> Iterator[None]:
    """The commands that run until a signal set handlers of their own."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def record(place: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a record that a gateway which has ended made."""
    hurry(monkeypatch)
    with simulator() as server, Gateway(place, migrated_sqlite, [server.url]) as gateway:
        return gateway.start().post()["name"]


class TestRecords:
    @pytest.mark.usefixtures("record")
    def test_sweep_says_how_many_files_went(self, run: Callable[..., Result], place: Path) -> None:
        folder = place / "data" / "u-0123456789abcdef" / "txt2img" / "2026-11-22"
        folder.mkdir(parents=True)
        (folder / STRAY).touch()
        os.utime(folder / STRAY, (0, 0))
        result = run("records", "sweep", "--dry-run")
        assert (result.exit_code, result.stdout) == (0, "1 stray files would be removed\n")
        result = run("records", "sweep")
        assert (result.exit_code, result.stdout) == (0, "1 stray files removed\n")
        assert run("records", "sweep").stdout == "0 stray files removed\n"

    def test_verify_exits_1_and_names_what_is_damaged(
        self, run: Callable[..., Result], place: Path, record: str
    ) -> None:
        result = run("records", "verify")
        assert (result.exit_code, result.stdout) == (0, "1 records looked at, 0 problems\n")
        next(place.rglob(f"{record}-1-0.png")).write_bytes(b"")
        result = run("records", "verify")
        assert (result.exit_code, result.stdout) == (1, "1 records looked at, 1 problems\n")
        assert f"{record}-1-0.png" in result.stderr

    def test_reindex_exits_1_where_a_document_can_not_be_read(
        self, run: Callable[..., Result], place: Path, record: str
    ) -> None:
        database = Database(f"sqlite:///{place}/gateway.db")
        with database.write() as connection:
            connection.exec_driver_sql("DELETE FROM jobs")
        database.close()
        document = next(place.rglob(f"{record}-1.json"))
        whole = document.read_text()
        document.write_text("{")
        for arguments in (["reindex", "--dry-run"], ["reindex"], ["sweep"]):
            result = run("records", *arguments)
            assert result.exit_code == 1
            assert str(document) in result.stderr
        document.write_text(whole)
        result = run("records", "reindex", "--dry-run")
        assert (result.exit_code, result.stdout) == (0, "1 records would be added, 0 not readable\n")
        result = run("records", "reindex")
        assert (result.exit_code, result.stdout) == (0, "1 records added, 0 not readable\n")
        assert run("records", "reindex").stdout == "0 records added, 0 not readable\n"

    def test_trouble_is_told_in_one_line(self, run: Callable[..., Result], place: Path) -> None:
        result = run("records", "sweep", SDG_STEPS="1")
        assert (result.exit_code, result.stderr) == (
            1,
            "Error: unknown setting SDG_STEPS; did you mean SDG_MAX_STEPS?\n",
        )

    @pytest.mark.usefixtures("record")
    def test_trouble_on_the_way_is_told_too(self, run: Callable[..., Result], place: Path) -> None:
        database = Database(f"sqlite:///{place}/gateway.db")
        with database.write() as connection:
            connection.exec_driver_sql("ALTER TABLE jobs RENAME TO hidden")
        database.close()
        result = run("records", "verify")
        places = f"database sqlite:///{place}/gateway.db, data folder {place}/data\n"
        said = f"{places}Error: The job database can't be used at the moment.\n"
        assert (result.exit_code, result.stderr) == (1, said)


@pytest.mark.usefixtures("record")
class TestAudit:
    def test_what_a_command_changes_is_told_with_the_user_who_ran_it(
        self, run: Callable[..., Result], place: Path
    ) -> None:
        folder = place / "data" / "u-0123456789abcdef" / "txt2img" / "2026-11-22"
        folder.mkdir(parents=True)
        (folder / STRAY).touch()
        os.utime(folder / STRAY, (0, 0))
        for command in (
            "records sweep --dry-run",
            "queue resume",
            "records verify",
            "queue list",
            "queue cancel u1 --waiting",
        ):
            assert run(*command.split()).exit_code == 0, command
        assert not (place / "audit.log").exists()
        for command in ("queue pause", "queue pause", "queue resume", "records sweep", "records sweep"):
            assert run(*command.split()).exit_code == 0, command
        by = pwd.getpwuid(os.getuid()).pw_name
        said = [line.partition(" app.audit: ")[2] for line in (place / "audit.log").read_text("utf-8").splitlines()]
        assert said == [
            f"event=queue-paused by={by}",
            f"event=queue-resumed by={by}",
            f"event=files-swept count=1 by={by}",
        ]

    def test_it_is_json_where_the_log_is(self, run: Callable[..., Result], place: Path) -> None:
        assert run("queue", "pause", SDG_LOG_FORMAT="json").exit_code == 0
        [line] = (place / "audit.log").read_text("utf-8").splitlines()
        assert json.loads(line)["event"] == "queue-paused"


@pytest.mark.usefixtures("_handlers")
class TestWorker:
    def test_it_refuses_beside_embedded_ones(self, run: Callable[..., Result]) -> None:
        result = run("worker")
        assert result.exit_code == 1
        assert "SDG_WORKER is not 'external'" in result.stderr

    def test_it_works_until_it_is_told_to_stop(self, run: Callable[..., Result], place: Path) -> None:
        def stop() -> None:
            database = Database(f"sqlite:///{place}/gateway.db")
            try:
                until(lambda: Slots(database).configured() == ["one"])
            finally:
                database.close()
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=stop).start()
        result = run("worker", SDG_WORKER="external", SDG_WEBUI_URLS="one=http://127.0.0.1:9")
        assert result.exit_code == 0
        assert "working for 1 WebUIs" in result.stderr
        # An external worker takes over by leases only: it holds no lock of the host.
        assert list((place / "data").glob(".worker-*")) == []


@pytest.mark.usefixtures("_handlers")
class TestSimulate:
    def asked_and_stopped(self, run: Callable[..., Result], paths: Sequence[str], *arguments: str) -> dict[str, Any]:
        """The answers to GETs of a simulator that the command runs and Ctrl-C ends."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        seen: dict[str, Any] = {}

        def answers() -> bool:
            try:
                seen.update({path: requests.get(url + path, timeout=5).json() for path in paths})
            except requests.ConnectionError:
                return False
            return True

        def stop() -> None:
            try:
                until(answers)
            finally:
                os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=stop).start()
        result = run("simulate", "--port", str(port), "--seconds-per-image", "0", "--precomputed", *arguments)
        assert result.exit_code == 0
        assert result.stderr.endswith(f"at {url}\n")
        return seen

    def test_it_listens_until_it_is_told_to_stop(self, run: Callable[..., Result]) -> None:
        paths = ("/sdapi/v1/sd-models", "/simulator/faults", "/sdapi/v1/sd-modules")
        arguments = ("--flavour", "forge", "--model", "a", "--model", "b", "--fault", "close:2")
        models, faults, modules = self.asked_and_stopped(run, paths, *arguments).values()
        assert [model["model_name"] for model in models] == ["a", "b"]
        assert models[0]["hash"]
        assert faults == {"armed": [{"kind": "close", "count": 2}]}
        assert modules == []

    def test_its_server_can_be_fresh_and_lack_things(self, run: Callable[..., Result]) -> None:
        flags = ("--no-hashing", "--frozen-options", "--fresh", "--seconds-per-first-load", "600")
        lacking = ("--lacks-option", "tiling", "--lacks-option", "sd_vae")
        paths = ("/sdapi/v1/sd-models", "/sdapi/v1/options")
        models, options = self.asked_and_stopped(run, paths, *flags, *lacking).values()
        assert [(model["model_name"], model["hash"]) for model in models] == [
            ("simulated-one", None),
            ("simulated-two", None),
        ]
        assert options["sd_model_checkpoint"] is None
        assert not {"tiling", "sd_vae", "enable_prompt_comments"} & set(options)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--port", "0", "--fault", "nonsense"],
            ["--port", "0", "--fault", "close:0"],
            ["--port", "70000"],
            ["--port", "0", "--flavour", "sdnext"],
            ["--port", "0", "--seconds-per-image", "-1"],
            ["--port", "0", "--seconds-per-first-load", "-1"],
            ["--port", "0", "--model", "a", "--model", "a.safetensors"],
            [],
        ],
    )
    def test_what_it_can_not_be_is_refused(self, run: Callable[..., Result], arguments: list[str]) -> None:
        assert run("simulate", *arguments).exit_code == 2


class TestSettings:
    def test_they_are_printed_without_user_names_and_passwords(self, run: Callable[..., Result]) -> None:
        webuis = "big=https://ada:hunter2@gpu1:7860/sub, http://bob:secret@gpu2:7860"
        database = "postgresql://carl:pass@db/sdg?password=geheim&sslmode=require"
        keys = f"one:{base64.b64encode(bytes(range(32))).decode()}"
        given = {"SDG_WEBUI_URLS": webuis, "SDG_DATABASE_URL": database, "SDG_MAX_STEPS": "99", "SDG_SECRET_KEYS": keys}
        result = run("config", **given)
        assert result.exit_code == 0
        lines = dict(line.split("=", 1) for line in result.stdout.splitlines())
        assert lines["SDG_WEBUI_URLS"] == "big=https://…@gpu1:7860/sub, http://…@gpu2:7860"
        assert lines["SDG_DATABASE_URL"] == "postgresql://…@db/sdg?password=…&sslmode=require"
        assert (lines["SDG_MAX_STEPS"], lines["WEB_CONCURRENCY"]) == ("99", "2")
        assert lines["SDG_SECRET_KEYS"] == "…"

    def test_a_bad_one_is_named(self, run: Callable[..., Result]) -> None:
        result = run("config", SDG_THREADS="many")
        assert (result.exit_code, result.stderr) == (1, "Error: SDG_THREADS: must be a whole number\n")


@pytest.mark.parametrize("command", [("worker",), ("records", "verify"), ("records", "adopt")])
def test_a_command_other_than_serve_makes_no_instance_folder(
    run: Callable[..., Result], tmp_path: Path, command: tuple[str, ...]
) -> None:
    missing = tmp_path / "nowhere"
    result = run(*command, SDG_INSTANCE=str(missing))
    assert result.exit_code == 1
    assert f"{missing} does not exist" in result.stderr
    assert not missing.exists()


def test_the_version_is_that_of_the_package(run: Callable[..., Result]) -> None:
    assert run("--version").stdout == f"sd-gateway {importlib.metadata.version('sd-gateway')}\n"
