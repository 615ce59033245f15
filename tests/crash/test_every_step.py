"""The gateway is killed at every durable step in turn, and nothing that it promised is lost.

A step is a commit, an fsync, a rename or a removal (app/steps.py); the process ends by SIGKILL right before and right after each.
What must hold once another process has taken over stands in life.py, as one sentence for each promise.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.script import SCRIPT

_CHECKOUT = Path(__file__).resolve().parents[2]
#: Memory is as good as a disk: SIGKILL ends a process, not the machine, and what it wrote stays.
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def run() -> Iterator[dict[str, Any]]:
    """What the crash run reports: ``undisturbed`` and ``rounds``."""
    with tempfile.TemporaryDirectory(prefix="sdg-crash-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        done = subprocess.run(
            [sys.executable, "-m", "tests.crash.rounds", folder],
            cwd=_CHECKOUT,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def _title(verdict: dict[str, Any]) -> str:
    died_at = [
        f"{number} {steps[number - 1] if number <= len(steps) else '?'}"
        for number, steps in zip(verdict["crashes"], verdict["steps"], strict=False)
    ]
    return f"{SCRIPT[verdict['chapters'] - 1].label}: " + ", then ".join(died_at)


@pytest.mark.timeout(300)
def test_a_process_may_be_killed_at_any_durable_step(run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    calm, rounds = run["undisturbed"], run["rounds"]
    with capsys.disabled():
        print("\nkilled at …, and what the next process found:")
        for verdict in rounds:
            print(f"  {_title(verdict):72.72} {verdict.get('found', '')}{'  FAILED' if verdict['problems'] else ''}")

    assert [verdict["problems"] for verdict in calm] == [[]] * len(SCRIPT)
    broken = [
        f"{_title(verdict)}\n{verdict['problems']}\n{verdict['log']}" for verdict in rounds if verdict["problems"]
    ]
    assert not broken, "\n\n".join(broken)
    different = [
        _title(verdict) for verdict in rounds if verdict["outcome"] != calm[verdict["chapters"] - 1]["outcome"]
    ]
    assert not different, "other pictures or answers than without the crash"

    stopped_at = {verdict["steps"][0][verdict["crashes"][0] - 1] for verdict in rounds}
    kinds = {step.split(maxsplit=1)[1] for step in stopped_at}
    commits = {
        "accept",
        "claim",
        "answered",
        "finish",
        "give back",
        "delete",
        "delete image",
        "debris removed",
        "register",
    }
    assert kinds >= {f"commit {name}" for name in commits} | {
        "fsync file",
        "fsync folder",
        "unlink .json",
        "unlink .png",
    }
    assert kinds >= {"rename .png", "rename .json"}
    assert stopped_at == {f"{when} {kind}" for kind in kinds for when in ("before", "after")}
    recovery = {verdict["steps"][1][verdict["crashes"][1] - 1] for verdict in rounds if len(verdict["crashes"]) > 1}
    assert {"after commit take over", "after commit begin settling", "before commit end settling"} <= recovery
    assert len(rounds) >= 100
