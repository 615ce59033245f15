"""An instance folder that version 0.1.0 wrote opens with this version and goes on working; it must for good.

``tests/fixtures/make_version_0_1_0.py`` says what is in it and how it was made.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import CHECKOUT, UNFINISHED, Http, Simulator, Stage, free_port, until

ARCHIVE = CHECKOUT / "tests" / "fixtures" / "version_0_1_0.zip"
#: The body of most of its requests.
FIELDS = {
    "id": "u1", "prompt": "a lighthouse", "negative_prompt": "blurry", "width": 64, "height": 64, "seed": "7", "steps": 2,
    "hr_upscaler": "", "cfg_scale": 7.0, "style": "", "batch_size": 1,
}  # fmt: skip
USERS = ("u1", "用户")
#: Whose pictures this version makes again.
AGAIN = "again"


class Opened:
    """The folder, what version 0.1.0 answered about it, and today's gateway over it.

    :param settings: of the gateway, which is not awaited.
    """

    def __init__(self, stage: Stage, simulator: Simulator, **settings: Any) -> None:
        with zipfile.ZipFile(ARCHIVE) as archive:
            archive.extractall(stage.folder)
        self.instance = stage.folder / "instance"
        expected = json.loads((stage.folder / "expected.json").read_text("utf-8"))
        self.answers: dict[str, Any] = expected["answers"]
        self.pictures: dict[str, str] = expected["pictures"]
        self.gateway = stage.gateway(
            f"big={simulator.url}",
            ready=False,
            SDG_INSTANCE=self.instance,
            SDG_DATA_DIR=None,
            SDG_DATABASE_URL=None,
            SDG_HOST_ID=None,
            **settings,
        )
        self.gateway.data, self.gateway.database = self.instance / "data", self.instance / "gateway.db"

    def jobs(self, *statuses: str) -> list[dict[str, Any]]:
        """The jobs that version 0.1.0 showed in these states, as it showed them."""
        return [job for user in USERS for job in self.answers[f"/jobs/{user}"]["jobs"] if job["status"] in statuses]

    def records(self) -> dict[str, dict[str, Any]]:
        """The histories of today, by name."""
        kinds = ("txt2img", "img2img")
        users = (*USERS, AGAIN)
        return {job["name"]: job for user in users for kind in kinds for job in self.gateway.history(user, kind)}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    stage = Stage(tmp_path_factory.mktemp("version-0.1.0"))
    try:
        opened = Opened(stage, stage.simulator())
        opened.gateway.await_ready()
        for job in opened.jobs(*UNFINISHED):
            opened.gateway.finished(job["url"], seconds=60)
        yield opened
    finally:
        stage.clear()


def shows(answer: Any, expected: Any) -> bool:
    """Whether an answer still says everything that it said then; it may say more."""
    if isinstance(expected, dict):
        return isinstance(answer, dict) and all(
            key in answer and shows(answer[key], value) for key, value in expected.items()
        )
    if isinstance(expected, list):
        return len(answer) == len(expected) and all(map(shows, answer, expected))
    return bool(answer == expected)


def test_the_fixture_holds_every_state(opened: Opened) -> None:
    found = {(job["type"], job["status"]) for job in opened.jobs(*UNFINISHED, "succeeded", "failed", "cancelled")}
    assert found == {
        *(("txt2img", status) for status in ("queued", "running", "succeeded", "failed", "cancelled")),
        *(("img2img", status) for status in ("queued", "running", "succeeded", "failed")),
    }


def test_finished_jobs_and_records_are_shown_as_they_were(opened: Opened) -> None:
    records = opened.records()
    for job in opened.jobs("succeeded", "failed", "cancelled"):
        assert shows(opened.gateway.http.get(job["url"]).json(), job)
        if job["status"] == "succeeded":
            assert shows(records[job["name"]], job)
    for user in USERS:
        listed = {job["name"]: job for job in opened.gateway.jobs(user)}
        assert listed.keys() == {job["name"] for job in opened.answers[f"/jobs/{user}"]["jobs"]}


def test_pictures_and_parameters_are_served_as_they_were(opened: Opened) -> None:
    assert opened.pictures
    for url, digest in opened.pictures.items():
        assert hashlib.sha256(opened.gateway.http.get(url).content).hexdigest() == digest, url
    args = [path for path in opened.answers if path.startswith("/get_args/")]
    assert args
    for path in args:
        assert shows(opened.gateway.http.get(path).json(), opened.answers[path]), path


def test_a_record_can_be_made_again_from_its_parameters(opened: Opened) -> None:
    """Settings and styles are the folder's own."""
    [job] = [job for job in opened.jobs("succeeded") if job["args"]["style"] == "Oil"]
    args = opened.gateway.http.get(f"/get_args/u1/txt2img/{job['images'][0]['filename']}").json()
    again = opened.gateway.succeeded(opened.gateway.send("txt2img", args | {"id": AGAIN}))
    assert again["images"][0]["seed"] == job["images"][0]["seed"]
    assert "Oil" in opened.gateway.http.get("/options").json()["styles"]
    refused = opened.gateway.send("txt2img", FIELDS | {"steps": 41})
    assert (refused.status_code, list(refused.json()["errors"])) == (422, ["steps"])


