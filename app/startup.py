"""What must hold before the gateway starts, and one line that says what to fix where it does not."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from app.config import Config, ConfigError
from app.gateway.identity import Mismatch
from app.jobs.errors import DatabaseUnavailable, JobsError, ReadOnlyDatabase, SchemaTooNew
from app.records.errors import RecordsError, StorageFailed
from app.services import Services, build, build_on_existing, identity_of
from app.webui.presets import PresetError

#: What :func:`app.config.load` and :func:`app.services.build` raise.
ERRORS: Final = (ConfigError, PresetError, JobsError, RecordsError, Mismatch)
#: How long another program may take to give the address free: a gateway that is just stopping does.
_BIND_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1
#: The soft limit of open files is raised so far, where the hard one allows it.
_FILES: Final = 65536
#: What a process has open besides its clients: libraries, sockets, locks; for each thread a database connection (two files of
#: SQLite), and a picture or a body; for each WebUI the connections that its threads hold ready.
_FILES_OF_A_PROCESS: Final = 96
_FILES_OF_A_THREAD: Final = 3
_FILES_OF_A_WEBUI: Final = 16
_WRITABLE: Final = "Let the gateway's user write there, or choose another place."


class CannotStart(Exception):
    """The text is one line that names the setting or the folder, and says what to do."""


def open_services(config: Config) -> Services:
    """Build the services of a process that stores pictures: the data folder is made and the database brought up to date.

    :raises CannotStart: something can't be used.
    """
    if config.data_dir.is_dir() and not os.access(config.data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise CannotStart(f"SDG_DATA_DIR: {config.data_dir} can't be written. {_WRITABLE}")
    with _explained(config):
        return build(config)


def open_existing(config: Config) -> Services:
    """Build the services of a command on what exists: nothing is made or migrated.

    :raises CannotStart: something can't be used.
    """
    with _explained(config):
        return build_on_existing(config)


def adopt(config: Config, *, dry_run: bool) -> str:
    """Make the database and the data folder belong together; their id. See :meth:`app.gateway.identity.Belonging.adopt`.

    :raises CannotStart: something can't be used.
    """
    identity = identity_of(config)
    try:
        with _explained(config):
            return identity.adopt(dry_run=dry_run)
    finally:
        identity.database.close()


@contextlib.contextmanager
def _explained(config: Config) -> Iterator[None]:
    try:
        yield
    except ERRORS as error:
        raise CannotStart(explain(error, config)) from error


def places(config: Config) -> str:
    """Which database and which data folder are used, without user and password."""
    return f"database {_shown(config.database_url)}, data folder {config.data_dir}"


def explain(error: Exception, config: Config) -> str:
    """One line about one of :data:`ERRORS`."""
    match error:
        case DatabaseUnavailable():
            advice = _WRITABLE if config.database_url.startswith("sqlite") else "PostgreSQL must run and be reachable."
            text = f"SDG_DATABASE_URL: {_shown(config.database_url)} can't be used{_because(error)}. {advice}"
        case ReadOnlyDatabase():
            text = f"SDG_DATABASE_URL: {_shown(config.database_url)} can only be read. {error}"
        case SchemaTooNew():
            text = f"SDG_DATABASE_URL: {error} Start the version that wrote it, or use another database."
        case Mismatch():
            text = f"{places(config)}: {error}"
        case StorageFailed():
            text = f"SDG_DATA_DIR: {config.data_dir} can't be used{_because(error)}. {_WRITABLE}"
        case RecordsError():
            text = f"SDG_DATA_DIR: {config.data_dir} can't be made{_because(error)}. {_WRITABLE}"
        case _:
            text = str(error)
    return " ".join(text.split())


def _shown(database_url: str) -> str:
    """The URL without user and password, which may stand in its query too."""
    scheme, _, rest = database_url.partition("://")
    rest = re.sub(r"(?i)\b(user|\w*pass\w*)=[^&]*", r"\1=…", rest)
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _because(error: Exception) -> str:
    """What the operating system or the database said, where it said anything."""
    cause = error.__cause__
    # SQLAlchemy wraps the driver's own exception, and adds lines about itself.
    lines = str(getattr(cause, "orig", None) or getattr(cause, "strerror", None) or cause or "").splitlines()
    return f": {lines[0].rstrip('.')}" if lines else ""


def await_address(address: tuple[str, int] | str, seconds: float = _BIND_SECONDS) -> None:
    """Wait until gunicorn can listen at an address: host and port, or the path of a Unix socket.

    :raises CannotStart: it can't, or another program still listens there after so many seconds.
    """
    if isinstance(address, str):
        folder = Path(address).parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise CannotStart(f"SDG_BIND: the folder {folder} of the socket is missing or can't be written.")
        return
    deadline = time.monotonic() + seconds
    host, port = address[:2]
    while (failure := failure_to_bind(host, port)) is not None:
        if failure.errno != errno.EADDRINUSE:
            raise CannotStart(f"SDG_BIND: can't listen at {host}:{port}: {failure.strerror or failure}.") from failure
        if time.monotonic() >= deadline:
            raise CannotStart(
                f"SDG_BIND: {host}:{port} is in use by another program. Stop that, or choose another address."
            ) from failure
        time.sleep(_POLL_SECONDS)


def room_for_connections(config: Config) -> int:
    """Raise the limit of open files of this process and its children; how many clients one of them may then have at a time.

    :raises CannotStart: there is no room for as many clients as there are threads.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # -1 stands for no limit.
    soft, allowed = (limit % 2**64 for limit in (soft, hard))
    if soft < _FILES:
        soft = min(allowed, _FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    others = _FILES_OF_A_PROCESS + _FILES_OF_A_THREAD * config.threads + _FILES_OF_A_WEBUI * len(config.webuis)
    if soft < others + config.threads:
        raise CannotStart(
            f"SDG_THREADS: {config.threads} threads need {others + config.threads} open files, and the limit is {soft}. "
            "Raise it (ulimit -Hn, LimitNOFILE of systemd), or set fewer threads and waiters."
        )
    return min(soft, _FILES) - others


def failure_to_bind(host: str, port: int) -> OSError | None:
    """Why nobody could listen there now; None when it works."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None
