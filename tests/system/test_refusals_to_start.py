"""Refusals to start: one line says what to fix, and the exit status is 1."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.postgresql import SOCKET
from tests.proxy import TcpProxy
from tests.system.harness import COMMAND, clean_environ, free_port, obey_file_modes, run

GUNICORN = (sys.executable, "-m", "gunicorn", "wsgi:app")
WORKER = (COMMAND, "worker")
VERIFY = (COMMAND, "records", "verify")
ADOPT = (COMMAND, "records", "adopt")
ADVICE = "Let the gateway's user write there, or choose another place."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "instance").mkdir()
    return tmp_path


def refusal(command: Sequence[str], folder: Path, before: Callable[[], None] | None = None, **settings: object) -> str:
    """The one line with which a command refuses to start; ``before`` is called in its process."""
    environ = clean_environ(
        folder,
        **{
            "SDG_INSTANCE": folder / "instance",
            "SDG_BIND": f"127.0.0.1:{free_port()}",
            "SDG_WORKER": "external",
            "SDG_WEBUI_URLS": "http://127.0.0.1:9",
            **settings,
        },
    )
    ended = run(command, environ, before=before)
    assert ended.returncode == 1, ended.stderr
    # gunicorn has said by then that it starts.
    [line] = [line for line in ended.stderr.splitlines() if "[INFO] Starting gunicorn" not in line]
    return line.removeprefix("sd-gateway: ").removeprefix("Error: ")


@pytest.fixture(params=[GUNICORN, VERIFY], ids=["gunicorn", "records"])
def command(request: pytest.FixtureRequest) -> Sequence[str]:
    """Two of the programs that read the settings and open the database."""
    chosen: Sequence[str] = request.param
    return chosen


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"SDG_WEBUI_URL": "http://127.0.0.1:7860"},
            "unknown setting SDG_WEBUI_URL; did you mean SDG_WEBUI_URLS?",
        ),
        ({"SDG_THREADS": "many"}, "SDG_THREADS: must be a whole number"),
        (
            {"SDG_ACCEL": "nginx", "SDG_BIND": "0.0.0.0:0"},
            "SDG_ACCEL: needs SDG_BIND to be a loopback address or a Unix socket, so that only nginx reaches it",
        ),
    ],
    ids=["unknown", "malformed", "contradiction"],
)
def test_a_bad_setting(command: Sequence[str], folder: Path, settings: dict[str, str], said: str) -> None:
    assert refusal(command, folder, **settings) == said
    assert list((folder / "instance").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("settings.toml", "threads = ", "settings.toml can't be read: Invalid value (at end of document)"),
        ("settings.toml", "treads = 5", "settings.toml: unknown setting treads; did you mean THREADS?"),
        ("styles.toml", "[oil", "styles.toml can't be read: Expected ']' at the end of a table declaration"),
        ("styles.toml", "[oil]\ncolour = 'red'", "styles.toml: [oil] has an unknown key colour"),
    ],
)
def test_a_file_of_the_instance_folder(command: Sequence[str], folder: Path, name: str, text: str, said: str) -> None:
    (folder / "instance" / name).write_text(text)
    assert refusal(command, folder).startswith(f"{folder}/instance/{said}")


def test_a_data_folder_that_can_not_be_made(folder: Path) -> None:
    (folder / "file").touch()
    data = folder / "file" / "data"
    said = refusal(GUNICORN, folder, SDG_DATA_DIR=data)
    assert said == f"SDG_DATA_DIR: {data} can't be made: Not a directory. {ADVICE}"


def used_before(instance: Path) -> None:
    """Give an instance folder a database and a data folder."""
    (instance / "data").mkdir(exist_ok=True)
    environ = clean_environ(instance, SDG_INSTANCE=instance)
    run(ADOPT, environ).check_returncode()


def newer(path: Path) -> None:
    used_before(path.parent)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"no database " * 100), f"can't be used: file is not a database. {ADVICE}"),
        (lambda path: path.mkdir(), f"can't be used: unable to open database file. {ADVICE}"),
        (newer, "The database has schema 9999, which this version of sd-gateway does not know. Start the version that"),
    ],
    ids=["another file", "a folder", "a newer schema"],
)
def test_a_database_that_can_not_be_used(
    command: Sequence[str], folder: Path, make: Callable[[Path], object], said: str
) -> None:
    (folder / "instance" / "data").mkdir()
    make(folder / "instance" / "gateway.db")
    line = refusal(command, folder)
    assert line.startswith("SDG_DATABASE_URL: ")
    assert said in line


def test_the_password_of_a_database_is_not_told(command: Sequence[str], folder: Path) -> None:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    (folder / "instance" / "data").mkdir()
    line = refusal(command, folder, SDG_DATABASE_URL=f"postgresql://me:sec%2Fret@127.0.0.1:{free_port()}/gateway")
    assert line.startswith("SDG_DATABASE_URL: postgresql+psycopg://…@127.0.0.1:")
    assert line.endswith("PostgreSQL must run and be reachable.")
    assert "sec" not in line


def test_a_database_that_can_only_be_read(folder: Path, postgresql: str) -> None:
    # The program runs without root's rights, and may not enter the folder of the socket.
    with contextlib.closing(TcpProxy(Path(postgresql.partition("host=")[2]) / SOCKET)) as proxy:
        read_only = "options=-c%20default_transaction_read_only%3Don"
        url = f"postgresql://gateway@127.0.0.1:{proxy.port}/postgres?{read_only}"
        line = refusal(GUNICORN, folder, obey_file_modes, SDG_DATABASE_URL=url)
    assert line.startswith("SDG_DATABASE_URL: postgresql+psycopg://…@127.0.0.1:")
    assert line.endswith(" can only be read. Name the primary server, not a read replica.")


def test_an_instance_folder_that_can_not_be_written(folder: Path) -> None:
    instance = folder / "instance"
    instance.chmod(0o555)
    line = refusal(GUNICORN, folder, obey_file_modes)
    assert line.startswith(f"SDG_DATA_DIR: {instance}/data")
    assert line.endswith(ADVICE)


def test_a_database_that_can_not_be_written(command: Sequence[str], folder: Path) -> None:
    instance = folder / "instance"
    used_before(instance)
    for path in (*instance.glob("gateway.db"), instance):
        path.chmod(0o555 if path.is_dir() else 0o444)
    line = refusal(command, folder, obey_file_modes)
    assert line.startswith(f"SDG_DATABASE_URL: sqlite:///{instance}/gateway.db")
    assert line.endswith(ADVICE)


def test_a_data_folder_that_can_not_be_written(folder: Path) -> None:
    data = folder / "data"
    data.mkdir(mode=0o555)
    for command in (GUNICORN, WORKER):
        said = refusal(command, folder, obey_file_modes, SDG_DATA_DIR=data)
        assert said == f"SDG_DATA_DIR: {data} can't be written. {ADVICE}"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_that_another_program_listens_at(folder: Path, host: str) -> None:
    with socket.create_server(
        (host.strip("[]"), 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
    ) as other:
        bind = f"{host}:{other.getsockname()[1]}"
        said = refusal(GUNICORN, folder, SDG_BIND=bind)
    assert said.startswith("SDG_BIND: ")
    assert said.endswith(" is in use by another program. Stop that, or choose another address.")


def test_an_address_of_another_machine(folder: Path) -> None:
    said = refusal(GUNICORN, folder, SDG_BIND="192.0.2.1:8000")
    assert said == "SDG_BIND: can't listen at 192.0.2.1:8000: Cannot assign requested address."


def test_a_socket_in_a_folder_that_is_not_there(folder: Path) -> None:
    said = refusal(GUNICORN, folder, SDG_BIND=f"unix:{folder}/run/gateway.sock")
    assert said == f"SDG_BIND: the folder {folder}/run of the socket is missing or can't be written."


def test_the_simulator_on_a_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refusal((COMMAND, "simulate", "--port", str(port)), folder)
    assert said == f"can't listen at 127.0.0.1:{port}: Address already in use. Choose another --port."
