"""The gateway is killed at every failpoint in turn, and nothing that it promised is lost.

There is one right before and one right after each commit, fsync, rename and removal (app/runtime/failpoints.py); the process
ends there by SIGKILL. What must hold once another process has taken over stands in life.py, as one sentence for each promise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.crash.script import SCRIPT

_CHECKOUT = Path(__file__).resolve().parents[2]
#: Memory is as good as a disk: SIGKILL ends a process, not the machine, and what it wrote stays.
_MEMORY = Path("/dev/shm")
_RECOVERY = ("take over", "begin quiescing", "end quiescing")


def crash_run() -> dict[str, Any]:
    """The report of the crash run: ``undisturbed`` and ``rounds``."""
    with tempfile.TemporaryDirectory(prefix="sdg-crash-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.crash.rounds", folder],
            cwd=_CHECKOUT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def died_at(verdict: dict[str, Any]) -> list[str]:
    """The failpoints at which the lives of a round ended."""
    lives = zip(verdict["crashes"], verdict["failpoints"], strict=False)
    return [passed[number - 1] if number <= len(passed) else f"failpoint {number}" for number, passed in lives]


def planned(verdict: dict[str, Any], calm: list[dict[str, Any]]) -> str:
    """The failpoint at which the first life of a round should have ended."""
    name: str = calm[verdict["chapters"] - 1]["failpoints"][0][verdict["crashes"][0] - 1]
    return name


def title(verdict: dict[str, Any]) -> str:
    numbered = (f"{number} {name}" for number, name in zip(verdict["crashes"], died_at(verdict), strict=True))
    return f"{SCRIPT[verdict['chapters'] - 1].label}: " + ", then ".join(numbered)


def check(run: dict[str, Any], at_least: int) -> None:
    """Every promise was kept in every round, and no kind of failpoint was left out."""
    calm, rounds = run["undisturbed"], run["rounds"]
    assert [verdict["problems"] for verdict in calm] == [[]] * len(SCRIPT)
    # In another order the numbers would name other failpoints: some would be tried twice and some never.
    missed = [title(verdict) for verdict in rounds if died_at(verdict)[0] != planned(verdict, calm)]
    assert not missed, "died at another failpoint than the undisturbed run has there"
    broken = [f"{title(verdict)}\n{verdict['problems']}\n{verdict['log']}" for verdict in rounds if verdict["problems"]]
    assert not broken, "\n\n".join(broken)
    different = [title(verdict) for verdict in rounds if verdict["outcome"] != calm[verdict["chapters"] - 1]["outcome"]]
    assert not different, "other pictures or answers than without the crash"

    assert len(rounds) >= at_least
    stopped_at = {died_at(verdict)[0] for verdict in rounds}
    kinds = {name.split(maxsplit=1)[1] for name in stopped_at}
    assert stopped_at == {f"{when} {kind}" for kind in kinds for when in ("before", "after")}
    commits = (
        "register",
        "accept",
        "claim",
        "answered",
        "finish",
        "give back",
        "delete",
        "delete image",
        "unlinked",
        "cancel",
    )
    assert kinds >= {f"commit {name}" for name in commits}
    assert kinds >= {"fsync file", "fsync folder", "rename .png", "rename .json", "unlink .json", "unlink .png"}
    recovery = {died_at(verdict)[1] for verdict in rounds if len(verdict["crashes"]) > 1}
    assert recovery & {f"{when} commit {name}" for when in ("before", "after") for name in _RECOVERY}


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_process_may_be_killed_at_every_failpoint(capsys: pytest.CaptureFixture[str]) -> None:
    run = crash_run()
    with capsys.disabled():
        print("\nkilled at …, and what the next process found:")
        for verdict in run["rounds"]:
            print(f"  {title(verdict):80} {verdict.get('found', '')}{'  FAILED' if verdict['problems'] else ''}")
    check(run, at_least=150)
