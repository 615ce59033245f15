"""The modes of what the gateway makes on disk: for its own user and group, whatever the umask lets others do.

A stricter umask is heeded, and what exists keeps its mode. nginx's user reads the pictures as a member of the group; the database,
which holds every prompt and the hashes of the tokens, is for the gateway's user alone. SQLite gives the mode of a database to its
``-wal`` and ``-shm`` too.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Final

FOLDER: Final = 0o750
FILE: Final = 0o640
PRIVATE_FILE: Final = 0o600


def make_folders(path: Path) -> None:
    """Make a folder and what is missing above it. ``Path.mkdir`` leaves the modes of the upper ones to the umask.

    :raises OSError: one can't be made.
    """
    for missing in reversed([*takewhile(lambda parent: not parent.exists(), path.parents)]):
        missing.mkdir(mode=FOLDER, exist_ok=True)
    path.mkdir(mode=FOLDER, exist_ok=True)
