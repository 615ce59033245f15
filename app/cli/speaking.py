"""What commands say on standard error: sentences for people, or lines of the log where that is to be JSON."""

from __future__ import annotations

import logging
import os
import pwd
from typing import IO, Any

import click

from app.config import read
from app.runtime import logs

_LOG = logging.getLogger(__name__)


class Refusal(click.ClickException):
    """The reason why a command can't do its work, as the last line of its standard error."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the line."""
        if _is_for_people():
            super().show(file)
        else:
            click.echo(logs.last_words("json", self.format_message()), file=file, err=True)


def note(text: str) -> None:
    """Tell the user of a command something."""
    if _is_for_people():
        click.echo(text, err=True)
    else:
        _LOG.info("%s", text)


def _is_for_people() -> bool:
    return read().config.log_format == "text"


def system_user() -> str:
    """The operating system's user who runs the command, for the audit log."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
