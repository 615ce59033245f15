"""Opening the services of a process, with one line that says what to fix where that does not work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

from app.config import CannotStart, Config, without_secrets
from app.gateway.identity import Mismatch
from app.jobs.errors import DatabaseUnavailable, JobsError, ReadOnlyDatabase, SchemaTooNew
from app.jobs.tokens import Tokens
from app.parameters import PARAMETERS, Parameters
from app.records.errors import RecordsError, StorageFailed
from app.runtime.addresses import is_loopback_address
from app.services import Services, build, build_on_existing, identity_of
from app.webui.presets import PresetError

#: What :func:`app.services.build` raises.
ERRORS: Final = (PresetError, JobsError, RecordsError, Mismatch)
_MAKE_ONE: Final = "Make one with 'sd-gateway tokens create --name app'."
_WRITABLE: Final = "Let the gateway's user write there, or choose another place."


def open_services(config: Config, parameters: Parameters = PARAMETERS) -> Services:
    """Build the services of a process that stores pictures: the data folder is made and the database brought up to date.

    :param parameters: the table of request fields.
    :raises CannotStart: something can't be used.
    """
    if config.data_dir.is_dir() and not os.access(config.data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise CannotStart(f"SDG_DATA_DIR: {config.data_dir} can't be written. {_WRITABLE}")
    with _explained(config):
        return build(config, parameters)


def try_services(config: Config) -> None:
    """Open the services once and close them: gunicorn's master learns by that whether its processes can start.

    :raises CannotStart: something can't be used.
    """
    open_services(config).database.close()


def check_exposure(config: Config, addresses: Sequence[Any]) -> list[str]:
    """Refuse to start on an address that other machines reach before a token exists. Returns warnings for the log.

    :param addresses: of the server's sockets, as ``getsockname()`` has them.
    :raises CannotStart: other machines can reach it, and nobody has said that they may.
    """
    if config.auth == "none":
        return ["SDG_AUTH=none: everybody who reaches this gateway may do everything, for every user"]
    with _explained(config):
        database = identity_of(config).database
        try:
            if Tokens(database).exist():
                return []
        finally:
            database.close()
    reached = [address for address in addresses if isinstance(address, tuple) and not is_loopback_address(address)]
    if reached:
        host, port = reached[0][:2]
        raise CannotStart(
            f"SDG_BIND: other machines can reach {host}:{port}, and no token was made yet. {_MAKE_ONE} "
            "Or listen to 127.0.0.1, or set SDG_AUTH=none to let everybody who reaches the port do everything."
        )
    if not all(map(is_loopback_address, addresses)):
        return [f"no token was made yet, so what comes over the Unix socket is refused. {_MAKE_ONE}"]
    return [
        f"no token was made yet: every program on this machine is served without one. Put no proxy in front. {_MAKE_ONE}"
    ]


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
    with _explained(config):
        identity = identity_of(config)
        try:
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
    """The database and the data folder in use, without secrets."""
    return f"database {without_secrets(config.database_url)}, data folder {config.data_dir}"


def explain(error: Exception, config: Config) -> str:
    """A text for :class:`app.config.CannotStart` about one of :data:`ERRORS`."""
    return " ".join(filter(None, diagnose(error, config)))


def diagnose(error: Exception, config: Config) -> tuple[str, str]:
    """What is wrong when one of :data:`ERRORS` was raised, and what to do, which may be nothing to say."""
    database = f"SDG_DATABASE_URL: {without_secrets(config.database_url)}"
    match error:
        case DatabaseUnavailable():
            advice = _WRITABLE if config.database_url.startswith("sqlite") else "PostgreSQL must run and be reachable."
            found = f"{database} can't be used{_because(error)}.", advice
        case ReadOnlyDatabase():
            found = f"{database} can only be read.", str(error)
        case SchemaTooNew():
            found = f"SDG_DATABASE_URL: {error}", "Start the version that wrote it, or use another database."
        case Mismatch():
            found = f"{places(config)}: {error.what}", error.advice
        case StorageFailed():
            found = f"SDG_DATA_DIR: {config.data_dir} can't be used{_because(error)}.", _WRITABLE
        case RecordsError():
            found = f"SDG_DATA_DIR: {config.data_dir} can't be made{_because(error)}.", _WRITABLE
        case _:
            found = str(error), ""
    return found


def _because(error: Exception) -> str:
    """The words of the operating system or the database, where there are any."""
    cause = error.__cause__
    # SQLAlchemy wraps the driver's own exception, and adds lines about itself.
    lines = str(getattr(cause, "orig", None) or getattr(cause, "strerror", None) or cause or "").splitlines()
    return f": {lines[0].rstrip('.')}" if lines else ""
