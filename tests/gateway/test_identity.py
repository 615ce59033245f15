"""Database and data folder carry one id: what the commands do with pairs that belong together, and with those that don't."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from app import cli
from app.config import load
from tests.inprocess import Gateway, hurry, simulator

COMMANDS = ("sweep", "verify", "reindex")
LONG_AGO = 1_000_000_000
RECORD_COUNT = 3
#: What is said about each database with each data folder, where they don't belong together.
SAID = {
    ("empty", "right"): "run 'sd-gateway records adopt', then 'sd-gateway records reindex'.",
    ("empty", "empty"): "or start the gateway once",
    ("empty", "foreign"): "run 'sd-gateway records adopt', then 'sd-gateway records reindex'.",
    ("wrong", "right"): "their ids differ. Correct SDG_DATA_DIR or SDG_DATABASE_URL.",
    ("wrong", "empty"): "the data folder has none (no file .sd-gateway-id). Mount its disk",
    ("wrong", "foreign"): "their ids differ. Correct SDG_DATA_DIR or SDG_DATABASE_URL.",
    ("older", "empty"): "the data folder has none (no file .sd-gateway-id). Mount its disk",
    ("older", "foreign"): "their ids differ. Correct SDG_DATA_DIR or SDG_DATABASE_URL.",
    ("missing", "right"): "run 'sd-gateway records adopt', then 'sd-gateway records reindex'.",
    ("missing", "empty"): "There is no such database. Correct SDG_DATABASE_URL",
    ("missing", "foreign"): "run 'sd-gateway records adopt', then 'sd-gateway records reindex'.",
    **{
        (database, "missing"): "There is no such data folder. Mount its disk, or correct SDG_DATA_DIR."
        for database in ("empty", "wrong", "older", "missing")
    },
}


@dataclass(frozen=True)
class Stock:
    """Folders with a database each, to be copied: one gateway's, the database of an earlier day, and two other gateways'."""

    folder: Path
    history: dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """A database and a data folder, and the command with them."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def database(self) -> Path:
        return self.folder / "gateway.db"

    def run(self, *arguments: str, **settings: str) -> Result:
        environ = {
            "SDG_DATA_DIR": str(self.data),
            "SDG_DATABASE_URL": f"sqlite:///{self.database}",
            "SDG_INSTANCE": str(self.folder),
        }
        return CliRunner().invoke(cli.main, ["records", *arguments], env=environ | settings, catch_exceptions=False)

    def files(self) -> dict[str, bytes]:
        """Everything in the data folder."""
        return {str(path.relative_to(self.data)): path.read_bytes() for path in self.data.rglob("*") if path.is_file()}

    def rows(self) -> list[Any] | None:
        """The jobs and notes in the database; None where it is missing."""
        if not self.database.exists():
            return None
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("jobs", "notes")]


