"""The session of a browser: a cookie that stands for a token, so that a page need not keep it."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify, request

from app.api.http.guard import COOKIE
from app.api.http.openapi import PROBLEMS_OF_A_BODY, Blueprint
from app.api.schemas.requests import SessionRequest
from app.api.schemas.responses import Session
from app.gateway.access import Caller
from app.gateway.signing import SESSION_SECONDS
from app.services import Services

_COOKIE = {
    "Set-Cookie": {"description": f"`{COOKIE}`, which a page can't read.", "schema": {"type": "string"}},
}


def blueprint(services: Services) -> Blueprint:
    """The endpoints over these services."""
    blp = Blueprint("session", __name__, description="The session of a browser")
    secure = services.config.public_url.startswith("https://")

    @blp.route("/session", methods=["POST"])
    @blp.arguments(SessionRequest)
    @blp.answers(200, Session, "The session has begun; the cookie stands for the token.", headers=_COOKIE)
    @blp.problems(
        "token-invalid", "too-many-failures", *PROBLEMS_OF_A_BODY, "no-signing-key", "database-unavailable", public=True
    )
    @blp.about("Begin a session · 开始会话", "Exchange a token for a cookie, which browsers send by themselves.")
    def create_session(fields: dict[str, Any]) -> Response:
        found = services.access.by_text(fields["token"], request.remote_addr or "")
        return _begin(found, services.signing.session(found.token or ""), secure=secure)

    @blp.route("/session", methods=["DELETE"])
    @blp.answers(204, None, "The browser forgets the cookie.", headers=_COOKIE)
    @blp.problems(public=True)
    @blp.about("End a session · 结束会话", "Have the browser forget the cookie. The token stays valid.")
    def delete_session() -> Response:
        response = Response(status=204)
        response.delete_cookie(COOKIE, path=_path(), httponly=True, samesite="Strict")
        return response

    return blp


def _begin(caller: Caller, cookie: str, *, secure: bool) -> Response:
    response = jsonify({"users": list(caller.users), "scopes": sorted(caller.scopes), "seconds": SESSION_SECONDS})
    response.headers["Cache-Control"] = "no-store"
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=SESSION_SECONDS,
        path=_path(),
        secure=secure or request.is_secure,
        httponly=True,
        samesite="Strict",
    )
    return response


def _path() -> str:
    """The path under which a proxy has mounted the gateway."""
    return request.script_root or "/"
