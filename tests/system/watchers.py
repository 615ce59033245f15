"""Watchers of event streams that live through anything: clients by the rules of EventSource, and what they must have been told.

The rules (https://html.spec.whatwg.org/multipage/server-sent-events.html): a connection that breaks or ends is opened again after
the time that ``retry`` says, with the id of the last whole event; 204 ends it for good, and so does every other answer but 200.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from tests.system.sse import EventClient, Told

#: Before a stream has said another time, milliseconds; as browsers have it.
_RETRY = 3000
#: After how many events a restless watcher drops its connection; None: not by itself.
_DROPS = (None, 0, 1, 3, 8)
_FINAL = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Ended:
    """A job as it stands in the database when everything is over; ``deleted`` is a status too."""

    name: str
    user: str
    status: str
    rev: int

    @property
    def last_word(self) -> str:
        """What a watcher is told of it last."""
        return "gone" if self.status == "deleted" else self.status


def number(event_id: str) -> tuple[int, int]:
    """Epoch and rev of an id."""
    epoch, rev = map(int, event_id.split("-"))
    return epoch, rev


class Watcher:
    """One stream, opened again and again in a thread of its own until it is stopped or told to stop.

    :param patience: how much of the time of ``retry`` it waits; browsers wait for all of it.
    :param dice: if given, it drops its connection by itself, by these dice.
    """

    def __init__(self, url: str, path: str, *, patience: float = 1.0, dice: random.Random | None = None) -> None:
        self.path = path
        #: Everything it was told, the events of each connection apart.
        self.connections: list[list[Told]] = []
        #: The answer that has ended it for good, if one has.
        self.status: int | None = None
        self._url = url
        self._patience = patience
        self._dice = dice
        self._last: str | None = None
        self._retry = _RETRY
        self._over = threading.Event()
        self._client: EventClient | None = None
        self._thread = threading.Thread(target=self._run, name=path)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if (client := self._client) is not None:
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set() and self.status is None:
            # Refused or broken: it comes back, as from an end.
            with contextlib.suppress(OSError), EventClient(self._url, self.path, last=self._last) as client:
                self._client = client
                self._read(client)
            self._over.wait(self._retry / 1000 * self._patience)

    def _read(self, client: EventClient) -> None:
        if client.status != 200:
            self.status = client.status
            return
        told: list[Told] = []
        self.connections.append(told)
        most = self._dice.choice(_DROPS) if self._dice is not None else None
        while not self._over.is_set() and len(told) != most:
            event = client.next()
            self._retry = client.retry or self._retry
            if event is None:
                return
            told.append(event)
            self._last = event.id or self._last

    @property
    def told(self) -> list[Told]:
        """Everything it was told."""
        return [event for told in list(self.connections) for event in list(told)]

    def last_words(self) -> dict[str, str]:
        """What it was told last of each job by its name: a status, or ``gone``."""
        words = {}
        for event in self.told:
            if event.name in ("job", "gone"):
                words[event.data["name"]] = event.data.get("status", event.name)
        return words

    def contradictions(self) -> list[str]:
        """What should never be told, whatever is killed."""
        found = [f"{self.path} began anew" for event in self.told if event.name == "reset"]
        # Whoever knows a job by one of its events is told that it is gone; only another one finds nothing.
        if self.status not in (None, 204) and (self.status, self._last) != (404, None):
            found.append(f"{self.path} was answered {self.status}")
        ends: dict[str, str] = {}
        for event in self.told:
            if event.name not in ("job", "gone"):
                continue
            name, word = event.data["name"], event.data.get("status", event.name)
            before = ends.get(name, word)
            if word != before and not (word == "gone" and before in _FINAL):
                found.append(f"{self.path}: {name} was {word} after {before}")
            if word == "gone" or word in _FINAL:
                ends[name] = word
        return found

    def _ids(self) -> list[list[tuple[int, int]]]:
        """The ids of each connection."""
        return [[number(event.id) for event in told if event.id is not None] for told in self.connections]


class UserWatcher(Watcher):
    """A stream of all jobs of a user."""

    def missed(self, jobs: Iterable[Ended]) -> list[str]:
        """The jobs that ended after its first snapshot, and whose last word it was not told."""
        begun = next((event.id for event in self.told if event.name == "snapshot" and event.id), None)
        if begun is None:
            return [f"{self.path} has no snapshot"]
        words = self.last_words()
        return [
            f"{self.path}: {job} was told as {words.get(job.name)}"
            for job in jobs
            if job.rev > number(begun)[1] and words.get(job.name) != job.last_word
        ]

    def contradictions(self) -> list[str]:
        found = super().contradictions()
        ids = [each for connection in self._ids() for each in connection]
        if ids != sorted(set(ids)):
            found.append(f"{self.path}: ids {ids}")
        if len([event for event in self.told if event.name == "snapshot"]) > 1:
            found.append(f"{self.path} was told the state instead of what it had missed")
        return found


class JobWatcher(Watcher):
    """A stream of one job, by its address."""

    @property
    def name(self) -> str:
        """The name of the job."""
        return self.path.split("/")[-2]

    def missed(self, job: Ended) -> list[str]:
        """Whether it was not told how its job ended, and that this was all."""
        word = self.last_words().get(self.name)
        # One that was deleted may have been told as finished before; whoever comes too late for all finds none.
        deleted = job.status == "deleted" and (word in (*_FINAL, "gone") or (self.status, word) == (404, None))
        if not deleted and word != job.last_word:
            return [f"{self.path}: {job} was told as {word}"]
        is_over = self.status is not None or any(event.name == "end" for event in self.told)
        return [] if is_over else [f"{self.path} has no end"]

    def contradictions(self) -> list[str]:
        found = super().contradictions()
        # The present state comes first on every connection, and may have been told before.
        ids = self._ids()
        together = [each for connection in ids for each in connection]
        if together != sorted(together) or any(len(each) != len(set(each)) for each in ids):
            found.append(f"{self.path}: ids {ids}")
        return found


def resumptions(watchers: Iterable[Watcher]) -> Counter[str]:
    """How many connections were opened after the first of each watcher, and how many of all were refused as too many."""
    count: Counter[str] = Counter()
    for watcher in watchers:
        count["resumed"] += max(len(watcher.connections) - 1, 0)
        count["busy"] += sum(event.name == "busy" for event in watcher.told)
    return count