def back_up(gateway: Gateway, target: Path) -> None:
    """Copy the database as a backup does."""
    with (
        contextlib.closing(sqlite3.connect(gateway.services.database.url.database)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


def history(gateway: Gateway) -> dict[str, Any]:
    return {kind: gateway.services.archive.history("u1", kind, 9, None) for kind in ("txt2img", "img2img")}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Stock]:
    folder = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch, simulator() as server:
        hurry(patch)
        for name in ("right", "wrong", "foreign"):
            (folder / name).mkdir()
            with Gateway(folder / name, migrated_sqlite, [server.url]) as gateway:
                gateway.start().post(batch_size=2)
                if name == "right":
                    back_up(gateway, folder / "older.db")
                    gateway.post("img2img")
                    gateway.post(prompt="later")
                    shown = history(gateway)
        shutil.copy(migrated_sqlite, folder / "empty.db")
        for path in folder.rglob("*"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        yield Stock(folder, shown)


@pytest.fixture
def pair_of(stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Pair]:
    """A copy of a database and of a data folder by their names in the stock."""
    for name in [name for name in os.environ if name.startswith("SDG_")]:
        monkeypatch.delenv(name)

    def make(database: str, data: str) -> Pair:
        sources = {
            "right": stock.folder / "right" / "gateway.db",
            "wrong": stock.folder / "wrong" / "gateway.db",
            "older": stock.folder / "older.db",
            "empty": stock.folder / "empty.db",
        }
        if database != "missing":
            shutil.copy(sources[database], tmp_path / "gateway.db")
        if data == "empty":
            (tmp_path / "data").mkdir()
        elif data != "missing":
            shutil.copytree(stock.folder / data / "data", tmp_path / "data")
        return Pair(tmp_path)

    return make


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("database", "data"), SAID)
def test_what_does_not_belong_together_is_refused_and_left_alone(
    pair_of: Callable[[str, str], Pair], database: str, data: str, command: str
) -> None:
    pair = pair_of(database, data)
    files, rows = pair.files(), pair.rows()
    result = pair.run(command)
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"Error: database sqlite:///{pair.database}, data folder {pair.data}: ")
    assert SAID[database, data] in line
    assert (pair.files(), pair.rows()) == (files, rows)
    assert (pair.data.exists(), pair.database.exists()) == (data != "missing", database != "missing")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_right_pair_is_worked_on_and_named(pair_of: Callable[[str, str], Pair], command: str) -> None:
    pair = pair_of("right", "right")
    files = pair.files()
    result = pair.run(command)
    assert result.exit_code == 0
    assert result.stderr == f"database sqlite:///{pair.database}, data folder {pair.data}\n"
    assert pair.files() == files


def test_an_older_database_gets_the_missing_records_back(
    pair_of: Callable[[str, str], Pair], stock: Stock, migrated_sqlite: Path
) -> None:
    pair = pair_of("older", "right")
    files = pair.files()
    swept = pair.run("sweep")
    assert (swept.exit_code, swept.stdout) == (1, "0 stray files removed\n")
    assert "2 records have no row in the database." in swept.stderr
    assert "sd-gateway records reindex" in swept.stderr
    assert pair.run("reindex", "--dry-run").stdout == "2 records would be added, 0 not readable\n"
    indexed = pair.run("reindex")
    assert (indexed.exit_code, indexed.stdout) == (0, "2 records added, 0 not readable\n")
    for command in COMMANDS:
        assert pair.run(command).exit_code == 0
    assert pair.files() == files
    with Gateway(pair.folder, migrated_sqlite, ["http://127.0.0.1:9"]) as gateway:
        assert history(gateway) == stock.history


@pytest.mark.parametrize("database", ["missing", "empty"])
def test_the_data_folder_alone_brings_everything_back(
    pair_of: Callable[[str, str], Pair], stock: Stock, migrated_sqlite: Path, database: str
) -> None:
    pair = pair_of(database, "right")
    files, rows = pair.files(), pair.rows()
    planned = pair.run("adopt", "--dry-run")
    assert planned.exit_code == 0
    assert "would carry the id" in planned.stdout
    assert (pair.files(), pair.rows()) == (files, rows)

    assert pair.run("adopt").exit_code == 0
    # Readable records are never swept away because their rows are missing.
    assert pair.run("sweep").exit_code == 1
    indexed = pair.run("reindex")
    assert (indexed.exit_code, indexed.stdout) == (0, f"{RECORD_COUNT} records added, 0 not readable\n")
    verified = pair.run("verify")
    assert (verified.exit_code, verified.stdout) == (0, f"{RECORD_COUNT} records looked at, 0 problems\n")
    assert pair.run("sweep").stdout == "0 stray files removed\n"
    assert pair.files() == files
    with Gateway(pair.folder, migrated_sqlite, ["http://127.0.0.1:9"]) as gateway:
        shown = history(gateway)
    assert shown == stock.history


def test_a_folder_of_before_there_were_ids_comes_back_too(pair_of: Callable[[str, str], Pair]) -> None:
    pair = pair_of("missing", "right")
    (pair.data / ".sd-gateway-id").unlink()
    assert pair.run("adopt").exit_code == 0
    assert pair.run("reindex").stdout == f"{RECORD_COUNT} records added, 0 not readable\n"
    assert pair.run("verify").exit_code == 0


