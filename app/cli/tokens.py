"""``sd-gateway tokens``: make, list, revoke and rotate tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from app import startup
from app.cli.opening import loaded, make_instance, with_services
from app.cli.speaking import note, system_user
from app.config import load
from app.gateway.tokens import INCLUDED, MadeToken
from app.jobs.tokens import Scope, Token
from app.runtime import audit
from app.services import Services

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
#: More seconds than anybody plans ahead; the end of a token stays a date.
_LONGEST: Final = 100 * 365 * 86_400


class _Duration(click.ParamType[int]):
    """A length of time, such as ``24h`` or ``365d``, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the text."""
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", str(value))
        seconds = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 0 < seconds <= _LONGEST:
            self.fail(f"{value!r} is no length of time such as 24h or 365d.", param, ctx)
        return seconds


def _scopes(_context: Any, _parameter: Any, text: str) -> list[Scope]:
    names = [name.strip() for name in text.split(",")]
    known = [scope for scope in INCLUDED if scope in names]
    if len(known) != len(names):
        raise click.BadParameter(f"the scopes are {', '.join(INCLUDED)}, separated by commas")
    return known


@click.group()
def tokens() -> None:
    """Look after the tokens."""


@tokens.command()
@click.option("--name", required=True, help="For people, to tell tokens apart.")
@click.option(
    "--users",
    multiple=True,
    default=["*"],
    show_default=True,
    metavar="ID",
    help="A user id, or the beginning of some with * behind ('shop-*'); may be given again.",
)
@click.option(
    "--scopes",
    default="read,generate,delete",
    show_default=True,
    callback=_scopes,
    help="generate includes read, delete includes both; admin is for operators.",
)
@click.option("--expires", type=_Duration(), help="When it expires, such as 365d; never without it.")
def create(name: str, users: Sequence[str], scopes: list[Scope], expires: int | None) -> None:
    """Make a token and print it, once; make the instance folder and the database if they are missing."""
    make_instance(loaded(load))

    def make(services: Services) -> MadeToken:
        return services.create_token(name=name, users=list(users), scopes=scopes, seconds=expires)

    new = with_services(make, startup.open_services)
    _note("token-created", new.token)
    _show_new(new)


@tokens.command("list")
def list_tokens() -> None:
    """Print all tokens, the oldest first: never the secrets."""
    for token in with_services(lambda services: services.token_book.all()):
        users, scopes = " ".join(token.users), ",".join(sorted(token.scopes))
        click.echo(
            f"{token.id}  {_state(token):8}  {token.name}  users: {users}  scopes: {scopes}  used: {_time(token.used_at)}"
        )


@tokens.command()
@click.argument("token_id", metavar="ID")
def show(token_id: str) -> None:
    """Print the name, users, scopes and dates of the token with this ID."""
    token = with_services(lambda services: services.token_book.get(token_id))
    rows = {
        "id": token.id,
        "name": token.name,
        "state": _state(token),
        "users": " ".join(token.users),
        "scopes": ",".join(sorted(token.scopes)),
        "created": _time(token.created_at),
        "expires": _time(token.expires_at),
        "revoked": _time(token.revoked_at),
        "last used": _time(token.used_at, "%Y-%m-%d %H:00"),
    }
    for name, text in rows.items():
        click.echo(f"{name:10}{text}")


@tokens.command()
@click.argument("token_id", metavar="ID")
def revoke(token_id: str) -> None:
    """Make the token with this ID invalid for good; its streams and waiting requests end within 10 s."""
    revoked = with_services(lambda services: services.revoke_token(token_id))
    if revoked:
        audit.audit("token-revoked", token=token_id, by=system_user())
    click.echo("the token is revoked" if revoked else "the token was revoked already")


@tokens.command()
@click.argument("token_id", metavar="ID")
@click.option("--overlap", type=_Duration(), default="24h", show_default=True, help="How long the old one stays valid.")
def rotate(token_id: str, overlap: int) -> None:
    """Make a new token in place of the one with this ID, and print it."""
    new = with_services(lambda services: services.rotate_token(token_id, overlap))
    _note("token-rotated", new.token, replaces=token_id)
    _show_new(new)


def _note(event: str, token: Token, replaces: str | None = None) -> None:
    """Write the line of the audit log about a new token."""
    users, scopes = " ".join(token.users), ",".join(sorted(token.scopes))
    audit.audit(event, token=token.id, name=token.name, users=users, scopes=scopes, replaces=replaces, by=system_user())


def _show_new(new: MadeToken) -> None:
    note(f"the token {new.token.id} ({new.token.name}); it is not shown again:")
    click.echo(new.text)


def _state(token: Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "valid" if token.valid else "expired"


def _time(seconds: float | None, form: str = "%Y-%m-%d %H:%M") -> str:
    return "never" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):{form}} UTC"
