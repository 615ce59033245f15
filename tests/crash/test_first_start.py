"""The first start gives database and data folder one id, wherever it is killed and however many processes start at once."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.crash.first_start import REFUSED

_CHECKOUT = Path(__file__).resolve().parents[2]
_ID = re.compile(r"[0-9a-f]{32}\Z")


def report(what: str, folder: Path, *rounds: int) -> Any:
    """The JSON that ``tests.crash.first_start`` prints."""
    command = [sys.executable, "-m", "tests.crash.first_start", what, str(folder), *map(str, rounds)]
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_one_id(found: dict[str, Any]) -> None:
    assert _ID.match(found["database"])
    assert found["folder"] == found["database"] + "\n"
    assert found["files"] == [".sd-gateway-id"]


def test_a_first_start_that_was_killed_goes_on_at_the_next(tmp_path: Path) -> None:
    rounds = report("killed", tmp_path)
    for found in rounds:
        assert found["codes"] == [-signal.SIGKILL, 0], found
        assert_one_id(found)
    kinds = [f"{when} {what}" for what in ("commit begin id", "fsync file", "link", "fsync folder", "commit end id")
             for when in ("before", "after")]  # fmt: skip
    assert [found["failpoint"] for found in rounds] == kinds


@pytest.mark.parametrize("rounds_of_each", [1, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(240)])])
def test_processes_that_start_at_once_agree_on_one_id(tmp_path: Path, rounds_of_each: int) -> None:
    rounds = report("together", tmp_path, rounds_of_each)
    for found in rounds["one"]:
        assert set(found["codes"]) == {0}, found["log"]
        [pair] = found["ids"]
        assert_one_id(pair)
    for found in rounds["several"]:
        # Only one of several databases gets the folder; the others' starts are refused.
        assert sorted(found["codes"]) == [0] + [REFUSED] * (len(found["codes"]) - 1), found["log"]
        folder = found["ids"][0]["folder"].strip()
        assert [pair["database"] == folder for pair in found["ids"]].count(True) == 1
