"""The first start of a gateway as a program of its own, which forks a process for each start.

``python -m tests.crash.first_start killed FOLDER`` kills a start at each of its failpoints in turn, and starts again.
``… together FOLDER ROUNDS`` starts several processes at once on one database and one data folder, and then on several databases
and one data folder. What was found is printed as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from app.config import load
from app.gateway.identity import Mismatch
from app.services import build
from tests.crash.rounds import failpoints_of, fork

#: Starts at once.
TOGETHER = 6
#: The exit status of a start that was refused, as nothing else ends a process.
REFUSED = 77


def start(folder: Path, database: str = "gateway.db", crash_at: str = "") -> None:
    """Build the services as every process of a gateway does."""
    environ = {
        "SDG_DATA_DIR": str(folder / "data"),
        "SDG_DATABASE_URL": f"sqlite:///{folder}/{database}",
        "SDG_HOST_ID": "testhost",
        "SDG_TEST_CRASH_AT": crash_at,
    }
    try:
        build(load(environ, folder)).database.close()
    except Mismatch:
        os._exit(REFUSED)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ids(folder: Path, database: str = "gateway.db") -> dict[str, Any]:
    """The id in the database, the id in the data folder, and the names of the files there."""
    with closing(sqlite3.connect(folder / database)) as connection:
        row = connection.execute("SELECT value FROM notes WHERE key = 'data_folder_id'").fetchone()
    data = folder / "data"
    return {
        "database": row[0] if row else None,
        "folder": (data / ".sd-gateway-id").read_text("ascii"),
        "files": sorted(path.name for path in data.iterdir()),
    }


def killed(folder: Path) -> list[dict[str, Any]]:
    """One entry for each failpoint of a first start: the exit codes of the start that was killed there and of the next one."""
    found: list[dict[str, Any]] = []
    while True:
        number = len(found) + 1
        place = folder / str(number)
        place.mkdir()
        failpoints = place / "failpoints"
        first = code_of(fork(lambda at=f"{failpoints}:{number}", to=place: start(to, crash_at=at), place / "log"))  # type: ignore[misc]
        if first == 0:
            return found
        again = code_of(fork(lambda to=place: start(to), place / "log"))  # type: ignore[misc]
        found.append({"failpoint": failpoints_of(failpoints)[-1], "codes": [first, again], **ids(place)})


def together(folder: Path, databases: Sequence[str]) -> dict[str, Any]:
    """Start a process on each of these databases at the same moment, all on one data folder."""
    folder.mkdir()
    ready, go = os.pipe()

    def wait_and_start(database: str) -> None:
        os.close(go)
        # The end of the file is the same moment for all.
        os.read(ready, 1)
        start(folder, database)

    pids = [fork(lambda name=name: wait_and_start(name), folder / "log") for name in databases]  # type: ignore[misc]
    os.close(ready)
    os.close(go)
    codes = [code_of(pid) for pid in pids]
    log = (folder / "log").read_text("utf-8", "replace")
    return {"codes": codes, "log": log, "ids": [ids(folder, name) for name in sorted(set(databases))]}


def main(what: str, folder: Path, rounds: int = 0) -> Any:
    # So that no child looks for garbage among what was imported, and gets a copy of all of it by that.
    gc.freeze()
    if what == "killed":
        return killed(folder)
    one = ["gateway.db"] * TOGETHER
    several = [f"gateway{number}.db" for number in range(TOGETHER)]
    return {
        "one": [together(folder / f"one{number}", one) for number in range(rounds)],
        "several": [together(folder / f"several{number}", several) for number in range(rounds)],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))))
