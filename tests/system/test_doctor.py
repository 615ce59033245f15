"""sd-gateway doctor beside a gateway that runs, and on machines that are broken."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import (
    COMMAND,
    Gateway,
    Simulator,
    Stage,
    clean_environ,
    free_port,
    obey_file_modes,
    run,
    until,
)
from tests.system.test_machine import mount, unmount


def faults(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of the report that tell a fault; the exit status says whether there are any."""
    lines = [line for line in ended.stdout.splitlines() if line.startswith("fault ")]
    assert ended.returncode == (1 if lines else 0), ended.stdout + ended.stderr
    assert all(" Do this: " in line for line in lines)
    return lines


def stored(gateway: Gateway) -> dict[str, Any]:
    """The files of a gateway, apart from its lock and its sockets: their bytes and owners."""
    # What SQLite shares between connections in memory.
    memory = f"{gateway.database.name}-shm"
    paths = [path for path in gateway.database.parent.rglob("*") if path.is_file() and path.name != memory]
    return {str(path): (path.stat().st_mode, path.stat().st_uid, path.read_bytes()) for path in paths}


def test_beside_a_gateway(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], ready=False, processes=1, SDG_WORKER="external")
    until(lambda: gateway.readiness() == "degraded", "the gateway answers")
    [fault] = faults(gateway.cli("doctor"))
    assert "worker: the gateway runs, but no worker is alive" in fault
    assert "Do this: Start 'sd-gateway worker'" in fault

    worker = stage.worker(gateway)
    gateway.await_ready()
    record = gateway.succeeded(gateway.post())
    before = simulator.stats()
    ended = gateway.cli("doctor")
    assert faults(ended) == []
    assert "ok      gateway: it answers at 127.0.0.1:" in ended.stdout
    assert "ok      worker: alive on testhost." in ended.stdout
    assert simulator.stats() == before
    assert gateway.images(record)

    # SQLite's log stays as a killed gateway leaves it.
    worker.kill()
    gateway.kill()
    files = stored(gateway)
    assert f"{gateway.database}-wal" in files
    assert faults(gateway.cli("doctor")) == []
    assert stored(gateway) == files


def test_a_webui_that_may_have_two_names(stage: Stage) -> None:
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, 80)
    except OSError:
        pytest.skip("the name of this machine has no address")
    webui = stage.simulator("--host", "0.0.0.0", "--flavour", "nowebui")
    urls = f"a={webui.url},b=http://{name}:{webui.port}"
    gateway = Gateway("never", stage.folder, urls)
    ended = gateway.cli("doctor")
    assert faults(ended) == []
    assert "warning names of WebUIs: a and b are perhaps one WebUI: they have the same address." in ended.stdout


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """An instance folder with a database and a data folder that belong together."""
    folder = tmp_path / "instance"
    (folder / "data").mkdir(parents=True)
    run([COMMAND, "records", "adopt"], clean_environ(tmp_path, SDG_INSTANCE=folder)).check_returncode()
    return folder


def settings(instance: Path, webui: Simulator, **others: Any) -> dict[str, str]:
    fixed = {"SDG_INSTANCE": instance, "SDG_BIND": f"127.0.0.1:{free_port()}", "SDG_WEBUI_URLS": webui.url}
    return clean_environ(instance.parent, **fixed, **others)


def test_folders_and_files_that_can_not_be_written(used: Path, simulator: Simulator) -> None:
    environ = settings(used, simulator)
    for path in (used / "gateway.db", used / "data", used):
        path.chmod(0o555 if path.is_dir() else 0o444)
    instance, database, data = faults(run([COMMAND, "doctor"], environ, before=obey_file_modes))
    assert f"instance folder: {used} can't be written. Do this: Give it to the gateway's user" in instance
    assert "database: " in database
    assert "can't be written. Do this: Let the gateway's user write there" in database
    assert f"data folder: {used}/data can't be written. Do this: Let the gateway's user write there" in data


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system with little room, and one for few files."""
    made = []
    try:
        for name, options in (("small", "size=64m"), ("few", "size=8g,nr_inodes=300")):
            folder = tmp_path / name
            folder.mkdir()
            mount("-t", "tmpfs", "-o", options, "tmpfs", folder)
            made.append(folder)
        yield made[0], made[1]
    finally:
        for folder in made:
            unmount(folder)


def test_disks_that_are_nearly_full(used: Path, simulator: Simulator, disks: tuple[Path, Path]) -> None:
    small, few = disks
    shutil.copytree(used / "data", small / "data")
    shutil.copy(used / "gateway.db", few)
    places = {"SDG_DATA_DIR": small / "data", "SDG_DATABASE_URL": f"sqlite:///{few}/gateway.db"}
    data, database = faults(run([COMMAND, "doctor"], settings(used, simulator, **places)))
    assert "disk: nearly full: " in data
    assert f"MiB are free on the disk of the data folder {small}/data. Do this: Make room" in data
    assert f"files more fit on the disk of the database {few} (inodes). Do this: Make room" in database


def test_postgresql_that_is_empty_only_read_or_has_another_time(
    used: Path, simulator: Simulator, postgresql: str
) -> None:
    psycopg = pytest.importorskip("psycopg")
    shutil.rmtree(used / "data")
    (used / "data").mkdir()
    url = postgresql.replace("/postgres?", "/doctor?")
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("CREATE DATABASE doctor")
    environ = settings(used, simulator, SDG_DATABASE_URL=url)
    empty = run([COMMAND, "doctor"], environ)
    assert faults(empty) == []
    assert "is empty: no gateway has started with it." in empty.stdout
    run([COMMAND, "records", "adopt"], environ).check_returncode()
    assert faults(run([COMMAND, "doctor"], environ)) == []

    replica = f"{url}&options=-c%20default_transaction_read_only%3Don"
    [fault] = faults(run([COMMAND, "doctor"], environ | {"SDG_DATABASE_URL": replica}))
    assert "can only be read. Do this: Name the primary server, not a read replica." in fault

    # Its own clock can't be set here; a function that is found first stands for it.
    with psycopg.connect(url, autocommit=True) as connection:
        body = "SELECT pg_catalog.clock_timestamp() + interval '1 hour'"
        connection.execute(f"CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $${body}$$")
        connection.execute("ALTER ROLE gateway IN DATABASE doctor SET search_path = public, pg_catalog")
    [fault] = faults(run([COMMAND, "doctor"], environ))
    assert "clock: the database's clock is 3600 s ahead of this machine's. Do this: Keep the clocks" in fault
