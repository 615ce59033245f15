"""What one stream is told, whatever the order in which its beginning and the changes reach it."""

from __future__ import annotations

from app.gateway.feeds import Feed, JobChange, StreamEvent
from app.jobs.model import Identity, Place
from app.jobs.revisions import Version


def deleted(rev: int, name: str) -> JobChange:
    return JobChange(Version(1, rev), Identity("user", "txt2img", name), None, Place(None, None))


def words(told: list[StreamEvent]) -> list[tuple[str, int | None]]:
    return [(event.view["name"], event.version.rev if event.version else None) for event in told]


def test_changes_that_were_read_twice_before_the_beginning_are_told_once() -> None:
    # So it is when another stream begins meanwhile, for which some are read again.
    told: list[StreamEvent] = []
    feed = Feed("user", None, told.append)
    feed.changed([deleted(100, "a"), deleted(101, "b"), deleted(102, "c")])
    feed.changed([deleted(101, "b"), deleted(102, "c"), deleted(103, "d"), deleted(103, "e")])
    feed.begin([], [], 100)
    # Of those that share a rev the last one carries it.
    assert words(told) == [("b", 101), ("c", 102), ("d", None), ("e", 103)]
    feed.changed([deleted(103, "d"), deleted(103, "e"), deleted(104, "f")])
    assert words(told)[4:] == [("f", 104)]
