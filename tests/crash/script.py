"""The client of the crash run: its requests, one a chapter, and the journal in which it writes down the answers.

The client dies with the gateway, for both live in one process; its journal is what a client elsewhere would still know.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import text

from app.jobs.errors import JobNotFound, KeyOfDeletedJob
from app.services import Services
from tests.inprocess import DEADLINE, FIELDS, USER, png_base64, settled, until


@dataclass(frozen=True)
class Post:
    """A request for pictures, with the label as its Idempotency-Key."""

    label: str
    kind: str
    fields: dict[str, Any]
    ends: str = "succeeded"

    def send(self, services: Services, _journal: Journal) -> dict[str, Any]:
        body = FIELDS | ({"init_images": png_base64()} if self.kind == "img2img" else {}) | self.fields
        fingerprint = json.dumps(body, sort_keys=True)
        job = settled(
            services.acceptance.post(
                self.kind, body, fingerprint=fingerprint, idempotency_key=self.label, wait=DEADLINE
            )
        )
        return {"ends": job["status"], "name": job["name"], "images": job["images"], "error": job["error"]}


@dataclass(frozen=True)
class Delete:
    """The deletion of a whole record, or of one of its images."""

    label: str
    of: Post
    image: int | None = None
    ends: str = "deleted"

    def send(self, services: Services, journal: Journal) -> dict[str, Any]:
        job = journal.answers[self.of.label]
        filename = job["name"] if self.image is None else job["images"][self.image]["filename"]
        try:
            services.archive.delete(USER, self.of.kind, filename)
        except JobNotFound:
            # Whether a deletion that was not answered was committed, only its repetition tells.
            if journal.in_doubt != self.label:
                raise
        return {"ends": "deleted"}


@dataclass(frozen=True)
class Stop:
    """A request whose job is cancelled, or deleted, while its WebUI is at it.

    After a crash it may be finished by then: that it has ended is all that is promised.
    """

    label: str
    kind: str
    deleted: bool = False
    ends: str = "ended"

    def send(self, services: Services, _journal: Journal) -> dict[str, Any]:
        simulator = f"{services.config.webuis[0].url}/simulator"
        requests.post(f"{simulator}/faults", json={"kind": "hang", "seconds": 3}, timeout=10).raise_for_status()
        before = requests.get(f"{simulator}/stats", timeout=10).json()["generations"]
        body = FIELDS | ({"init_images": png_base64()} if self.kind == "img2img" else {})
        try:
            job = services.acceptance.post(self.kind, body, fingerprint=self.label, idempotency_key=self.label, wait=0)
            until(
                lambda: (
                    requests.get(f"{simulator}/stats", timeout=10).json()["generations"] > before
                    or ended(services, job)
                )
            )
            self._stop(services, job)
            until(lambda: ended(services, job))
        except (JobNotFound, KeyOfDeletedJob):
            # It was deleted before the crash.
            if not self.deleted:
                raise
        requests.delete(f"{simulator}/faults", timeout=10)
        return {"ends": "ended"}

    def _stop(self, services: Services, job: dict[str, Any]) -> None:
        if self.deleted:
            services.archive.delete(USER, self.kind, job["name"])
        else:
            services.archive.cancel(USER, self.kind, job["name"])


def ended(services: Services, job: dict[str, Any]) -> bool:
    """Whether a job has ended, and no claim of it is left."""
    with services.database.read() as connection:
        found = connection.execute(text("SELECT status, owner FROM jobs WHERE name = :name"), job).one()
    return found.owner is None and found.status not in ("queued", "running")


BATCH = Post("batch", "txt2img", {"seed": "11", "batch_size": 2})
UPSCALED = Post("upscaled", "img2img", {"seed": "21", "hr_upscaler": "Lanczos", "batch_size": 2})
#: Far more than the simulator's memory takes, so that it fails each time, and after all attempts for good.
FAILING = Post("failing", "txt2img", {"width": 16384, "height": 8192}, ends="failed")
GONE = Post("gone", "img2img", {"seed": "31"})
SINGLE = Post("single", "txt2img", {"seed": "41"})
SCRIPT: tuple[Post | Delete | Stop, ...] = (
    BATCH,
    UPSCALED,
    FAILING,
    GONE,
    Delete("delete an image", BATCH, image=0),
    Delete("delete a record", GONE),
    SINGLE,
    Delete("delete the last image", SINGLE, image=0),
    Stop("cancel while it runs", "img2img"),
    Stop("delete while it runs", "img2img", deleted=True),
)


@dataclass
class Journal:
    """The request under way and the answers so far, kept in a file of which each line is written at once."""

    path: Path
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The request that was sent and not answered when the process died.
    in_doubt: str | None = None

    @classmethod
    def read(cls, path: Path) -> Journal:
        journal = cls(path)
        for line in path.read_text("utf-8").splitlines() if path.exists() else []:
            entry = json.loads(line)
            journal.in_doubt = entry["label"] if "answer" not in entry else None
            if "answer" in entry:
                journal.answers[entry["label"]] = entry["answer"]
        return journal

    def note(self, label: str, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"label": label} | entry) + "\n")


def play(services: Services, journal: Journal, chapters: int) -> list[str]:
    """Ask for what was not answered yet of the first chapters; what was wrong with the answers."""
    problems = []
    for request in SCRIPT[:chapters]:
        if request.label in journal.answers:
            continue
        journal.note(request.label)
        answer = request.send(services, journal)
        journal.answers[request.label] = answer
        journal.note(request.label, answer=answer)
        if answer["ends"] != request.ends:
            problems.append(f"{request.label}: {answer}")
    return problems


def posts(chapters: int) -> list[Post]:
    """The requests for pictures among the first chapters."""
    return [request for request in SCRIPT[:chapters] if isinstance(request, Post)]


def keys(chapters: int) -> int:
    """How many idempotency keys the first chapters use, and so how many jobs they make."""
    return sum(isinstance(step, Post | Stop) for step in SCRIPT[:chapters])


def outcome(services: Services, chapters: int) -> dict[str, Any]:
    """The final result of each request as the client sees it, without names and times, which differ between two runs."""
    return {post.label: _seen(services, post) for post in posts(chapters)}


def _seen(services: Services, post: Post) -> dict[str, Any]:
    try:
        job = post.send(services, Journal(Path()))
    except KeyOfDeletedJob as error:
        return {"ends": error.slug}
    if job["ends"] != "succeeded":
        return {"ends": job["ends"], "error": job["error"]["slug"]}
    args = services.archive.args(USER, post.kind, job["name"])
    shown = ("seed", "width", "height", "bytes", "infotext")
    return {
        "ends": job["ends"],
        "args": hashlib.sha256(json.dumps(args, sort_keys=True).encode()).hexdigest(),
        "images": [
            {name: image[name] for name in shown} | {"sha256": _sha256(services, post.kind, image["filename"])}
            for image in job["images"]
        ],
    }


def _sha256(services: Services, kind: str, filename: str) -> str:
    return hashlib.sha256(services.archive.file(USER, kind, filename).path.read_bytes()).hexdigest()
