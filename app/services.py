"""Builds the long-lived objects of a process and wires them: nothing else knows them all."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.config import SIMULATOR, Config, WebuiAddress, is_loopback_port
from app.gateway.accept import Acceptance
from app.gateway.access import Access
from app.gateway.archive import Archive
from app.gateway.generate import WebuiBackend, hopeless_requirements, restarts_needed, serving_webuis
from app.gateway.identity import Belonging
from app.gateway.maintenance import Maintenance, Upkeep
from app.gateway.offering import Offering
from app.gateway.overview import Overview
from app.gateway.results import refused_everywhere
from app.gateway.revocation import Revocation
from app.gateway.signing import Signing, load_keys
from app.gateway.tokens import MadeToken, TokenBook
from app.gateway.waiting import LongPolls
from app.gateway.watching import Watching
from app.jobs.changes import Changes
from app.jobs.events import Announcer, Transition
from app.jobs.model import Failure, Identity
from app.jobs.notifications import ACCEPTED, CHANGED, END_WANTED, REFRESH_WANTED, TOKENS_CHANGED, Notifier
from app.jobs.slot_keys import rename_slots
from app.jobs.slots import Slots
from app.jobs.sql.database import Database
from app.jobs.sql.space import Space
from app.jobs.table import JobTable
from app.jobs.tables import Tables
from app.jobs.tokens import Scope, Tokens
from app.jobs.waiters import Waiters
from app.jobs.worker.election import HostLock
from app.jobs.worker.supervisor import Duties, Worker
from app.parameters import PARAMETERS, Parameters
from app.records.store import RecordStore
from app.runtime.addresses import is_loopback_address
from app.runtime.failpoints import crash_at
from app.simulator import SimulatorServer, SimulatorSettings
from app.webui.client import Webui
from app.webui.presets import Presets, load_presets

_LOG = logging.getLogger(__name__)

_FINISHED = b"finished "
_FAILED_TOKEN = b"bad token "


@dataclass
class _Notifications:
    """Passes notifications between the processes of this host, once the process has started; before that only within it."""

    waiters: Waiters
    changes: Changes
    access: Access | None = None
    revocation: Revocation | None = None
    wake: Notifier | None = None
    worker: Worker | None = None

    def transition(self, transition: Transition) -> None:
        """Notify at once those whose time matters: a worker that a job waits or is to end, clients that theirs has ended."""
        if transition.event == "accepted":
            self.accepted()
        if transition.is_end:
            self.finished(transition.job.identity)
        if transition.stops_an_attempt:
            self._tell(END_WANTED)

    def logged(self, transition: Transition) -> None:
        """Notify those who watch, off the path where the time matters."""
        if transition.event != "sent" and not transition.is_end:
            self._tell(CHANGED)

    def accepted(self) -> None:
        """Notify the worker of this host that a job waits."""
        if self.worker is not None and self.worker.works:
            # The only worker of this host runs in this process, so no other process needs this notification.
            self.heard(ACCEPTED)
        else:
            self._tell(ACCEPTED)

    def finished(self, job: Identity) -> None:
        """Notify the processes of this host that a job ended."""
        # A user id may hold spaces, so it comes last.
        self._tell(_FINISHED + f"{job.type} {job.name} {job.user_id}".encode())

    def refresh_wanted(self) -> None:
        """Notify the workers of this host that a refresh of the catalogues is wanted."""
        self._tell(REFRESH_WANTED)

    def tokens_changed(self) -> None:
        """Notify the processes of this host that a token was made, revoked or rotated."""
        self._tell(TOKENS_CHANGED)

    def token_failed(self, address: str) -> None:
        """Notify the processes of this host that a client has used a bad token."""
        self._tell(_FAILED_TOKEN + address.encode())

    def _tell(self, message: bytes) -> None:
        if self.wake is not None:
            self.wake.tell(message)
        else:
            self.heard(message)

    def heard(self, message: bytes) -> None:
        """Act on a notification from this process or another."""
        if message == ACCEPTED and self.worker is not None:
            self.worker.wake()
        elif message == REFRESH_WANTED and self.worker is not None:
            self.worker.refresh_soon()
        elif message == CHANGED:
            self.changes.read_soon()
        elif message == END_WANTED and self.worker is not None:
            self.worker.renew_soon()
        elif message == TOKENS_CHANGED or message.startswith(_FAILED_TOKEN):
            self._heard_of_tokens(message)
        elif message.startswith(_FINISHED):
            self.changes.read_soon()
            parts = message.removeprefix(_FINISHED).decode("utf-8", "replace").split(" ", 2)
            if len(parts) == len(Identity._fields):
                type_, name, user_id = parts
                self.waiters.finished(Identity(user_id, type_, name))

    def _heard_of_tokens(self, message: bytes) -> None:
        if self.access is None or self.revocation is None:
            return
        if message == TOKENS_CHANGED:
            self.access.tokens_changed()
            self.revocation.tokens_changed()
        else:
            self.access.failures.add(message.removeprefix(_FAILED_TOKEN).decode("utf-8", "replace"))


@dataclass
class Services:
    """The long-lived objects of one process; :func:`build` makes it.

    Nothing runs before :meth:`start`. A process that is about to stop calls :meth:`begin_drain` and then :meth:`drain`.
    """

    config: Config
    database: Database
    tables: Tables
    records: RecordStore
    identity: Belonging
    offering: Offering
    changes: Changes
    waiters: Waiters
    watching: Watching
    long_polls: LongPolls
    acceptance: Acceptance
    archive: Archive
    access: Access
    revocation: Revocation
    signing: Signing
    overview: Overview
    maintenance: Maintenance
    upkeep: Upkeep
    announcer: Announcer
    notifications: _Notifications
    worker: Worker | None = None
    simulator: SimulatorServer | None = field(default=None, repr=False)
    #: Whether the server listens to TCP ports of loopback addresses alone.
    listens_to_loopback: bool = False

    @property
    def token_book(self) -> TokenBook:
        """The tokens, for those who make them."""
        return TokenBook(Tokens(self.database))

    @property
    def table(self) -> JobTable:
        """The job table."""
        return self.tables.jobs

    @property
    def slots(self) -> Slots:
        """The slots of the WebUIs."""
        return self.tables.slots

    @property
    def parameters(self) -> Parameters:
        """The table of request fields."""
        return self.offering.parameters

    # -- what the API asks -------------------------------------------------------------------------------------------

    def options(self) -> dict[str, Any]:
        """The names that a request may use."""
        return self.offering.options()

    def readiness(self) -> list[str]:
        """The reasons why no picture can be made now, in words; empty when all is well.

        :raises DatabaseUnavailable, StoreUnavailable: nothing can be accepted.
        """
        self.database.check()
        self.records.folder.check()
        self.identity.check()
        catalogues, default_model = self.offering.catalogues_and_default_model()
        reasons = {
            "No worker is running.": not self.slots.worker_alive(),
            "No WebUI answers.": not self.slots.any_up(),
            **dict.fromkeys(restarts_needed(self.slots.doubts()), True),
            "No WebUI has told what it offers yet: requests are refused with 503 (no-catalogue).": not catalogues,
            "No default model is known: requests that name none are refused with 503 (no-default-model).": bool(
                catalogues
            )
            and default_model is None,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def notices(self) -> list[str]:
        """What an operator should know although all is well, in words.

        :raises DatabaseUnavailable: it can't be read.
        """
        paused = "The queue is paused: requests are accepted and wait until 'sd-gateway queue resume'."
        return [paused] if self.tables.queue.paused() else []

    # -- the queue as a whole ----------------------------------------------------------------------------------------

    def resume_queue(self) -> bool:
        """Start jobs again, and tell the workers of this host; False when they are started anyway.

        :raises DatabaseUnavailable: nothing was changed.
        """
        resumed = self.tables.queue.resume()
        self.notifications.accepted()
        return resumed

    # -- tokens ------------------------------------------------------------------------------------------------------

    def create_token(
        self, *, name: str, users: Sequence[str], scopes: Sequence[Scope], seconds: float | None
    ) -> MadeToken:
        """Make a token, and have the processes of this host ask for one from now on; see :meth:`TokenBook.create`."""
        new = self.token_book.create(name=name, users=users, scopes=scopes, seconds=seconds)
        self.notifications.tokens_changed()
        return new

    def revoke_token(self, token_id: str) -> bool:
        """Make a token invalid, in the processes of this host at once; see :meth:`TokenBook.revoke`."""
        revoked = self.token_book.revoke(token_id)
        self.notifications.tokens_changed()
        return revoked

    def rotate_token(self, token_id: str, overlap: float) -> MadeToken:
        """Replace a token; see :meth:`TokenBook.rotate`."""
        new = self.token_book.rotate(token_id, overlap)
        self.notifications.tokens_changed()
        return new

    # -- life --------------------------------------------------------------------------------------------------------

    def listens_at(self, addresses: Sequence[Any]) -> None:
        """Note where the server of this process listens: ``getsockname()`` of its sockets."""
        self.listens_to_loopback = all(map(is_loopback_address, addresses))

    def start(self, *, worker: bool, elected: bool = True) -> None:
        """Open the notification channel; with ``worker`` also start the worker, by default only if this host elects it."""
        folder = self.database.folder or self.config.data_dir
        self.notifications.wake = Notifier(folder, self.notifications.heard)
        if worker:
            lock = HostLock(self.config.data_dir / f".worker-{self.config.host_id}.lock") if elected else None
            self.worker = self.notifications.worker = self._make_worker(lock)
            self.worker.start()

    def _make_worker(self, lock: HostLock | None) -> Worker:
        duties = Duties(self._backends, self.archive.tidy, self._look_after)
        return Worker(self.tables, self.config.host_id, duties, self.announcer, lock)

    def _backends(self) -> list[WebuiBackend]:
        for old, new in rename_slots(self.database, self.config.current_slot_key).items():
            _LOG.info("the slot %s of an earlier version is now %s", old, new)
        return [self._backend(address) for address in self.config.webuis]

    def _backend(self, address: WebuiAddress) -> WebuiBackend:
        if address.url == SIMULATOR:
            self.simulator = SimulatorServer(SimulatorSettings())
            self.simulator.start()
            address = WebuiAddress(address.key, self.simulator.url)
        webui = Webui(address, job_timeout=self.config.job_timeout)
        return WebuiBackend(webui, self.tables, self.records, self.offering, self.config)

    def _look_after(self) -> None:
        """Fail the waiting jobs that no configured WebUI can serve any more; now and then, remove what is left over."""
        self.upkeep.step()
        self.table.deletion.forget_refusals()
        catalogues, configured = self.offering.catalogues(), self.slots.configured()
        hopeless = hopeless_requirements(dict(self.table.queries.queued_requirements()), catalogues, configured)
        if hopeless:
            gone = Failure("no-longer-available", "No WebUI offers any more what this job was accepted with.")
            self._fail_queued(gone, requirement_sets=hopeless)
        for refused in self.table.queries.refused():
            serving = serving_webuis(refused.requirements, catalogues, configured)
            failure = refused_everywhere(refused.job, refused.slots, serving)
            if failure is not None:
                self._fail_queued(failure, jobs=[refused.job.identity])

    def _fail_queued(
        self, failure: Failure, *, requirement_sets: Sequence[int] = (), jobs: Sequence[Identity] = ()
    ) -> None:
        for job in self.table.losses.fail_queued(failure, requirement_sets=requirement_sets, jobs=jobs):
            self.announcer.announce(Transition("failed", job, slug=failure.slug))

    def begin_drain(self) -> None:
        """Answer every waiter now and take no more jobs; what runs goes on."""
        self.waiters.drain()
        self.watching.drain()
        if self.worker is not None:
            self.worker.stop_claiming()

    def drain_soon(self) -> None:
        """Begin to drain in a thread of its own: the caller is the main thread, which serves those who are answered by that."""
        threading.Thread(target=self.begin_drain, name="drain", daemon=True).start()

    def drain(self) -> None:
        """Stop: what runs is finished within ``SDG_DRAIN_TIMEOUT``, or interrupted and given back."""
        self.begin_drain()
        if self.worker is not None:
            self.worker.drain(self.config.drain_timeout)
        self.changes.end()
        self.revocation.stop()
        if self.simulator is not None:
            self.simulator.stop()
        if self.notifications.wake is not None:
            wake, self.notifications.wake = self.notifications.wake, None
            wake.close()
        self.database.close()


def build(config: Config, parameters: Parameters = PARAMETERS) -> Services:
    """Make the objects of one process, and the data folder and the database where they are missing; migrate the database.

    :param parameters: the table of request fields.
    :raises Mismatch: database and data folder don't belong together; nothing was changed in them.
    :raises DatabaseUnavailable, SchemaTooNew: the database can't be used.
    :raises StoreUnavailable, StorageFailed: the data folder can't be made or read.
    :raises PresetError: styles.toml can't be read.
    """
    # The database last: what can't be used with it changes nothing in it.
    presets, identity = _presets(config), identity_of(config)
    with _closed_on_failure(identity):
        identity.refuse_strangers()
        identity.records.folder.prepare()
        identity.database.migrate()
        identity.stamp()
        keys = load_keys(config.secret_keys, config.instance, make=True)
        return _wire(config, _Read(presets, keys), identity, parameters)


def build_on_existing(config: Config) -> Services:
    """Make the objects of one process on a database and a data folder that exist and belong together; both stay as they are.

    :raises Mismatch: they don't exist, don't belong together, or must be migrated first.
    :raises DatabaseUnavailable, SchemaTooNew, StorageFailed, PresetError: see :func:`build`.
    """
    presets, identity = _presets(config), identity_of(config)
    with _closed_on_failure(identity):
        identity.open_existing()
        keys = load_keys(config.secret_keys, config.instance, make=False)
        return _wire(config, _Read(presets, keys), identity)


@contextlib.contextmanager
def _closed_on_failure(identity: Belonging) -> Iterator[None]:
    """Close the database when the body raises, so that SQLite leaves no files beside one that was only looked at."""
    try:
        yield
    except BaseException:
        identity.database.close()
        raise


def identity_of(config: Config) -> Belonging:
    """The ids of the configured database and data folder, neither of which was touched."""
    failpoints = crash_at(config.crash_at)
    records = RecordStore(config.data_dir, failpoints, config.variant_cache_mb * 2**20, _variant_makers(config.threads))
    return Belonging(Database(config.database_url, failpoints), records)


def _variant_makers(threads: int) -> int:
    """How many threads of a process may make variants: half, for a page of new thumbnails and for everything else."""
    return max(threads // 2, 1)


def _presets(config: Config) -> Presets:
    return load_presets(config.instance / "styles.toml")


def _wire_followers(config: Config, table: JobTable, changes: Changes) -> tuple[Waiters, Watching]:
    waiters = Waiters(table, changes, config.max_waiters)
    watching = Watching(table, changes, config.max_streams)
    for follower in (waiters, watching):
        changes.add(follower)
    return waiters, watching


def _wire_access(database: Database, notifications: _Notifications) -> tuple[Access, Revocation]:
    tokens = Tokens(database)
    revocation = Revocation(tokens)
    access = Access(tokens, notifications.token_failed, revocation.note_use)
    notifications.access, notifications.revocation = access, revocation
    return access, revocation


@dataclass(frozen=True)
class _Read:
    """What was read from the instance folder."""

    presets: Presets
    keys: Mapping[str, bytes]


def _wire(config: Config, read: _Read, identity: Belonging, parameters: Parameters = PARAMETERS) -> Services:
    database, records = identity.database, identity.records
    tables = Tables.of(database)
    table = tables.jobs
    changes = Changes(table.revisions)
    waiters, watching = _wire_followers(config, table, changes)
    notifications = _Notifications(waiters, changes)
    access, revocation = _wire_access(database, notifications)
    offering = Offering(
        tables.slots, tables.catalogues, read.presets, config.default_model, parameters, notifications.refresh_wanted
    )
    table.queries.judge = offering.judge
    announcer = Announcer([notifications.transition], [notifications.logged])
    archive = Archive(table, records, announcer)
    return Services(
        config=config,
        database=database,
        tables=tables,
        records=records,
        identity=identity,
        offering=offering,
        changes=changes,
        waiters=waiters,
        watching=watching,
        long_polls=LongPolls(table, waiters),
        acceptance=Acceptance(config, table, waiters, offering, records, announcer),
        archive=archive,
        access=access,
        revocation=revocation,
        signing=Signing(read.keys),
        listens_to_loopback=is_loopback_port(config.bind),
        overview=Overview(tables, offering),
        maintenance=Maintenance(table, records),
        upkeep=Upkeep(table, Space(database), records, archive),
        announcer=announcer,
        notifications=notifications,
    )
