"""A gateway starts and runs only with a database and a data folder that belong together."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.harness import COMMAND, Gateway, Simulator, Stage, run, until

ID_FILE = ".sd-gateway-id"


@pytest.fixture
def used(stage: Stage, simulator: Simulator) -> Gateway:
    """A gateway that has made a picture and was stopped."""
    gateway = stage.gateway([simulator], processes=1)
    gateway.succeeded(gateway.post())
    assert gateway.stop() == 0
    return gateway


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusals(gateway: Gateway) -> list[str]:
    """The one line with which gunicorn, and an external worker, refuse to start."""
    lines = []
    for command, settings in ((gateway.command, {}), ([COMMAND, "worker"], {"SDG_WORKER": "external"})):
        ended = run(command, gateway.environ | settings)
        assert ended.returncode == 1, ended.stderr
        [line] = [line for line in ended.stderr.splitlines() if "[INFO] Starting gunicorn" not in line]
        lines.append(line.removeprefix("sd-gateway: ").removeprefix("Error: "))
    return lines


def refused(gateway: Gateway, said: str) -> None:
    """Neither starts; both say the same, and nothing is changed or made."""
    before = tree(gateway.database.parent)
    one, other = refusals(gateway)
    assert one == other
    assert one.startswith(f"database sqlite:///{gateway.database}, data folder {gateway.data}: ")
    assert said in one
    assert tree(gateway.database.parent) == before


def test_a_data_folder_whose_disk_is_not_mounted(used: Gateway) -> None:
    used.data.rename(used.data.with_name("elsewhere"))
    refused(used, "the data folder has none (no file .sd-gateway-id). Mount its disk")
    assert not used.data.exists()
    used.data.mkdir()
    refused(used, "the data folder has none (no file .sd-gateway-id). Mount its disk")


def test_a_database_of_before_there_were_ids_and_an_empty_data_folder(used: Gateway) -> None:
    with closing(sqlite3.connect(used.database)) as connection:
        connection.execute("DELETE FROM notes WHERE key = 'data_folder_id'")
        connection.commit()
    refused(used, "To use it with this folder, run 'sd-gateway records adopt', then 'sd-gateway records reindex'.")
    shutil.rmtree(used.data)
    refused(used, "the data folder is empty. Mount its disk")
    assert not used.data.exists()


def test_a_database_that_was_lost(used: Gateway) -> None:
    for path in used.database.parent.glob("gateway.db*"):
        path.unlink()
    refused(used, "it is missing, new, or a backup from before there were ids.")
    assert not used.database.exists()


def test_the_database_of_another_gateway(used: Gateway, stage: Stage, simulator: Simulator) -> None:
    other = stage.gateway([simulator], processes=1)
    assert other.stop() == 0
    shutil.copy(other.database, used.database)
    refused(used, "The database belongs to another data folder: their ids differ.")


def test_a_disk_that_is_unmounted_under_a_running_gateway(stage: Stage, simulator: Simulator) -> None:
    gateway = stage.gateway([simulator], processes=1)
    record = gateway.succeeded(gateway.post())
    away = gateway.data.with_name("away")
    gateway.data.rename(away)
    gateway.data.mkdir()

    answer = gateway.http.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "storage-unavailable")
    for user in ("user", "somebody-new"):
        failed = gateway.post(id=user)
        assert (failed.status_code, failed.json()["type"]) == (503, "storage-unavailable")
    # The empty mount point is not filled.
    assert tree(gateway.data) == {}
    (gateway.data / ID_FILE).write_text("0" * 32)
    answer = gateway.http.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "storage-unavailable")
    assert gateway.post().status_code == 503

    shutil.rmtree(gateway.data)
    away.rename(gateway.data)
    until(lambda: gateway.readiness() == "ok", "the gateway is ready again")
    assert gateway.images(record)
    gateway.succeeded(gateway.post(id="somebody-new"))


def test_backup_and_restore_as_the_documentation_says(used: Gateway, tmp_path: Path) -> None:
    """The data folder was copied at night; afterwards more was made, and then everything was lost."""
    gateway = used
    backup = tmp_path / "backup"
    shutil.copytree(gateway.data, backup)
    gateway.restart()
    kept = gateway.history()
    gateway.succeeded(gateway.post(seed="43"))
    assert gateway.http.delete(f"/delete/user/txt2img/{kept[0]['name']}").status_code == 200
    assert gateway.stop() == 0
    for path in gateway.database.parent.glob("gateway.db*"):
        path.unlink()
    shutil.rmtree(gateway.data)

    shutil.copytree(backup, gateway.data)
    for command, said in (
        ("adopt", "database and data folder now carry the id"),
        ("reindex", "1 records added, 0 not readable"),
        ("verify", "1 records looked at, 0 problems"),
        ("sweep", "0 stray files removed"),
    ):
        done = gateway.cli("records", command)
        assert (done.returncode, said in done.stdout) == (0, True), done
    gateway.restart()
    # What was made after the copy is lost, and what was deleted after it is back.
    assert gateway.history() == kept
    assert gateway.images(kept[0])
    gateway.succeeded(gateway.post(seed="44"))
