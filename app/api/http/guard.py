"""Authorization of every request, before its path and body are checked and before any view.

Credentials, in this order: none for a public endpoint; the signature of a URL; a bearer token, or the cookie of a session that
stands for one; as long as the database has no token, local requests need none. Then the users that path, query and body name must
be covered by the token (404, whether they exist or not), and then its scopes must suffice (403).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, cast
from urllib.parse import urlsplit

from flask import Flask, current_app, g
from flask.globals import request_ctx
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import MethodNotAllowed

from app.api.http.openness import OnlyThisMachine, Openness
from app.api.http.refusals import CrossSite, NotFound, RefusalError, ScopeMissing, TokenMissing
from app.api.http.request import GatewayRequest, present_request
from app.gateway.access import ANYBODY, Access, Caller, TokenInvalid, TooManyFailures
from app.gateway.revocation import Hold, Revocation
from app.gateway.signing import BadSignature, Signature, SignedPicture, SignedStream, Signing
from app.jobs.errors import JobsError
from app.jobs.tokens import Scope
from app.runtime import audit
from app.runtime.logs import TOKEN

#: The key of ``app.extensions`` that holds the guard, and the cookie of a session.
EXTENSION: Final = "sd-gateway.guard"
COOKIE: Final = "sdg_session"

#: Nobody needs a token for these endpoints. Every other one, and a path that is none, needs one.
PUBLIC: Final = frozenset(
    (
        "health.get_liveness",
        "health.get_readiness",
        "docs.page",
        "docs.start",
        "docs.assets",
        "api-docs.openapi_json",
        "session.create_session",
        "session.delete_session",
    )
)
#: What a request needs by its method, and the endpoints that differ.
_BY_METHOD: Final[Mapping[str, Scope]] = {"GET": "read", "HEAD": "read", "POST": "generate", "DELETE": "delete"}
_BY_ENDPOINT: Final[Mapping[str, Scope]] = {"queue.list_webuis": "admin", "sign.create_signed_urls": "read"}
#: The endpoints for which a signature may stand in for a token, and what is signed then.
_SIGNED: Final[Mapping[str, type[SignedPicture | SignedStream]]] = {
    "files.get_image": SignedPicture,
    "events.list_job_events": SignedStream,
    "events.list_user_events": SignedStream,
}
_OF_THE_SIGNATURE: Final = Signature._fields
#: What else a signed URL may hold, all of which is signed.
_QUERY: Final[Mapping[type, frozenset[str]]] = {
    SignedPicture: frozenset(("size", "format", "download")),
    SignedStream: frozenset(("sign",)),
}
_READ: Final[frozenset[Scope]] = frozenset(("read",))
_SAFE: Final = frozenset(("GET", "HEAD"))


class Guard:
    """The check of every request.

    :param openness: judges requests while no token was made; None where no request needs a token (``SDG_AUTH=none``).
    :param public_url: the setting, whose origin is that of our own pages.
    """

    def __init__(
        self, access: Access, signing: Signing, revocation: Revocation, openness: Openness | None, public_url: str
    ) -> None:
        self._access = access
        self._signing = signing
        self._revocation = revocation
        self._openness = openness
        self._own_host = urlsplit(public_url).netloc

    def init_app(self, app: Flask) -> None:
        """Have every request of an application judged."""
        app.extensions[EXTENSION] = self
        app.before_request(self.judge)

    # -- the judgement -----------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Authorize the current request, and store its caller for :func:`caller`.

        :raises Exception: with a slug, when it is refused or can't be judged.
        """
        asked = present_request()
        method, endpoint = asked.method, asked.endpoint
        if method == "OPTIONS" or endpoint in PUBLIC:
            return
        found = self._caller_by_signature(asked) or self._caller_by_token(asked)
        asked.environ[TOKEN] = found.token
        g.caller = found
        if not all(map(found.acts_for, _named_users(asked))):
            raise _nothing()
        needed = _BY_ENDPOINT.get(endpoint or "", _BY_METHOD.get(method, "admin"))
        if asked.routing_exception is None and needed not in found.scopes:
            if method == "POST" and not asked.view_args:
                check_posted_user(asked.document)
            raise ScopeMissing(needed)

    def recognises(self) -> bool:
        """Whether the sender of the present request, which is to a public endpoint, could ask for more."""
        try:
            self._caller_by_token(present_request())
        except (RefusalError, OnlyThisMachine, TokenInvalid, TooManyFailures, JobsError):
            return False
        return True

    def _caller_by_token(self, asked: GatewayRequest) -> Caller:
        """The caller by its token or session; while no token was made, a local one."""
        if self._openness is None:
            return ANYBODY
        if not self._access.needs_tokens():
            self._openness.check(asked.environ)
            return ANYBODY
        scheme, _, text = asked.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        address = asked.remote_addr or ""
        if scheme.lower() == "bearer":
            return self._access.by_text(text.strip(" \t"), address)
        cookie = asked.cookies.get(COOKIE) if "HTTP_COOKIE" in asked.environ else None
        if cookie is None or scheme:
            raise TokenMissing
        self._check_site(asked)
        session = self._signing.token_of(cookie)
        if session is None:
            raise self._access.failure(address)
        token_id, until = session
        return replace(self._access.by_id(token_id, address), until=until)

    def _check_site(self, asked: GatewayRequest) -> None:
        """Refuse a request with a cookie that a page of another site could have sent.

        :raises CrossSite: it could.
        """
        site = asked.headers.get("Sec-Fetch-Site")
        if asked.method in _SAFE:
            foreign = site == "cross-site"
        elif site is not None:
            foreign = site != "same-origin"
        else:
            host = self._own_host or asked.headers.get("Host", "")
            foreign = asked.headers.get("Origin") not in (f"http://{host}", f"https://{host}")
        if foreign:
            raise CrossSite

    def _caller_by_signature(self, asked: GatewayRequest) -> Caller | None:
        """The caller for whom a signature stands in; None for a URL without one, or one that can't be signed."""
        if not asked.environ.get("QUERY_STRING") or "sig" not in asked.args:
            return None
        kind = signed_kind(asked.endpoint)
        if kind is None:
            return None
        query = _once(asked.args, _QUERY[kind])
        found = signed(kind, asked.view_args or {}, query)
        until = self._signing.check(found, *(query.get(name, "") for name in _OF_THE_SIGNATURE))
        return Caller(None, (found.user,), _READ, float(until))

    # -- what outlasts the judgement ---------------------------------------------------------------------------------

    def hold(self, whose: Caller, end: Callable[[], object]) -> Hold | None:
        """Have a request that lasts ended when its caller's permission is over; :meth:`release` it at its own end.

        :returns: None for a permission that is never over.
        """
        if self._openness is None and whose.token is None and whose.until is None:
            return None
        hold = Hold(whose.token, whose.until, end)
        self._revocation.hold(hold)
        return hold

    def confirm(self, whose: Caller) -> None:
        """Check that the caller of a request that has waited is still valid; raises as :meth:`Access.still` does."""
        g.caller = self._access.still(whose)

    def release(self, hold: Hold) -> None:
        """Let go of a request that is over."""
        self._revocation.release(hold)


