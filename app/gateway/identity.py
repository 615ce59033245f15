"""Database and data folder carry one id, so that neither is ever used with another one's partner.

A first start gives both a new id: first the database, marked unfinished, then the folder, then the mark goes. Several processes
may do so at once; all take the first one's id. What does not belong together is refused before anything is changed in it.
"""

from __future__ import annotations

import secrets

from app.jobs.errors import SchemaTooOld
from app.jobs.sql import database_id
from app.jobs.sql.database import Database
from app.jobs.sql.database_id import DatabaseId
from app.records.errors import StorageFailed, StoreUnavailable
from app.records.layout import ID_FILE
from app.records.store import RecordStore

_ADOPT = "run 'sd-gateway records adopt', then 'sd-gateway records reindex'"


class Mismatch(Exception):
    """Database and data folder can't be used together.

    :param what: what is wrong, without naming them.
    :param advice: what to do.
    """

    def __init__(self, what: str, advice: str) -> None:
        self.what = what
        self.advice = advice
        super().__init__(f"{what} {advice}")


_NOT_MOUNTED = (
    "The database has records, the data folder is empty.",
    "Mount its disk, or correct SDG_DATA_DIR or SDG_DATABASE_URL.",
)
_FOLDER_WITHOUT = (
    f"The database has an id, but the data folder has none (no file {ID_FILE}).",
    (
        "Mount its disk, or correct SDG_DATA_DIR or SDG_DATABASE_URL. If they belong together and only that file was lost, run "
        "'sd-gateway records adopt'."
    ),
)
_DATABASE_WITHOUT = (
    "The data folder has an id, but the database has none: it is missing, new, or a backup from before there were ids.",
    f"If it is the wrong one, correct SDG_DATABASE_URL. To use it with this folder, {_ADOPT}.",
)
_DIFFERENT = (
    "The database belongs to another data folder: their ids differ.",
    (
        "Correct SDG_DATA_DIR or SDG_DATABASE_URL. To use this folder with a new database, name one that does not exist yet and "
        f"{_ADOPT}."
    ),
)
_NO_IDS = (
    "Database and data folder have no ids yet.",
    "Correct SDG_DATA_DIR or SDG_DATABASE_URL, or start the gateway once: it gives them one.",
)
_NO_FOLDER = ("There is no such data folder.", "Mount its disk, or correct SDG_DATA_DIR.")
_NO_DATABASE = (
    "There is no such database.",
    (
        "Correct SDG_DATABASE_URL: the command needs the same settings as the service. A new gateway makes its database at its "
        "first start."
    ),
)
_NOT_MIGRATED = (
    "The database has the schema of an earlier version.",
    "Start the gateway once: it migrates the database.",
)


