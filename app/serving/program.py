"""gunicorn as a program, with the configuration of this package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gunicorn.app.wsgiapp import WSGIApplication  # type: ignore[import-untyped]  # the package ships no types

#: A file and not a module's name: gunicorn runs a file again at SIGHUP, and so reads the settings again.
_CONFIGURATION: Final = Path(__file__).with_name("gunicorn_conf.py")


class Gunicorn(WSGIApplication):  # type: ignore[misc]  # gunicorn ships no types
    """gunicorn with the configuration beside this module; options of the command line come after it, and so win.

    It runs in the process that makes it, which has imported ``app`` already: started as ``python -m gunicorn`` it would take a
    folder ``app`` in the current folder for this package.
    """

    def __init__(self, options: Sequence[str], program: str) -> None:
        """:param options: of gunicorn's command line.
        :param program: the name for gunicorn's messages about them.
        """
        self._options = options
        super().__init__("%(prog)s [OPTIONS]", prog=program)

    def load_config(self) -> None:
        """Read configuration and options; also at SIGHUP."""
        # gunicorn takes the options from there. Afterwards the program's own are back, with which SIGUSR2 starts it anew.
        given = sys.argv
        sys.argv = [given[0], "--config", str(_CONFIGURATION), *self._options]
        try:
            super().load_config()
        finally:
            sys.argv = given