def _once(given: MultiDict[str, str], known: frozenset[str]) -> dict[str, str]:
    """The query, in which each of these and of the signature's parts stands at most once, and nothing else.

    :raises BadSignature: it is another one.
    """
    query = given.to_dict(flat=False)
    if not known.union(_OF_THE_SIGNATURE).issuperset(query) or any(len(values) != 1 for values in query.values()):
        raise BadSignature
    return {name: values[0] for name, values in query.items()}


def present_guard() -> Guard:
    """The guard of the present application."""
    return cast("Guard", current_app.extensions[EXTENSION])


def caller() -> Caller:
    """The caller of the present request, who may send it."""
    return cast("Caller", g.caller)


def signed_kind(endpoint: str | None) -> type[SignedPicture | SignedStream] | None:
    """What a signature stands for at an endpoint; None where there is none."""
    return _SIGNED.get(endpoint or "")


def signed_query(kind: type) -> frozenset[str]:
    """The parameters that a signed URL may hold besides its signature."""
    return _QUERY[kind]


def signed(
    kind: type[SignedPicture | SignedStream], path: Mapping[str, Any], query: Mapping[str, str]
) -> SignedPicture | SignedStream:
    """What the URL with these members of its path and this query stands for."""
    if kind is SignedPicture:
        of_query = (query.get("size"), query.get("format"), query.get("download"))
        return SignedPicture(path["id"], path["type"], path["filename"], *of_query)
    return SignedStream(path["id"], path.get("type"), path.get("name"), query.get("sign"))


def note_change(event: str, user: str, **fields: Any) -> None:
    """Write a line of the audit log about what was changed, where an operator's token was used for it."""
    found = caller()
    if found.is_admin:
        audit.audit(event, user=user, **fields, by=f"token {found.token}")


def check_user(user: str) -> None:
    """Check a user.

    :raises NotFound: the caller may not act for it.
    """
    if not caller().acts_for(user):
        raise _nothing()


def check_posted_user(document: Any) -> None:
    """Check the user that a body names, of whatever endpoint that needs a caller.

    :raises NotFound: the caller may not act for it.
    """
    user = document.get("id") if isinstance(document, dict) else None
    if isinstance(user, str) and "caller" in g:
        check_user(user)


def _nothing() -> NotFound:
    return NotFound("There is nothing here that this token may see.")


def _named_users(asked: GatewayRequest) -> list[str]:
    """The users that path and query name, also a path whose method is wrong."""
    path: Mapping[str, Any] | None = asked.view_args
    if isinstance(asked.routing_exception, MethodNotAllowed):
        adapter = request_ctx.url_adapter
        methods = asked.routing_exception.valid_methods
        path = (
            adapter.match(method=next(iter(methods)), websocket=False)[1] if adapter is not None and methods else None
        )
    users = [path["id"]] if path and "id" in path else []
    return users + asked.args.getlist("id") if asked.environ.get("QUERY_STRING") else users
