"""Twenty thousand jobs made and deleted through the API: neither the database nor the data folder keeps anything of them."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from sqlalchemy import create_engine, text

from app import EXTENSION, create_app
from app.config import load
from app.jobs.model import Failure, Success
from app.services import Services
from app.webui.catalogue import Catalogue
from app.webui.models import read_models
from tests.inprocess import FIELDS, make_clean, png_bytes
from tests.jobs.conftest import EVERYTHING

#: A file system in memory (tmpfs), on Linux.
MEMORY = Path("/dev/shm")
#: Of each round; so many of each user.
JOBS, PER_USER = 20_000, 100
#: Every so many jobs one has a picture: what a picture costs is the same for each.
PICTURED = 10
#: Every so many jobs one is kept, between those that go.
KEPT = 100
CATALOGUE = Catalogue(
    samplers=("Euler",),
    upscalers=("None",),
    latent_modes=(),
    models=read_models([{"title": "a.safetensors [12]", "model_name": "a"}]),
    loaded_model="a",
)


class Round:
    """A gateway in this process, whose worker is the test."""

    def __init__(self, folder: Path, database_url: str) -> None:
        environ = {
            "SDG_DATA_DIR": str(folder / "data"),
            "SDG_DATABASE_URL": database_url,
            "SDG_HOST_ID": "testhost",
            "SDG_WEBUI_URLS": "gpu0=http://127.0.0.1:9",
            "SDG_MAX_QUEUE_PER_USER": "1000",
        }
        app = create_app(load(environ, folder))
        self.client: FlaskClient = app.test_client()
        self.services: Services = app.extensions[EXTENSION]
        self.data = folder / "data"
        self._png = png_bytes((8, 8))
        self.services.slots.register("testhost/t", "testhost", ["gpu0"], only=True)
        make_clean(self.services.slots, "gpu0")
        self.services.tables.catalogues.put("gpu0", CATALOGUE.to_json())
        self.services.offering.keep_default_model()

    def make(self, user: str, number: int) -> str:
        """Post a job and be its worker; the path to delete it by."""
        body = FIELDS | {"id": user, "prompt": f"a lighthouse {number} " * 20}
        headers = {"Prefer": "respond-async", "Idempotency-Key": f"{number}"}
        posted = self.client.post("/txt2img", json=body, headers=headers)
        assert posted.status_code == 202, posted.text
        self._work(pictured=number % PICTURED == 0)
        return f"/delete/{user}/txt2img/{posted.json['name']}"

    def _work(self, *, pictured: bool) -> None:
        table = self.services.table
        claim = table.claim("gpu0", "testhost/t", "task", EVERYTHING, expected=True)
        assert claim is not None
        table.answered(claim, 1.0, None, EVERYTHING)
        job = claim.job
        if not pictured:
            assert table.fail(claim, Failure("webui-error", "The WebUI failed.")) == "failed"
            return
        [image, _] = self.services.records.save(
            job.user_id, job.type, job.name, 1, [(f"{job.name}-1-0.png", self._png)], {"format": 1}
        )
        view = {
            "filename": image,
            "seed": "7",
            "width": 8,
            "height": 8,
            "bytes": len(self._png),
            "media_type": "image/png",
        }
        assert (
            table.succeed(
                claim, Success(job.created_at + 1, job.args, [view | {"infotext": "i" * 400}], {}, simulated=True)
            )
            == "succeeded"
        )

    def make_and_delete(self, label: str, jobs: int) -> None:
        """Make jobs of many users and delete them, but for a few; then a day passes, and the upkeep runs."""
        for first in range(0, jobs, PER_USER):
            user = f"{label}{first // PER_USER}"
            paths = [self.make(user, first + number) for number in range(PER_USER)]
            for number, path in enumerate(paths):
                if number % KEPT:
                    assert self.client.delete(path).status_code == 200
        with self.services.database.write() as connection:
            connection.execute(text("UPDATE idempotency SET expires_at = expires_at - 90000"))
            connection.execute(text("UPDATE jobs SET finished_at = finished_at - 90000000 WHERE status = 'deleted'"))
        self.services.upkeep.run()

    def forget_kept(self) -> None:
        """Delete what was kept."""
        with self.services.database.read() as connection:
            kept = connection.execute(text("SELECT user_id, name FROM jobs WHERE status <> 'deleted'")).all()
        for user, name in kept:
            assert self.client.delete(f"/delete/{user}/txt2img/{name}").status_code == 200

    def counts(self) -> list[int]:
        """The rows of the tables that grow with jobs."""
        tables = ("jobs", "users", "idempotency", "refusals")
        with self.services.database.read() as connection:
            return [connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables]

    def users_on_disk(self) -> int:
        return len([path for path in self.data.iterdir() if path.is_dir()])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: sizes are the same there, and a hundred thousand flushes take no time."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[[str], Round]]:
    with contextlib.ExitStack() as stack:

        def open_round(database_url: str) -> Round:
            opened = Round(folder, database_url)
            stack.callback(opened.services.drain)
            return opened

        yield open_round


def on_sqlite(folder: Path, opened: Callable[[str], Round], jobs: int) -> None:
    database = folder / "gateway.db"
    round_ = opened(f"sqlite:///{database}")
    round_.make_and_delete("user", jobs)
    kept = jobs // KEPT
    assert round_.counts() == [kept, 0, 0, 0]
    assert round_.users_on_disk() == len(list(round_.data.rglob("*.json"))) == kept
    fresh = folder / "fresh.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute(f"VACUUM INTO '{fresh}'")
    size = sum(path.stat().st_size for path in (database, folder / "gateway.db-wal"))
    assert size <= 1.2 * fresh.stat().st_size
    round_.forget_kept()
    assert round_.users_on_disk() == 0


def on_postgresql(opened: Callable[[str], Round], url: str, jobs: int) -> None:
    round_ = opened(url)
    sizes = []
    for label in ("first", "second"):
        round_.make_and_delete(label, jobs)
        with round_.services.database.read() as connection:
            sizes.append(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
    assert round_.counts() == [2 * jobs // KEPT, 0, 0, 0]
    assert sizes[1] <= 1.2 * sizes[0]
    round_.forget_kept()
    assert round_.users_on_disk() == 0


@pytest.fixture
def database_of_its_own(postgresql: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    admin = create_engine(postgresql.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE many"))
        # Sizes are the same without waiting for the disk at each of a hundred thousand commits.
        connection.execute(text("ALTER DATABASE many SET synchronous_commit = off"))
    yield postgresql.replace("/postgres?", "/many?")
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE many WITH (FORCE)"))
    admin.dispose()


def test_a_few_hundred_deleted_jobs_leave_nothing(folder: Path, opened: Callable[[str], Round]) -> None:
    on_sqlite(folder, opened, 300)


@pytest.mark.soak
@pytest.mark.timeout(1800)
class TestTwentyThousandJobs:
    def test_sqlites_file_is_as_small_as_a_fresh_one(self, folder: Path, opened: Callable[[str], Round]) -> None:
        on_sqlite(folder, opened, JOBS)

    def test_postgresql_uses_the_room_again(self, opened: Callable[[str], Round], database_of_its_own: str) -> None:
        on_postgresql(opened, database_of_its_own, JOBS)
