"""The table of tokens: which there are, what they allow, and whether they are valid now.

The secret itself is never stored, but its SHA-256: of 190 random bits nobody finds another text with the same one. A token is never
removed, only revoked. So once one was made the gateway never takes itself for one that is open to everybody on its machine
(:mod:`app.gateway.access`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import and_, bindparam, case, func, insert, literal, or_, select, update

from app.jobs.model import to_json
from app.jobs.sql.database import Database
from app.jobs.sql.prepared import Prepared
from app.jobs.sql.schema import TOKENS, db_now
from app.runtime.jsontext import loads

#: What a token may allow. Each of the first three allows what stands before it, too; ``admin`` is apart.
Scope = Literal["read", "generate", "delete", "admin"]

HOUR: Final = 3600
_VALID: Final = and_(TOKENS.c.revoked_at.is_(None), or_(TOKENS.c.expires_at.is_(None), TOKENS.c.expires_at > db_now()))
_UNUSED: Final = or_(TOKENS.c.used_at.is_(None), TOKENS.c.used_at <= db_now() - HOUR)
_READ: Final = (
    *TOKENS.c,
    case((_VALID, literal(True)), else_=literal(False)).label("valid"),
    (TOKENS.c.expires_at - db_now()).label("seconds_left"),
    case((_UNUSED, literal(True)), else_=literal(False)).label("unused_for_an_hour"),
)
_ANY: Final = Prepared(select(func.count()).select_from(select(TOKENS.c.id).limit(1).subquery()))
_FIND: Final = Prepared(select(*_READ).where(TOKENS.c.id == bindparam("p_id")))


@dataclass(frozen=True, slots=True)
class Token:
    """One row. Times are seconds since 1970 by the database's clock; ``digest`` is the SHA-256 of the whole text in hexadecimal
    digits.

    :ivar users: user ids, or beginnings of them with ``*`` behind.
    :ivar limits: of this token alone; empty for none.
    :ivar lifetime: the seconds for which it was made; None for ever.
    :ivar valid: neither revoked nor expired when the row was read.
    :ivar seconds_left: until it expires, from when it was read; None if it never does.
    :ivar unused_for_an_hour: whether its use is to be noted: ``used_at`` is of an earlier hour.
    """

    id: str
    digest: str
    name: str
    scopes: frozenset[Scope]
    users: tuple[str, ...]
    limits: Mapping[str, Any]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    used_at: float | None
    lifetime: float | None
    valid: bool
    seconds_left: float | None
    unused_for_an_hour: bool

    @classmethod
    def of(cls, row: Any) -> Token:
        """The token that a row of :data:`_READ` holds."""
        values = row._asdict()
        return cls(
            **values
            | {
                "scopes": frozenset(loads(values["scopes"])),
                "users": tuple(loads(values["users"])),
                "limits": loads(values["limits"]),
            }
        )


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that is to be added; the members mean what they mean in :class:`Token`."""

    id: str
    digest: str
    name: str
    scopes: frozenset[Scope]
    users: tuple[str, ...]
    lifetime: float | None


class Tokens:
    """All tokens. Raises DatabaseUnavailable from every method."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def exist(self) -> bool:
        """Whether a token was ever made."""
        with self.database.read() as connection:
            return bool(_ANY.first(connection)[0])

    def find(self, token_id: str) -> Token | None:
        """The token with this id, valid or not."""
        with self.database.read() as connection:
            row = _FIND.first(connection, {"p_id": token_id})
        return None if row is None else Token.of(row)

    def all(self) -> list[Token]:
        """Every token, the oldest first."""
        with self.database.read() as connection:
            rows = connection.execute(select(*_READ).order_by(TOKENS.c.created_at, TOKENS.c.id))
            return [Token.of(row) for row in rows]

    def invalid(self, ids: Collection[str]) -> set[str]:
        """Those of these that are not valid now."""
        with self.database.read() as connection:
            query = select(TOKENS.c.id).where(TOKENS.c.id.in_(sorted(ids)), _VALID)
            return set(ids) - set(connection.execute(query).scalars())

    def add(self, new: NewToken) -> None:
        """Add a token, which is valid from now on."""
        with self.database.write() as connection:
            connection.execute(insert(TOKENS).values(_values(new)))

    def replace(self, old_id: str, overlap: float, new: NewToken) -> None:
        """Add a token in place of another one, which expires in ``overlap`` seconds unless it does so earlier: both or neither."""
        end = db_now() + overlap
        later = or_(TOKENS.c.expires_at.is_(None), TOKENS.c.expires_at > end)
        with self.database.write() as connection:
            connection.execute(insert(TOKENS).values(_values(new)))
            connection.execute(update(TOKENS).where(TOKENS.c.id == old_id, later).values(expires_at=end))

    def revoke(self, token_id: str) -> bool:
        """Make a token invalid for good; False when it is revoked already or there is none."""
        mine = and_(TOKENS.c.id == token_id, TOKENS.c.revoked_at.is_(None))
        with self.database.write() as connection:
            return connection.execute(update(TOKENS).where(mine).values(revoked_at=db_now())).rowcount > 0

    def note_use(self, ids: Collection[str]) -> None:
        """Note that these are used now, to the hour."""
        with self.database.write(flushed=False) as connection:
            now = float(connection.execute(select(db_now())).scalar_one())
            used = update(TOKENS).where(TOKENS.c.id.in_(sorted(ids))).values(used_at=now // HOUR * HOUR)
            connection.execute(used)


def _values(new: NewToken) -> dict[str, Any]:
    """The row of a new token."""
    return {
        "id": new.id,
        "digest": new.digest,
        "name": new.name,
        "scopes": to_json(sorted(new.scopes)),
        "users": to_json(list(new.users)),
        "limits": "{}",
        "created_at": db_now(),
        "expires_at": None if new.lifetime is None else db_now() + new.lifetime,
        "lifetime": new.lifetime,
    }