def test_jobs_that_waited_or_ran_succeed(opened: Opened) -> None:
    unfinished = opened.jobs(*UNFINISHED)
    now = {job["name"]: opened.gateway.http.get(job["url"]).json() for job in unfinished}
    [gone] = [job for job in unfinished if job["args"]["model"] == "only-there"]
    ended = now.pop(gone["name"])
    assert (ended["status"], ended["error"]["type"]) == ("failed", "no-longer-available")
    assert {job["status"] for job in now.values()} == {"succeeded"}
    for before in unfinished:
        if before is not gone:
            after = now[before["name"]]
            assert shows(after["args"], before["args"])
            assert len(opened.gateway.images(after)) == before["args"]["batch_size"]
            assert after["webui"]["model"] == before["args"]["model"]


def test_the_log_tells_of_the_migration_and_of_what_dead_workers_held(opened: Opened) -> None:
    lines = opened.gateway.text().splitlines()
    assert len([line for line in lines if "the database was migrated from schema 0001 to " in line]) == 1
    for job in opened.jobs("running"):
        [line] = [line for line in lines if 'event="given back"' in line and job["name"] in line]
        assert line.endswith("attempt=1 slug=worker-lost")
    [failed] = [line for line in lines if "event=failed" in line]
    assert failed.endswith("slug=no-longer-available")


def test_a_repeated_key_is_answered_with_its_job(opened: Opened) -> None:
    [record] = [job for job in opened.jobs("succeeded") if job["args"]["style"] == "Oil"]
    [waiting] = [job for job in opened.jobs("queued") if job["args"]["style"] == "Oil"]
    for key, job, changes in (
        ("key-of-a-record", record, {"batch_size": 2}),
        ("key-of-a-waiting-job", waiting, {"seed": "24", "prompt": "waiting"}),
    ):
        answer = opened.gateway.send("txt2img", FIELDS | {"style": "Oil"} | changes, key=key)
        assert (answer.status_code, answer.json()["name"]) == (200, job["name"])
        refused = opened.gateway.send("txt2img", FIELDS, key=key)
        assert refused.json()["type"] == "idempotency-key-reused"


def test_deletions_that_were_cut_short_are_finished(opened: Opened) -> None:
    shown = {*opened.pictures}
    with zipfile.ZipFile(ARCHIVE) as archive:
        pictures = {Path(name).name for name in archive.namelist() if name.endswith(".png")}
    hidden = {name for name in pictures if not any(url.endswith(name) for url in shown)}
    # Two of a deleted record with its reference image, one of a record that keeps the other, and one of a lost attempt.
    assert len(hidden) == 5
    until(lambda: len(hidden & opened.gateway.files()) <= 1, "the files of deleted records are gone")


