"""The crash run as a program of its own: it imports everything once and forks a process for each life of each round.

``python -m tests.crash.rounds FOLDER`` prints one JSON document: every failpoint, and the verdict of each round. A round belongs
to a chapter of the script, begins on what the chapters before left, and has a life for each failpoint at which it dies; one more
life is judged.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from app.simulator import SimulatorServer, SimulatorSettings
from tests.crash.life import live
from tests.crash.script import SCRIPT
from tests.inprocess import hurry

#: Rounds that run at a time, each lane with a simulator of its own.
LANES = 2
#: A life that takes longer hangs (seconds).
_LONGEST_LIFE = 30
#: After a kill at these failpoints of these chapters the recovery is killed too, at each of its first failpoints: a job was sent;
#: a result lies on disk but not in its row; a deletion stands in its row only.
_KILLED_TWICE = {
    "batch": (("after commit claim", 10), ("before commit finish", 4)),
    "delete an image": (("after commit delete image", 8),),
    "delete a record": (("after commit delete", 12),),
}
#: The length of a line in a list of failpoints (app/runtime/failpoints.py).
_LINE = 64


@dataclass(frozen=True)
class Round:
    """The chapters up to which a round plays, and the failpoints (by number) at which its lives die."""

    chapters: int
    crashes: tuple[int, ...]


def fork(task: Callable[[], None], log: Path) -> int:
    """Run the task in a child process that never comes back, its output in a file; the child's pid."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with log.open("ab", buffering=0) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        task()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it was, this process must never go on as its parent would
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def failpoints_of(path: Path) -> list[str]:
    """The failpoints that a life passed."""
    text = path.read_text("ascii") if path.exists() else ""
    return [text[at : at + _LINE].strip() for at in range(0, len(text), _LINE)]


class Lane:
    """A simulator, and one round after the other in front of it."""

    def __init__(self, folder: Path, bases: Path) -> None:
        self._folder = folder
        self._bases = bases
        folder.mkdir()
        pipe = folder / "port"
        os.mkfifo(pipe)
        self._simulator = fork(lambda: _simulate(pipe), folder / "simulator.log")
        self._url = f"http://127.0.0.1:{pipe.read_text()}"

    def warm_up(self) -> None:
        """Play the script once in this process: its children then have all modules, and each frequent statement translated."""
        hurry(pytest.MonkeyPatch())
        folder = self._folder / "round"
        folder.mkdir()
        live(folder, self._url, len(SCRIPT), "")
        shutil.rmtree(folder)

    def close(self) -> None:
        os.kill(self._simulator, signal.SIGKILL)
        os.waitpid(self._simulator, 0)

    def run(self, round_: Round, keep: Path | None = None) -> dict[str, Any]:
        """One round: a life for each crash, and one that is judged."""
        folder = self._folder / "round"
        shutil.copytree(self._bases / str(round_.chapters - 1), folder)
        requests.post(f"{self._url}/simulator/reset", timeout=10)
        problems: list[str] = []
        for number, crash in enumerate((*round_.crashes, 0)):
            problems += self._life(folder, number, round_.chapters, crash)
        judged = folder / "verdict"
        verdict: dict[str, Any] = json.loads(judged.read_text("utf-8")) if judged.exists() else {"problems": []}
        verdict |= asdict(round_) | {"problems": problems + verdict["problems"], "log": ""}
        lists = (folder / f"failpoints{number}" for number in range(len(round_.crashes) + 1))
        verdict["failpoints"] = [failpoints_of(path) for path in lists]
        if verdict["problems"]:
            verdict["log"] = "".join(
                path.read_text("utf-8", "replace")[-6000:] for path in sorted(folder.glob("*.log"))
            )
        if keep is not None:
            keep.mkdir()
            for path in [folder / "data", folder / "journal", *folder.glob("gateway.db*")]:
                path.rename(keep / path.name)
        shutil.rmtree(folder)
        return verdict

    def _life(self, folder: Path, number: int, chapters: int, crash: int) -> list[str]:
        failpoints = folder / f"failpoints{number}"

        def task() -> None:
            signal.alarm(_LONGEST_LIFE)
            verdict = live(folder, self._url, chapters, f"{failpoints}:{crash}")
            (folder / "verdict").write_text(json.dumps(asdict(verdict)), "utf-8")

        code = os.waitstatus_to_exitcode(os.waitpid(fork(task, folder / f"life{number}.log"), 0)[1])
        if code == (-signal.SIGKILL if crash else 0):
            return []
        return [f"life {number} ended with {code}, not " + (f"by SIGKILL at failpoint {crash}" if crash else "well")]


def _simulate(pipe: Path) -> None:
    server = SimulatorServer(SimulatorSettings(seconds_per_image=0.0))
    server.start()
    pipe.write_text(str(server.port))
    signal.pause()


def undisturbed(folder: Path) -> list[dict[str, Any]]:
    """Play the script without a crash, chapter by chapter; what each leaves is kept as the base of the next."""
    bases = folder / "bases"
    (bases / "0").mkdir(parents=True)
    lane = Lane(folder / "lane", bases)
    try:
        hurry(pytest.MonkeyPatch())
        chapters = range(1, len(SCRIPT) + 1)
        return [lane.run(Round(number, ()), keep=bases / str(number)) for number in chapters]
    finally:
        lane.close()


def disturbed(folder: Path, rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """Play the rounds in some lanes at a time; their verdicts in the same order."""

    def run_lane(number: int) -> None:
        lane = Lane(folder / f"lane{number}", folder / "bases")
        try:
            lane.warm_up()
            verdicts = [lane.run(round_) for round_ in rounds[number::LANES]]
        finally:
            lane.close()
        (folder / f"verdicts{number}").write_text(json.dumps(verdicts), "utf-8")

    children = [
        fork(lambda number=number: run_lane(number), folder / f"lane{number}.log")  # type: ignore[misc]
        for number in range(LANES)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if any(codes):
        sys.exit("".join((folder / f"lane{number}.log").read_text("utf-8") for number in range(LANES)))
    verdicts: list[dict[str, Any]] = [{} for _ in rounds]
    for number in range(LANES):
        verdicts[number::LANES] = json.loads((folder / f"verdicts{number}").read_text("utf-8"))
    return verdicts


def rounds_of(calm: Sequence[dict[str, Any]]) -> list[Round]:
    """A round for every failpoint of every chapter, and for some of the recoveries."""
    rounds = []
    for verdict in calm:
        chapters, passed = verdict["chapters"], verdict["failpoints"][0]
        # Every life begins with this commit; that of the first chapter will do.
        numbers = [number for number, name in enumerate(passed, 1) if chapters == 1 or not name.endswith("register")]
        rounds += [Round(chapters, (number,)) for number in numbers]
        for name, most in _KILLED_TWICE.get(SCRIPT[chapters - 1].label, ()):
            first = passed.index(name) + 1
            rounds += [Round(chapters, (first, number)) for number in range(1, most + 1)]
    return rounds


def main(folder: Path) -> None:
    """Play everything and print it."""
    # So that no child looks for garbage among what was imported, and gets a copy of all of it by that.
    gc.freeze()
    calm = undisturbed(folder)
    json.dump({"undisturbed": calm, "rounds": disturbed(folder, rounds_of(calm))}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
