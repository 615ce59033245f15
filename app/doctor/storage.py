"""The database and the data folder: whether each can be used, and whether they belong together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from app.config import Config, without_secrets
from app.doctor.findings import About, Check, Finding, Skipped
from app.gateway.identity import Belonging, Mismatch
from app.jobs.errors import JobsError
from app.jobs.inspection import Inspection
from app.jobs.sql import database_id
from app.jobs.sql.inspected import InspectedDatabase
from app.records.store import RecordStore

_WRITE_ADVICE = "Let the gateway's user write there, or choose another place."


class Storage:
    """The configured database and data folder, looked at; :meth:`close` ends the connections."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._records = RecordStore(config.data_dir)
        self._database: InspectedDatabase | None = None
        self._failure: JobsError | None = None
        #: Whether the check of the database has found that it can be read, and that its schema is this version's.
        self._readable = self._current = False
        try:
            self._database = InspectedDatabase(config.database_url)
        except JobsError as error:
            self._failure = error

    def close(self) -> None:
        """Close the connections to the database."""
        if self._database is not None:
            self._database.close()

    @property
    def file(self) -> Path | None:
        """The SQLite file, whether it exists or not; None for PostgreSQL."""
        return None if self._database is None else self._database.file

    def current(self) -> InspectedDatabase:
        """The database, of which everything can be asked.

        :raises Skipped: nothing can be asked; the check of the database says why.
        """
        if self._database is None or not self._current:
            raise Skipped("the database can't be used.")
        return self._database

    def checks(self) -> Iterator[Check]:
        """All checks of both."""
        yield Check("database", self._check_database, ("SDG_DATABASE_URL",))
        yield Check("data folder", self._check_folder, ("SDG_DATA_DIR",))
        yield Check("database and data folder", self._check_belonging, ("SDG_DATABASE_URL", "SDG_DATA_DIR"))

    # -- the database ------------------------------------------------------------------------------------------------

    def _belonging(self) -> Belonging:
        if self._database is None:
            raise self._failure or Skipped("the database can't be used.")
        return Belonging(self._database, self._records)

    def _check_database(self) -> Iterator[Finding]:
        about, belonging = About("database"), self._belonging()
        if not belonging.database.exists:
            yield self._missing(about, belonging)
            return
        # Raises where it can't be read, which is a fault like any other.
        schema = belonging.database.refuse_newer()
        self._readable = True
        if schema is None:
            text = f"{without_secrets(self._config.database_url)} is empty: no gateway has started with it."
            yield about.warning(text, "If this is not a new gateway, correct SDG_DATABASE_URL.")
            return
        try:
            belonging.open_migrated()
        except Mismatch as error:
            yield about.fault(error.what, error.advice)
            return
        self._current = True
        inspection = Inspection(self.current())
        inspection.refuse_read_only()
        if self.file is not None and not (os.access(self.file, os.W_OK) and os.access(self.file.parent, os.W_OK)):
            yield about.fault(f"{self.file} or its folder can't be written.", _WRITE_ADVICE)
        else:
            yield about.ok(without_secrets(self._config.database_url))

    def _missing(self, about: About, belonging: Belonging) -> Finding:
        """What to say of a database that does not exist: nothing bad where the gateway was never started."""
        place = without_secrets(self._config.database_url)
        if not self._config.instance.is_dir():
            return about.skipped("the instance folder does not exist.")
        try:
            belonging.refuse_missing_database()
        except Mismatch as error:
            told = about.warning if self._records.folder.read_id() is None else about.fault
            return told(f"{place}: {error.what}", error.advice)
        return about.ok(place)

    # -- the data folder ---------------------------------------------------------------------------------------------

    def _check_folder(self) -> Iterator[Finding]:
        about, folder = About("data folder"), self._records.folder
        if not folder.exists:
            yield self._missing_folder(about)
        elif not folder.is_writable:
            yield about.fault(f"{folder.root} can't be written.", _WRITE_ADVICE)
        else:
            yield about.ok(str(folder.root))

    def _missing_folder(self, about: About) -> Finding:
        root = self._records.folder.root
        if not self._config.instance.is_dir() and root.is_relative_to(self._config.instance):
            return about.skipped("the instance folder does not exist.")
        if root.exists():
            return about.fault(f"{root} is no folder.", "Correct SDG_DATA_DIR, or move what is there.")
        text = f"{root} does not exist."
        if self._readable and self._database is not None and database_id.read(self._database) is not None:
            return about.fault(text, "Mount its disk, or correct SDG_DATA_DIR.")
        return about.warning(
            text, "If this is not a new gateway, correct SDG_DATA_DIR: the first start of one makes its data folder."
        )

    # -- both --------------------------------------------------------------------------------------------------------

    def _check_belonging(self) -> Iterator[Finding]:
        about = About("database and data folder")
        if not self._readable or not self._records.folder.exists:
            raise Skipped("one of them can't be used.")
        belonging = self._belonging()
        try:
            belonging.refuse_strangers()
        except Mismatch as error:
            yield about.fault(error.what, error.advice)
            return
        try:
            belonging.refuse_without_ids()
        except Mismatch as error:
            yield about.warning(error.what, error.advice)
            return
        yield about.ok("they belong together.")
