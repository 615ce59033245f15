"""Reads of the job table: jobs by name, pages of them, their places in the queue, and what waiting jobs need of a WebUI."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

from sqlalchemy import and_, select, tuple_

from app.jobs import places
from app.jobs.errors import JobLost, JobNotFound
from app.jobs.model import NOWHERE, Claim, Identity, Job, Place
from app.jobs.places import Outlook
from app.jobs.rows import AFTER_ALL, by_name, found, portions
from app.jobs.sql import statements as sql
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import JOBS, QUEUED, REFUSALS, REQUIREMENTS, RUNNING, SUCCEEDED, db_now
from app.runtime.jsontext import loads

_LATE_HEARTBEAT_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Refused:
    """A queued job, the canonical JSON of what it needs of a WebUI, and the slots that it is not sent to again."""

    job: Job
    requirements: str
    slots: set[str]


def _always(_job: Job) -> bool:
    return True


class JobQueries:
    """Reads the job table and changes nothing. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database
        #: Gives what the WebUIs offer at the moment; set once, by those who can read catalogues.
        self.judge: Callable[[], places.Offers | None] = lambda: None

    def get(self, user_id: str, type_: str, name: str) -> Job:
        """One job by the names that clients use.

        :raises JobNotFound: there is none, or it was deleted.
        """
        with self.database.read() as connection:
            return by_name(connection, Identity(user_id, type_, name))

    def current(self, job: Identity) -> Job:
        """A job that was accepted, as it is now.

        :raises JobNotFound: it was deleted.
        :raises JobLost: there is no row of it any more.
        """
        with self.database.read() as connection:
            row = sql.BY_NAME.first(connection, sql.named(job))
            if row is None and sql.ANY_NAMED.first(connection, sql.named(job)) is None:
                raise JobLost
            return found(row)

    def images(self, user_id: str, type_: str, name: str) -> list[dict[str, Any]]:
        """The images of one job, its reference image last: a narrow query, since every picture that is served needs it.

        :raises JobNotFound: there is no such job, or it was deleted.
        """
        with self.database.read() as connection:
            row = sql.IMAGES.first(connection, sql.named(Identity(user_id, type_, name)))
        if row is None:
            raise JobNotFound
        images, init_image = row
        listed: list[dict[str, Any]] = loads(images) if images else []
        return listed + ([loads(init_image)] if init_image else [])

    def named(self, jobs: Collection[Identity]) -> dict[Identity, Job]:
        """Those of these jobs that exist."""
        found: dict[Identity, Job] = {}
        with self.database.read() as connection:
            for names in portions([job.name for job in jobs]):
                rows = connection.execute(sql.JOBS_NAMED, {"p_names": names}).all()
                found |= {job.identity: job for job in map(Job.of, rows)}
        return {job: found[job] for job in jobs if job in found}

    def running(self) -> dict[Identity, Job]:
        """All jobs that run; there are few, as each has a WebUI or its answer is being stored."""
        with self.database.read() as connection:
            return {job.identity: job for job in map(Job.of, sql.RUNNING_JOBS.all(connection))}

    def unfinished(self, user_id: str, limit: int) -> list[Job]:
        """The unfinished jobs of a user in the order of acceptance, at most ``limit``."""
        with self.database.read() as connection:
            rows = sql.UNFINISHED_OF_USER.all(connection, {"p_user": user_id, "p_limit": limit})
            return [Job.of(row) for row in rows]

    def history(
        self, user_id: str, type_: str, limit: int, before: int | None, wanted: Callable[[Job], bool] = _always
    ) -> list[Job]:
        """Succeeded jobs of one type, newest first, below the number ``before``.

        :param wanted: asked for each in turn; the first one that it refuses ends the list, and no later one is read.
        """
        return self._page(sql.HISTORY, {"p_user": user_id, "p_type": type_}, limit, before, wanted)

    def of_user(
        self, user_id: str, status: str | None, limit: int, before: int | None, wanted: Callable[[Job], bool] = _always
    ) -> list[Job]:
        """Jobs of both types in any state, or in one; parameters as :meth:`history` has them."""
        if status is None:
            return self._page(sql.OF_USER, {"p_user": user_id}, limit, before, wanted)
        return self._page(sql.OF_USER_IN, {"p_user": user_id, "p_status": status}, limit, before, wanted)

    def _page(
        self,
        statement: Prepared,
        where: dict[str, Any],
        limit: int,
        before: int | None,
        wanted: Callable[[Job], bool],
    ) -> list[Job]:
        page = {"p_before": AFTER_ALL if before is None else before, "p_limit": limit}
        with self.database.read() as connection, closing(statement.walk(connection, where | page)) as rows:
            return [*takewhile(wanted, map(Job.of, rows))]

    def succeeded(self, after: int, limit: int) -> list[Job]:
        """Succeeded jobs in the order of acceptance, above the number ``after``: to walk through all of them."""
        with self.database.read() as connection:
            rows = connection.execute(
                select(*sql.COLUMNS)
                .where(JOBS.c.seq > after, JOBS.c.status == SUCCEEDED)
                .order_by(JOBS.c.seq)
                .limit(limit)
            )
            return [Job.of(row) for row in rows]

    def rows_named(self, name: str, type_: str) -> list[tuple[Job, bool]]:
        """Every row with this name, deleted ones too, each with whether its lease is live; for the sweep.

        A lease that ran out a moment ago counts: its owner may be alive and just not have renewed yet, and may still finish.
        """
        live = and_(JOBS.c.status == RUNNING, JOBS.c.lease_expires > db_now() - _LATE_HEARTBEAT_SECONDS).label("live")
        with self.database.read() as connection:
            rows = connection.execute(select(*sql.COLUMNS, live).where(JOBS.c.name == name, JOBS.c.type == type_))
            return [(Job.of(row), bool(row.live)) for row in rows]

    def place(self, job: Job) -> Place:
        """The position of an unfinished job in the queue, and the seconds until it ends at the speeds measured so far."""
        return self.places([job])[job.identity]

    def places(self, jobs: Collection[Job]) -> dict[Identity, Place]:
        """The places of jobs that were read just now, in one pass over the queue."""
        if all(job.finished for job in jobs):
            return dict.fromkeys((job.identity for job in jobs), NOWHERE)
        offers = self.judge()
        with self.database.read() as connection:
            return places.places(connection, jobs, offers)

    def outlook(self) -> Outlook:
        """What has to change for :meth:`places` to find other places for the same jobs, as long as none of them changes."""
        with self.database.read() as connection:
            return places.Snapshot(connection).outlook()

    def seconds_until_room(self) -> float:
        """Seconds until the next unfinished job is likely to end; for Retry-After."""
        with self.database.read() as connection:
            return places.seconds_until_room(connection)

    def requirements_after(self, known: int) -> Sequence[tuple[int, str]]:
        """Requirements with a number above ``known``, as (number, canonical JSON)."""
        with self.database.read() as connection:
            rows = sql.REQUIREMENTS_AFTER.all(connection, {"p_known": known})
            return [(row.id, row.body) for row in rows]

    def queued_requirements(self) -> Mapping[int, str]:
        """The requirements that queued jobs have."""
        with self.database.read() as connection:
            waiting = select(JOBS.c.requirements_id).where(JOBS.c.status == QUEUED).distinct()
            rows = connection.execute(
                select(REQUIREMENTS.c.id, REQUIREMENTS.c.body).where(REQUIREMENTS.c.id.in_(waiting))
            )
            return {row.id: row.body for row in rows}

    def refused(self) -> list[Refused]:
        """The queued jobs that some WebUI is not to get again."""
        # The list makes SQLite look jobs up by name; from the join alone it reads every row of the table.
        named = tuple_(JOBS.c.name, JOBS.c.type, JOBS.c.user_id).in_(
            select(REFUSALS.c.name, REFUSALS.c.type, REFUSALS.c.user_id)
        )
        with self.database.read() as connection:
            rows = connection.execute(
                select(*sql.COLUMNS, REQUIREMENTS.c.body, REFUSALS.c.slot.label("refused_by"))
                .select_from(
                    JOBS.join(REFUSALS, sql.REFUSES_JOB).join(REQUIREMENTS, REQUIREMENTS.c.id == JOBS.c.requirements_id)
                )
                .where(named, JOBS.c.status == QUEUED)
                .order_by(JOBS.c.seq)
            ).all()
        found: dict[int, Refused] = {}
        for row in rows:
            found.setdefault(row.seq, Refused(Job.of(row), row.body, set())).slots.add(row.refused_by)
        return list(found.values())

    def wants(self, claim: Claim) -> bool:
        """Whether the job's row still shows this claim, and nobody has asked for the end of the job."""
        with self.database.read() as connection:
            return sql.STILL_WANTED.first(connection, sql.owned_by(claim)) is not None

    def shares_number(self, claim: Claim) -> bool:
        """Whether the job's row shows another claim with the number of this one, whose files then have the same names.

        So it is after the database has lost this claim but not the job, as a replica that lagged behind does.
        """
        with self.database.read() as connection:
            row = sql.CLAIM_SHOWN.first(connection, sql.named(claim.job.identity))
        return row is not None and row.claims == claim.attempt and row.task_id != claim.task_id

    def seconds_since_watched(self, claim: Claim) -> float | None:
        """Seconds since a client watched the claimed job; None when nobody did, or the claim is lost."""
        with self.database.read() as connection:
            row = sql.SECONDS_SINCE_WATCHED.first(connection, sql.owned_by(claim))
            return None if row is None else row.seconds
