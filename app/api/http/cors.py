"""Cross-origin requests (CORS): lets pages of the origins in ``SDG_CORS_ORIGINS`` call the endpoints from a browser.

:mod:`app.runtime.cors` has the header fields that say which methods and fields such a page may use.
"""

from __future__ import annotations

from flask import Flask, Response, current_app, request

from app.runtime.cors import CrossOrigin, preflight


def init_app(app: Flask, allowed: CrossOrigin) -> None:
    """Let pages of these origins call every endpoint of ``app``; without any, nothing is added to it."""
    if not allowed.origins:
        return

    def answer_preflight() -> Response | None:
        """Answer a browser that asks whether a page may send a request: before its path is checked, so that the request itself is
        refused, with a problem that the page can read.
        """
        asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not asks or request.routing_exception is not None or request.origin not in allowed.origins:
            return None
        answer = current_app.make_default_options_response()
        answer.headers.update(preflight(answer.allow))
        return answer

    def allow(answer: Response) -> Response:
        """Add the fields of this request's origin."""
        answer.vary.add("Origin")
        answer.headers.update(allowed.fields(request.origin))
        return answer

    app.before_request(answer_preflight)
    app.after_request(allow)
