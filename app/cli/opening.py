"""The settings and the services of a command; where it can't start, it ends with one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from app import startup
from app.cli.speaking import Refusal
from app.config import CannotStart, Config, load
from app.gateway.tokens import TokenError
from app.jobs.errors import JobsError
from app.runtime.modes import make_folders
from app.services import Services

_T = TypeVar("_T")


def existing_config() -> Config:
    """The settings, for a command that works in an instance folder: it must be there."""
    config = loaded(load)
    if not config.instance.is_dir():
        raise Refusal(
            f"{config.instance} does not exist. Set SDG_INSTANCE to the gateway's folder, or make it with 'sd-gateway serve'."
        )
    return config


def loaded(read: Callable[[], _T]) -> _T:
    """The result of a function; where it can't start, the command ends with that line."""
    try:
        return read()
    except CannotStart as error:
        raise Refusal(str(error)) from error


def make_instance(config: Config) -> None:
    """Make the instance folder if it is missing."""
    try:
        make_folders(config.instance)
    except OSError as error:
        raise Refusal(f"SDG_INSTANCE: {config.instance} can't be made: {error.strerror}.") from error


def services_of(open_them: Callable[[Config], Services]) -> Services:
    """The services of a command, opened by one of the functions of :mod:`app.startup`."""
    config = existing_config()
    return loaded(lambda: open_them(config))


def with_services(
    action: Callable[[Services], _T], open_them: Callable[[Config], Services] = startup.open_existing
) -> _T:
    """Run over the database of the gateway, whose other processes can be notified, and return the result."""
    services = services_of(open_them)
    try:
        services.start(worker=False)
        return action(services)
    except (JobsError, TokenError) as error:
        raise Refusal(str(error)) from error
    finally:
        services.drain()
