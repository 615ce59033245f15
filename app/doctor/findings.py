"""What a check has found, and how it is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How grave a finding is; the words that are printed."""

    OK = "ok"
    #: Worth knowing; the gateway works.
    WARNING = "warning"
    FAULT = "fault"
    #: The check could not be made, because of a fault that is told elsewhere.
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what it is about, what was found, and what to do about it."""

    level: Level
    subject: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        told = f"{self.text} Do this: {self.advice}" if self.advice else self.text
        return f"{self.level:<7} {self.subject}: {' '.join(told.split())}"


class Skipped(Exception):
    """A check can't be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    :ivar find: gives its findings, at least one; it may raise :class:`Skipped`.
    :ivar settings: the settings without whose values there is nothing to check.
    """

    subject: str
    find: Callable[[], Iterable[Finding]]
    settings: tuple[str, ...] = ()


class About:
    """Makes the findings of one subject."""

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def ok(self, text: str) -> Finding:
        """Nothing is wrong."""
        return Finding(Level.OK, self._subject, text)

    def warning(self, text: str, advice: str = "") -> Finding:
        """Something is worth knowing."""
        return Finding(Level.WARNING, self._subject, text, advice)

    def fault(self, text: str, advice: str) -> Finding:
        """Something is wrong."""
        return Finding(Level.FAULT, self._subject, text, advice)

    def skipped(self, text: str) -> Finding:
        """It could not be checked."""
        return Finding(Level.SKIPPED, self._subject, text)


def summary(findings: Iterable[Finding]) -> str:
    """The numbers of findings of each level, as the last line of a report."""
    counts = Counter(finding.level for finding in findings)
    named = [(Level.FAULT, "fault"), (Level.WARNING, "warning"), (Level.OK, "ok"), (Level.SKIPPED, "skipped")]
    plural = {Level.FAULT, Level.WARNING}
    return ", ".join(
        f"{counts[level]} {word}{'s' if level in plural and counts[level] != 1 else ''}" for level, word in named
    )


def sentence(text: str) -> str:
    """A text that may lack its full stop, with one."""
    return text if text.endswith((".", "?", "!")) else f"{text}."