def test_a_folder_that_lost_its_id_gets_that_of_its_database(pair_of: Callable[[str, str], Pair]) -> None:
    pair = pair_of("right", "right")
    file = pair.data / ".sd-gateway-id"
    was = file.read_text()
    file.unlink()
    refused = pair.run("verify")
    assert refused.exit_code == 1
    assert "run 'sd-gateway records adopt'" in refused.stderr
    assert pair.run("adopt").exit_code == 0
    assert file.read_text() == was
    assert pair.run("verify").exit_code == 0


@pytest.mark.parametrize(
    ("database", "data", "said"),
    [
        ("wrong", "right", "their ids differ"),
        ("right", "empty", "the data folder is empty. Mount its disk"),
        ("right", "missing", "There is no such data folder"),
        ("missing", "missing", "There is no such data folder"),
    ],
)
def test_adopt_takes_nothing_away_from_another_partner(
    pair_of: Callable[[str, str], Pair], database: str, data: str, said: str
) -> None:
    pair = pair_of(database, data)
    files, rows = pair.files(), pair.rows()
    for arguments in (["adopt", "--dry-run"], ["adopt"]):
        result = pair.run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert said in result.stderr
    assert (pair.files(), pair.rows()) == (files, rows)
    assert (pair.data.exists(), pair.database.exists()) == (data != "missing", database != "missing")


def test_adopt_takes_a_database_in_which_no_job_ever_was(
    pair_of: Callable[[str, str], Pair], migrated_sqlite: Path, tmp_path: Path
) -> None:
    pair = pair_of("missing", "right")
    aside = tmp_path / "aside"
    pair.data.rename(aside)
    with Gateway(pair.folder, migrated_sqlite, ["http://127.0.0.1:9"]):
        pass
    shutil.rmtree(pair.data)
    aside.rename(pair.data)
    assert pair.run("verify").exit_code == 1
    assert pair.run("adopt").exit_code == 0
    assert pair.run("verify").exit_code == 0


def test_a_database_of_an_earlier_version_is_not_migrated_by_a_command(pair_of: Callable[[str, str], Pair]) -> None:
    pair = pair_of("right", "right")
    with contextlib.closing(sqlite3.connect(pair.database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.commit()
    for command in COMMANDS:
        result = pair.run(command)
        assert result.exit_code == 1
        assert "Start the gateway once: it migrates the database." in result.stderr


def test_the_data_folder_alone_fills_an_empty_postgresql(
    pair_of: Callable[[str, str], Pair], postgresql: str, tmp_path: Path
) -> None:
    server = create_engine(load({"SDG_DATABASE_URL": postgresql}, tmp_path).database_url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text("CREATE DATABASE restored"))
    server.dispose()
    pair = pair_of("missing", "right")
    url = postgresql.replace("/postgres?", "/restored?")
    for command in COMMANDS:
        refused = pair.run(command, SDG_DATABASE_URL=url)
        assert refused.exit_code == 1
        assert SAID["missing", "right"] in refused.stderr
    assert pair.run("adopt", "--dry-run", SDG_DATABASE_URL=url).exit_code == 0
    assert pair.run("verify", SDG_DATABASE_URL=url).exit_code == 1
    assert pair.run("adopt", SDG_DATABASE_URL=url).exit_code == 0
    said = [pair.run(command, SDG_DATABASE_URL=url).stdout for command in ("reindex", "verify", "sweep")]
    assert said == ["3 records added, 0 not readable\n", "3 records looked at, 0 problems\n", "0 stray files removed\n"]
    (pair.data / ".sd-gateway-id").write_text("0" * 32)
    refused = pair.run("verify", SDG_DATABASE_URL=url)
    assert (refused.exit_code, "their ids differ" in refused.stderr) == (1, True)


def test_passwords_are_not_told(pair_of: Callable[[str, str], Pair]) -> None:
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    pair = pair_of("missing", "right")
    url = "postgresql://me:secret@127.0.0.1:9/gateway?user=me&password=secret&sslpassword=secret&connect_timeout=2"
    result = pair.run("verify", SDG_DATABASE_URL=url)
    assert result.exit_code == 1
    assert "127.0.0.1:9/gateway" in result.stderr
    assert "secret" not in result.stderr
