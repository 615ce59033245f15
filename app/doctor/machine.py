"""The machine that the gateway runs on: its instance folder, the room on its disks, and who may read what is secret."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from app.config import Config
from app.doctor.findings import About, Check, Finding
from app.doctor.storage import Storage
from app.gateway.signing import KEY_FILE, read_keys
from app.records.folder import room_at

#: Its URLs may hold credentials.
_SETTINGS_FILE: Final = "settings.toml"
_MIB: Final = 2**20
#: Below the first a disk counts as full, below the second as nearly so. A picture takes about 0.5 to 2 MiB.
_LEAST_BYTES: Final = 256 * _MIB
_FEW_BYTES: Final = 2048 * _MIB
_LEAST_INODES: Final = 1000
#: A large request body takes its length in the temporary folder.
_LEAST_TEMPORARY_BYTES: Final = 64 * _MIB


class Machine:
    """Checks of what the gateway finds on its machine."""

    def __init__(self, config: Config, storage: Storage) -> None:
        self._config = config
        self._storage = storage

    def checks(self) -> Iterator[Check]:
        """All of them."""
        yield Check("instance folder", self._instance, ("SDG_DATABASE_URL", "SDG_DATA_DIR", "SDG_SECRET_KEYS"))
        yield Check("permissions", self._permissions, ("SDG_DATABASE_URL", "SDG_DATA_DIR"))
        yield Check("disk", self._disks, ("SDG_DATABASE_URL", "SDG_DATA_DIR", "SDG_MAX_BODY_MB"))

    def _instance(self) -> Iterator[Finding]:
        about, folder = About("instance folder"), self._config.instance
        if not folder.is_dir():
            yield about.fault(
                f"{folder} does not exist.",
                "Set SDG_INSTANCE to the gateway's folder, or make it with 'sd-gateway serve'.",
            )
        elif not os.access(folder, os.R_OK | os.X_OK) or (self._is_written and not os.access(folder, os.W_OK)):
            yield about.fault(
                f"{folder} can't be {'written' if os.access(folder, os.R_OK | os.X_OK) else 'read'}.",
                "Give it to the gateway's user (chown), or run the command as that user.",
            )
        elif (fault := self._fault_of_keys()) is not None:
            yield about.fault(
                f"{folder / KEY_FILE}: {fault}: no URL can be signed, and no session begun.",
                "Give it to the gateway's user (chown). A damaged one can be removed: the next start makes another, and all signed "
                "URLs and sessions end.",
            )
        else:
            yield about.ok(str(folder))

    def _fault_of_keys(self) -> str | None:
        """Why the file of the keys can't be used; None for a good one, and where none is used or there."""
        path = self._config.instance / KEY_FILE
        if self._config.secret_keys or not path.exists():
            return None
        try:
            read_keys(path)
        except (OSError, ValueError) as error:
            return str(getattr(error, "strerror", None) or error)
        return None

    @property
    def _is_written(self) -> bool:
        """Whether the gateway makes something in the instance folder itself; the database has a check of its own."""
        here, data = self._config.instance, self._config.data_dir
        makes_key = not self._config.secret_keys and not (here / KEY_FILE).exists()
        return makes_key or (data.parent == here and not data.exists())

    def _permissions(self) -> Iterator[Finding]:
        about, found = About("permissions"), False
        for path in self._secrets():
            if _others_read(path):
                found = True
                told = about.fault if path.name == KEY_FILE else about.warning
                yield told(f"every user of this machine can read {path}.", f"Run 'chmod o= {path}'.")
        owner = self._owner()
        if os.geteuid() == 0 and owner:
            found = True
            yield about.warning(
                "root may write everywhere, so what the gateway's user may not do is not seen.",
                f"Run the command as the owner of the data folder (sudo -u '#{owner}' …).",
            )
        if not found:
            yield about.ok("keys, settings, database and data folder are closed to other users.")

    def _secrets(self) -> Iterator[Path]:
        """What other users should not read, as far as it exists."""
        yield self._config.instance / KEY_FILE
        yield self._config.instance / _SETTINGS_FILE
        yield self._config.data_dir
        if self._storage.file is not None:
            yield self._storage.file

    def _owner(self) -> int:
        """The user to whom the data folder belongs; root's number where there is none."""
        return self._config.data_dir.stat().st_uid if self._config.data_dir.is_dir() else 0

    def _disks(self) -> Iterator[Finding]:
        about = About("disk")
        places = [("data folder", self._config.data_dir)]
        if self._storage.file is not None:
            places.append(("database", self._storage.file.parent))
        for name, path in places:
            if path.is_dir():
                yield _room(about, name, path)
        temporary = Path(tempfile.gettempdir())
        free = room_at(temporary).free_bytes
        if free < max(_LEAST_TEMPORARY_BYTES, 2 * self._config.max_body_mb * _MIB):
            yield about.warning(
                f"{free // _MIB} MiB are free in the temporary folder {temporary}, which large requests need.",
                "Make room there, or point TMPDIR of the gateway at another disk.",
            )
        else:
            yield about.ok(f"temporary folder {temporary}: {free // _MIB} MiB free.")


def _room(about: About, name: str, path: Path) -> Finding:
    room = room_at(path)
    free = f"{room.free_bytes // _MIB} MiB are free on the disk of the {name} {path}."
    advice = "Make room, or delete old records; 'sd-gateway records upkeep' gives back what deleted ones took."
    if room.free_bytes < _LEAST_BYTES:
        return about.fault(f"nearly full: {free}", advice)
    if room.free_inodes is not None and room.free_inodes < _LEAST_INODES:
        return about.fault(f"only {room.free_inodes} files more fit on the disk of the {name} {path} (inodes).", advice)
    return about.warning(free, advice) if room.free_bytes < _FEW_BYTES else about.ok(free)


def _others_read(path: Path) -> bool:
    """Whether users besides the owner and the group can read a file or list a folder."""
    try:
        mode = path.stat().st_mode
        wanted = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) else stat.S_IROTH
        return mode & wanted == wanted and all(
            parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents
        )
    except OSError:
        # It is not there, or closed even to this user.
        return False