def test_what_is_not_configured_any_more_is_forgotten(opened: Opened) -> None:
    assert "only-there" not in opened.gateway.http.get("/options").json()["models"]

    def states() -> dict[str, str]:
        with closing(sqlite3.connect(f"file:{opened.gateway.database}?mode=ro", uri=True)) as connection:
            return dict(connection.execute("SELECT key, state FROM slots"))

    until(lambda: "other" not in states(), "the clean slot of another WebUI is dropped")
    assert states()["big"] == "clean"


def test_records_can_be_deleted_verified_swept_and_indexed_anew(opened: Opened) -> None:
    gateway = opened.gateway
    for job in opened.jobs("succeeded"):
        if job["args"]["seed"] in ("8", "9"):
            names = {image["filename"] for image in [*job["images"], *filter(None, [job["init_image"]])]}
            assert names <= gateway.files()
            assert gateway.http.delete(f"/delete/u1/{job['type']}/{job['name']}").status_code == 200
            assert not {name for name in gateway.files() if job["name"] in name}
    # Its database and data folder got an id when they were opened.
    assert (gateway.data / ".sd-gateway-id").is_file()
    records = opened.records()
    verified = gateway.cli("records", "verify")
    assert (verified.returncode, verified.stdout) == (0, f"{len(records)} records looked at, 0 problems\n")
    # The attempt that was being stored when its worker died had left a file.
    [lost] = [job["name"] for job in opened.jobs("running") if job["type"] == "img2img"]
    assert f"{lost}-1-0.png" in gateway.files()
    assert gateway.cli("records", "sweep").returncode == 0
    assert f"{lost}-1-0.png" not in gateway.files()
    assert gateway.cli("records", "verify").returncode == 0

    assert gateway.stop() == 0
    for path in opened.instance.glob("gateway.db*"):
        path.unlink()
    assert gateway.cli("records", "adopt").returncode == 0
    indexed = gateway.cli("records", "reindex")
    assert (indexed.returncode, indexed.stdout) == (0, f"{len(records)} records added, 0 not readable\n")
    gateway.restart()
    assert opened.records() == records


class TestWithoutASetting:
    """Version 0.1.0 knew no tokens, so nobody has set ``SDG_AUTH``."""

    def shows_everything(self, opened: Opened, headers: dict[str, str]) -> None:
        """The gateway shows a client with these headers what version 0.1.0 showed, and takes new requests."""
        http = opened.gateway.http
        [job] = [job for job in opened.jobs("succeeded") if job["args"]["style"] == "Oil"]
        assert shows(http.get(job["url"], headers=headers).json(), job)
        url = job["images"][0]["url"]
        assert hashlib.sha256(http.get(url, headers=headers).content).hexdigest() == opened.pictures[url]
        made = http.request("POST", "/txt2img", json=FIELDS, headers=headers)
        assert (made.status_code, made.json()["status"]) == (200, "succeeded")

    def test_programs_on_this_machine_are_served_as_before(self, stage: Stage, simulator: Simulator) -> None:
        opened = Opened(stage, simulator, SDG_AUTH=None)
        opened.gateway.await_ready()
        self.shows_everything(opened, {})

    def test_where_others_reach_it_it_waits_for_the_first_token(self, stage: Stage, simulator: Simulator) -> None:
        port = free_port()
        opened = Opened(stage, simulator, SDG_AUTH=None, SDG_BIND=f"0.0.0.0:{port}")
        gateway = opened.gateway
        assert gateway.wait() == 1
        [line] = [line for line in gateway.text().splitlines() if "[INFO]" not in line]
        assert f"other machines can reach 0.0.0.0:{port}" in line
        assert "sd-gateway tokens create" in line

        made = gateway.cli("tokens", "create", "--name", "app")
        assert made.returncode == 0, made.stderr
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        gateway.http = Http(f"http://127.0.0.1:{port}")
        gateway.restart()
        assert gateway.http.get("/jobs/u1").status_code == 401
        self.shows_everything(opened, headers)