class Belonging:
    """The ids of one database and one data folder."""

    def __init__(self, database: Database, records: RecordStore) -> None:
        self.database = database
        self.records = records

    # -- starting ----------------------------------------------------------------------------------------------------

    def refuse_strangers(self) -> None:
        """Refuse a database and a folder that don't belong together. Nothing needs to exist, and nothing is changed.

        :raises Mismatch, DatabaseUnavailable, SchemaTooNew, RecordsError: the gateway must not start with them.
        """
        self.database.refuse_newer()
        self._judge()

    def _judge(self) -> None:
        ours, theirs = self._ids()
        if theirs is None and (ours is None or not ours.finished):
            self._refuse_empty_mount_point()
        elif theirs is None:
            raise Mismatch(*_FOLDER_WITHOUT)
        elif ours is None:
            raise Mismatch(*_DATABASE_WITHOUT)
        elif ours.value != theirs:
            raise Mismatch(*_DIFFERENT)

    def stamp(self) -> None:
        """Give both an id where they have none, or finish what another start began. The database must have been migrated.

        :raises Mismatch, DatabaseUnavailable, RecordsError: the gateway must not start with them.
        """
        self._judge()
        ours = database_id.read(self.database) or database_id.propose(self.database, secrets.token_hex(16))
        if not ours.finished:
            self.records.folder.give_id(ours.value)
            if self.records.folder.read_id() != ours.value:
                # Another database was first.
                raise Mismatch(*_DIFFERENT)
            database_id.assign(self.database, ours.value)
        self.records.folder.expect(ours.value)

    # -- running -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Ask, cheaply, whether both are still there and belong together.

        :raises StoreUnavailable: the folder's id is gone, unreadable or another one.
        :raises DatabaseUnavailable: the database can't be read.
        """
        try:
            theirs = self.records.folder.read_id()
        except StorageFailed as error:
            raise StoreUnavailable("The data folder cannot be read.") from error
        if theirs is None:
            raise StoreUnavailable("The data folder has lost its id: its disk may not be mounted.")
        ours = database_id.read(self.database)
        if ours is None or ours.value != theirs:
            raise StoreUnavailable("The data folder belongs to another database.")

    # -- upkeep ------------------------------------------------------------------------------------------------------

    def open_existing(self) -> None:
        """Use a database and a folder that exist and belong together. Nothing is made or migrated.

        :raises Mismatch, DatabaseUnavailable, SchemaTooNew, RecordsError: they can't be used.
        """
        self.refuse_missing_folder()
        self.refuse_missing_database()
        self.refuse_strangers()
        self.refuse_without_ids()
        self.open_migrated()

    def refuse_missing_folder(self) -> None:
        """:raises Mismatch: there is no data folder."""
        if not self.records.folder.exists:
            raise Mismatch(*_NO_FOLDER)

    def refuse_missing_database(self) -> None:
        """:raises Mismatch: there is no database."""
        if not self.database.exists:
            raise Mismatch(*(_NO_DATABASE if self.records.folder.read_id() is None else _DATABASE_WITHOUT))

    def refuse_without_ids(self) -> None:
        """:raises Mismatch: no gateway has started with this database and this folder."""
        if self.records.folder.read_id() is None:
            raise Mismatch(*_NO_IDS)

    def open_migrated(self) -> None:
        """:raises Mismatch, DatabaseUnavailable, SchemaTooNew: the database has not the schema of this version."""
        try:
            self.database.open_migrated()
        except SchemaTooOld as error:
            raise Mismatch(*_NOT_MIGRATED) from error

    def adopt(self, *, dry_run: bool = False) -> str:
        """Give the database the id of the data folder, or a folder that has lost its id that of the database; the id of both.

        The database is made and migrated where needed, the folder never. With ``dry_run`` nothing is changed.

        :raises Mismatch: that would take either away from another partner.
        :raises DatabaseUnavailable, SchemaTooNew, RecordsError: they can't be used.
        """
        self.refuse_missing_folder()
        self.database.refuse_newer()
        ours, theirs = self._ids()
        if theirs is None:
            self._refuse_empty_mount_point()
        elif ours is not None and ours.value != theirs and database_id.count_jobs(self.database):
            raise Mismatch(*_DIFFERENT)
        value = theirs or (ours.value if ours is not None else secrets.token_hex(16))
        if not dry_run:
            self.database.migrate()
            self.records.folder.give_id(value)
            database_id.assign(self.database, value)
        return value

    # -- both --------------------------------------------------------------------------------------------------------

    def _ids(self) -> tuple[DatabaseId | None, str | None]:
        """The ids of database and folder as they stood at one moment, while other processes may be stamping them."""
        ours = database_id.read(self.database)
        while True:
            theirs = self.records.folder.read_id()
            before, ours = ours, database_id.read(self.database)
            if before == ours:
                return ours, theirs

    def _refuse_empty_mount_point(self) -> None:
        if not self.records.folder.has_users and database_id.count_jobs(self.database, records=True):
            raise Mismatch(*_NOT_MOUNTED)
