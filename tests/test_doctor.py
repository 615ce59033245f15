"""sd-gateway doctor: each planted fault is named with what to do, no other check reports one, and nothing is changed."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from app import cli
from app.simulator import SimulatorServer
from tests.inprocess import Gateway, arm, simulator
from tests.proxy import TcpProxy


class Report(NamedTuple):
    """What the command printed, taken apart."""

    status: int
    lines: list[tuple[str, str, str]]
    counts: str

    def of(self, level: str, subject: str = "") -> list[str]:
        """The texts of one level, and of one subject."""
        return [text for found, about, text in self.lines if found == level and about.startswith(subject)]

    def only_fault(self) -> tuple[str, str]:
        """Subject and text of the only fault, which makes the exit status 1; and it says what to do."""
        [(subject, text)] = [(about, text) for level, about, text in self.lines if level == "fault"]
        assert (self.status, self.counts.split(",")[0]) == (1, "1 fault")
        assert " Do this: " in text
        return subject, text


def report(output: str, status: int) -> Report:
    *lines, counts = output.splitlines()
    parts = [(line[:7].strip(), *line[8:].partition(": ")[::2]) for line in lines]
    return Report(status, parts, counts)


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Path:
    """The folder of a gateway that was started once, to be copied."""
    folder = tmp_path_factory.mktemp("stamped")
    with Gateway(folder, migrated_sqlite, ["http://127.0.0.1:9"]):
        pass
    return folder


@pytest.fixture(scope="module")
def good() -> Iterator[SimulatorServer]:
    """A WebUI with which nothing is wrong."""
    with simulator() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, stamped: Path) -> Path:
    return shutil.copytree(stamped, tmp_path / "place")


Examine = Callable[..., Report]


@pytest.fixture
def examine(place: Path, good: SimulatorServer, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Run the command with the settings of this test alone."""
    for name in [name for name in os.environ if name.startswith("SDG_")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        bind = f"127.0.0.1:{free.getsockname()[1]}"

    def run(**settings: object) -> Report:
        environ = {
            "SDG_INSTANCE": place / "instance",
            "SDG_DATA_DIR": place / "data",
            "SDG_DATABASE_URL": f"sqlite:///{place}/gateway.db",
            "SDG_HOST_ID": "testhost",
            "SDG_WEBUI_URLS": good.url,
            "SDG_BIND": bind,
        }
        given = {name: str(value) for name, value in (environ | settings).items()}
        result = CliRunner().invoke(cli.main, ["doctor"], env=given, catch_exceptions=False)
        return report(result.stdout, result.exit_code)

    return run


def sql(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def contents(folder: Path) -> dict[str, Any]:
    """Everything below a folder: names, times of modification and bytes."""
    files = {str(path): path for path in folder.rglob("*")}
    return {
        name: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for name, path in files.items()
    }


def test_nothing_is_wrong_and_nothing_is_changed(examine: Examine, place: Path) -> None:
    before = contents(place)
    found = examine()
    assert (found.status, found.of("fault"), found.of("skipped")) == (0, [], [])
    subjects = {about for level, about, _ in found.lines if level == "ok"}
    assert {"settings", "database", "data folder", "clock", "worker", "queue", "access", "models"} <= subjects
    assert found.counts.startswith("0 faults, ")
    assert contents(place) == before


def test_a_gateway_that_was_never_started_has_no_fault(examine: Examine, place: Path) -> None:
    shutil.rmtree(place / "data")
    (place / "gateway.db").unlink()
    found = examine()
    assert (found.status, found.of("fault")) == (0, [])
    assert "makes its database at its first start" in found.of("warning", "database")[0]
    assert "the first start of one makes its data folder" in found.of("warning", "data folder")[0]
    assert sorted(path.name for path in place.iterdir()) == ["instance"]


class TestSettings:
    def test_all_bad_ones_are_named_at_once(self, examine: Examine, place: Path) -> None:
        (place / "instance/settings.toml").write_text("treads = 5\nmax_steps = true\n")
        found = examine(SDG_WEBUI_URL="http://127.0.0.1:7860", SDG_WEBUI_URLS="", SDG_MAX_SIDE="large")
        named = ("SDG_WEBUI_URL;", "treads", "max_steps", "SDG_MAX_SIDE")
        texts = found.of("fault")
        assert found.status == 1
        assert found.of("fault", "settings") == texts
        assert all(name in text and "Do this: Correct" in text for name, text in zip(named, texts, strict=True))
        # What they may have meant to say is not known.
        assert found.of("skipped", "WebUIs") == ["SDG_WEBUI_URLS can't be read."]
        assert found.of("skipped", "open files")
        assert found.of("ok", "database")

    def test_a_file_that_can_not_be_read(self, examine: Examine, place: Path) -> None:
        (place / "instance/settings.toml").write_text("threads = ")
        subject, text = examine().only_fault()
        assert (subject, "settings.toml can't be read: " in text) == ("settings", True)

    def test_no_instance_folder(self, examine: Examine, tmp_path: Path) -> None:
        missing = tmp_path / "nowhere"
        subject, text = examine(SDG_INSTANCE=missing).only_fault()
        assert (subject, f"{missing} does not exist. Do this: Set SDG_INSTANCE" in text) == ("instance folder", True)
        assert not missing.exists()

    def test_more_clients_than_open_files(self, examine: Examine) -> None:
        subject, text = examine(SDG_MAX_WAITERS=10**9).only_fault()
        assert (subject, "Do this: Raise it (ulimit" in text) == ("open files", True)


def newer(place: Path) -> None:
    sql(place / "gateway.db", "UPDATE alembic_version SET version_num = '9999'")


def older(place: Path) -> None:
    sql(place / "gateway.db", "UPDATE alembic_version SET version_num = '0008'")


def another_file(place: Path) -> None:
    (place / "gateway.db").write_bytes(b"no database " * 100)


def lost_database(place: Path) -> None:
    (place / "gateway.db").unlink()


def foreign(place: Path) -> None:
    (place / "data/.sd-gateway-id").write_text("0123456789abcdef\n")


def not_mounted(place: Path) -> None:
    (place / "data/.sd-gateway-id").unlink()


def lost_folder(place: Path) -> None:
    shutil.rmtree(place / "data")


@pytest.mark.parametrize(
    ("plant", "subject", "text", "advice"),
    [
        (newer, "database", "which this version of sd-gateway does not know", "Start the version that wrote it"),
        (older, "database", "the schema of an earlier version", "Start the gateway once: it migrates the database"),
        (another_file, "database", "file is not a database", "Let the gateway's user write there, or"),
        (lost_database, "database", "the database has none: it is missing", "correct SDG_DATABASE_URL"),
        (foreign, "database and data folder", "their ids differ", "Correct SDG_DATA_DIR or SDG_DATABASE_URL"),
        (not_mounted, "database and data folder", "the data folder has none", "Mount its disk"),
        (lost_folder, "data folder", "does not exist", "Mount its disk, or correct SDG_DATA_DIR"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_database_and_the_data_folder(
    examine: Examine, place: Path, plant: Callable[[Path], None], subject: str, text: str, advice: str
) -> None:
    plant(place)
    before = contents(place)
    found = examine().only_fault()
    assert found[0] == subject
    assert text in found[1]
    assert f"Do this: {advice}" in found[1] or advice in found[1].partition("Do this: ")[2]
    assert contents(place) == before


class TestClock:
    def test_the_newest_job_is_from_the_future(self, examine: Examine, place: Path, migrated_sqlite: Path) -> None:
        with simulator() as server, Gateway(place, migrated_sqlite, [server.url]) as gateway:
            gateway.start().post()
        assert examine(SDG_WEBUI_URLS=server.url).of("fault", "clock") == []
        sql(place / "gateway.db", f"UPDATE jobs SET created_at = {int(time.time() + 3600) * 1000}")
        subject, text = examine().only_fault()
        assert (subject, "s in the future" in text, "Do this: Correct the clock" in text) == ("clock", True, True)

    def test_a_webuis_clock_is_wrong(self, examine: Examine) -> None:
        with simulator(clock_ahead=-300.0) as server:
            subject, text = examine(SDG_WEBUI_URLS=f"big={server.url}").only_fault()
        assert (subject, "s behind this machine's. Do this: Keep the clocks" in text) == ("WebUI big", True)


@contextmanager
def silent() -> Iterator[str]:
    """The address of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_webuis_that_do_not_answer_are_all_named_in_one_run(examine: Examine, good: SimulatorServer) -> None:
    with ExitStack() as stack:
        without_api, guarded = (stack.enter_context(simulator(**kind)) for kind in ({}, {"auth": ("ada", "hunter2")}))
        arm(without_api, "start-window", 5)
        urls = {
            "good": good.url,
            "refused": "http://127.0.0.1:9",
            "unknown": "http://no-such-host.invalid:7860",
            "silent": stack.enter_context(silent()),
            "plain": good.url.replace("http://", "https://"),
            "bare": without_api.url,
            "closed": guarded.url.replace("http://", "http://ada:secret@"),
        }
        found = examine(SDG_WEBUI_URLS=",".join(f"{name}={url}" for name, url in urls.items()))
    told = {
        "refused": ("connection refused.", "Start the WebUI, or correct its address"),
        "unknown": ("host name can't be resolved.", "Correct the host name"),
        "silent": ("no answer in time.", "restart it"),
        "plain": ("SSL", "write http://"),
        "bare": ("no API (status 404)", "Start it with --api"),
        "closed": ("refuses the gateway's credentials (status 401)", "user and password of its --api-auth"),
    }
    faults = {about: text for level, about, text in found.lines if level == "fault"}
    assert found.status == 1
    assert list(faults) == [f"WebUI {name}" for name in told]
    for name, (text, advice) in told.items():
        what, _, todo = faults[f"WebUI {name}"].partition(" Do this: ")
        assert (text in what, advice in todo) == (True, True), faults
    assert found.of("ok", "WebUI good") == ["version 1.9.1 or later, 2 models."]
    assert not any(secret in str(found) for secret in ("hunter2", "secret", "ada"))
    # One that is starting can be killed by requests: it was asked once.
    assert without_api.simulator.faults.armed() == [{"kind": "start-window", "count": 4}]


@pytest.mark.parametrize(
    ("kind", "text", "advice"),
    [
        ({"task_ids": False}, "it is too old: it takes no task ids", "Update it to version 1.8 or later"),
        ({"flags": {"freeze_settings": True}}, "its options are frozen", "Start it without --freeze-settings"),
        ({"flags": {"freeze_specific_settings": "a, samples_format"}}, "its options are frozen", "--freeze-specific"),
        ({"flags": {"share": True}}, "--share: it can be used by everybody on the internet", "without --share"),
    ],
    ids=str,
)
def test_a_webui_that_does_not_suit_the_gateway(examine: Examine, kind: dict[str, Any], text: str, advice: str) -> None:
    with simulator(**kind) as server:
        subject, found = examine(SDG_WEBUI_URLS=f"big={server.url}").only_fault()
    assert (subject, text in found, advice in found.partition("Do this: ")[2]) == ("WebUI big", True, True)


def test_what_is_only_worth_knowing_of_a_webui_is_a_warning(examine: Examine) -> None:
    with (
        simulator(flavour="nowebui", flags={"freeze_specific_settings": "other"}) as api_only,
        simulator(auth=("ada", "hunter2"), flags={"disable_nan_check": True, "cors_allow_origins": "*"}) as open_one,
        simulator(flavour="forge") as forge,
    ):
        address = open_one.url.replace("http://", "http://ada:hunter2@")
        found = examine(SDG_WEBUI_URLS=f"a={api_only.url},b={address},c={forge.url}")
    assert (found.status, found.of("fault")) == (0, [])
    assert "no /internal/progress" in found.of("warning", "WebUI a")[0]
    assert [text.partition(":")[0] for text in found.of("warning", "WebUI b")] == [
        "--disable-nan-check",
        "--cors-allow-origins",
    ]
    assert found.of("ok", "WebUI c") == ["Forge, 2 models."]
    assert "hunter2" not in str(found)


class TestNames:
    def test_one_webui_under_two_addresses(self, examine: Examine, good: SimulatorServer) -> None:
        with closing(TcpProxy(good.port)) as proxy:
            found = examine(SDG_WEBUI_URLS=f"a={good.url},b=http://127.0.0.1:{proxy.port}")
        subject, text = found.only_fault()
        assert (subject, text.startswith("a and b are one WebUI: they began at the same moment")) == (
            "names of WebUIs",
            True,
        )
        assert "Do this: Take one of them out of SDG_WEBUI_URLS" in text

    def test_another_host_names_it_otherwise(self, examine: Examine, place: Path, good: SimulatorServer) -> None:
        with simulator(), closing(sqlite3.connect(place / "gateway.db")) as connection:
            now = "(julianday('now') - 2440587.5) * 86400.0"
            for host in ("testhost", "other"):
                row = f"VALUES ('{host}/1-a', '{host}', '[\"http://testhost:{good.port}\"]', {now})"
                connection.execute(f"INSERT INTO workers (owner, host, webuis, heartbeat_at) {row}")
            connection.commit()
        found = examine(SDG_WEBUI_URLS=f"big={good.url}")
        subject, text = found.only_fault()
        assert (subject, "on the host other. Do this: Write the same name" in text) == ("names of WebUIs", True)
        assert "use PostgreSQL" in found.of("warning", "worker")[0].replace("Use", "use")


class TestModels:
    def test_a_styles_file_that_can_not_be_read(self, examine: Examine, place: Path) -> None:
        (place / "instance/styles.toml").write_text("[oil")
        subject, text = examine().only_fault()
        assert (subject, "can't be read" in text, "Do this: Correct it" in text) == ("styles.toml", True, True)

    def test_names_that_no_webui_has(self, examine: Examine, place: Path) -> None:
        styles = '[oil]\nmodel = "gone"\nsampler = "Eulr"\n[good]\nmodel = "simulated-one"\nsampler = "Euler"\n'
        (place / "instance/styles.toml").write_text(styles)
        found = examine(SDG_DEFAULT_MODEL="lost")
        assert [text.partition(", which")[0] for text in found.of("fault")] == [
            "styles.toml [oil] names the model 'gone'",
            "styles.toml [oil] names the sampler 'Eulr'",
            "SDG_DEFAULT_MODEL names the model 'lost'",
        ]
        assert found.of("fault") == found.of("fault", "models")
        assert all("Do this: Correct the name" in text for text in found.of("fault"))


class TestAccess:
    @pytest.mark.parametrize(
        "settings",
        [{"SDG_BIND": "0.0.0.0:1"}, {"SDG_BIND": "unix:/nowhere/s"}, {"SDG_PUBLIC_URL": "https://a.example"}],
    )
    def test_an_open_port_without_tokens(self, examine: Examine, settings: dict[str, str]) -> None:
        subject, text = examine(**settings).only_fault()
        assert (subject, "Do this: Make a token: 'sd-gateway tokens create" in text) == ("access", True)

    def test_everybody_may_do_everything(self, examine: Examine) -> None:
        found = examine(SDG_BIND="0.0.0.0:1", SDG_AUTH="none")
        assert (found.status, found.of("fault")) == (0, [])
        assert "everybody in that network" in found.of("warning", "access")[0]

    def test_tokens(self, examine: Examine, place: Path) -> None:
        names = "INSERT INTO tokens (id, digest, name, scopes, users, limits, created_at, expires_at)"
        sql(place / "gateway.db", f"{names} VALUES ('a', 'd', 'app', '[]', '[]', '{{}}', 0, NULL)")
        assert examine(SDG_BIND="0.0.0.0:1").of("ok", "access") == ["1 valid token."]
        sql(place / "gateway.db", "UPDATE tokens SET expires_at = 1")
        assert "nobody is let in" in examine(SDG_BIND="0.0.0.0:1").of("warning", "access")[0]

    def test_secrets_that_others_can_read(self, examine: Examine) -> None:
        # Below the folders of tests nobody else can read anything.
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            key, settings = Path(folder, "secret-keys"), Path(folder, "settings.toml")
            key.write_text(f"1:{'A' * 43}=\n")
            settings.touch()
            for path in (key, settings):
                path.chmod(0o644)
            found = examine(SDG_INSTANCE=folder)
            subject, text = found.only_fault()
            assert (subject, f"can read {key}. Do this: Run 'chmod o= {key}'." in text) == ("permissions", True)
            assert f"can read {settings}." in found.of("warning", "permissions")[0]
            for path in (key, settings):
                path.chmod(0o640)
            assert examine(SDG_INSTANCE=folder).of("fault") == []


@pytest.mark.parametrize("text", ["", "1:short", "nonsense"])
def test_a_damaged_file_of_keys(examine: Examine, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "with keys"
    folder.mkdir()
    (folder / "secret-keys").write_text(text)
    (folder / "secret-keys").chmod(0o600)
    subject, told = examine(SDG_INSTANCE=str(folder)).only_fault()
    assert (subject, "no URL can be signed" in told) == ("instance folder", True)


def test_a_paused_queue_is_a_warning(examine: Examine, place: Path) -> None:
    sql(place / "gateway.db", "INSERT INTO notes (key, value) VALUES ('paused', '1')")
    found = examine()
    assert (found.status, found.of("fault")) == (0, [])
    assert "'sd-gateway queue resume' starts jobs again" in found.of("warning", "queue")[0]


def test_another_program_at_the_address(examine: Examine, good: SimulatorServer) -> None:
    subject, text = examine(SDG_BIND=f"127.0.0.1:{good.port}").only_fault()
    assert (subject, "Do this: Stop the other program" in text) == ("gateway", True)


class TestPostgres:
    def test_one_that_can_not_be_reached(self, examine: Examine) -> None:
        pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
        subject, text = examine(SDG_DATABASE_URL="postgresql://me:sec%2Fret@127.0.0.1:9/gateway").only_fault()
        assert (subject, "Do this: PostgreSQL must run and be reachable" in text, "sec" in text) == (
            "database",
            True,
            False,
        )
