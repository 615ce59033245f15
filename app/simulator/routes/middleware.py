"""The work before and after every request: credentials, HEAD and OPTIONS, compression, counting."""

from __future__ import annotations

import base64
import binascii
import gzip
import secrets
import time

from flask import Flask, Response, g, request

from app.simulator.errors import HttpError
from app.simulator.faults import START_KINDS, STREAMS, Fault
from app.simulator.responses import Delivery, as_json, method_not_allowed
from app.simulator.routes.requests import EXTRAS_PATHS, GENERATION_PATHS, current_fault
from app.simulator.simulator import Simulator

#: Routes that --api-auth does not cover though they stand under /sdapi (an extension registers them).
_OPEN = ("/sdapi/v1/loras", "/sdapi/v1/refresh-loras")
#: Bytes from which an answer is compressed for a client that can take it (``initialize_util.setup_middleware``).
_GZIP_FROM = 1000


class Middleware:
    """Runs around every view of one simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._auth = simulator.settings.auth
        self._forge = simulator.flavour.forge
        self._engine = simulator.engine
        self._stats = simulator.stats
        self._faults = simulator.faults

    def register(self, app: Flask) -> None:
        """Let the application call it before and after every request."""
        app.before_request(self._arrive)
        app.after_request(self._leave)

    def _arrive(self) -> Response | None:
        """Count the request in, read all of it, and answer what no view may see."""
        received = g.received = request.environ.get("simulator.received", time.perf_counter())
        if request.path.startswith(("/sdapi/", "/internal/")):
            fault = self._faults.take(START_KINDS)
            if fault is not None:
                request.get_data()
                return _start_window(fault)
        # Unread bytes would be taken for the next request of a kept connection. One that breaks off before its end goes no
        # further: the real server runs only what is complete.
        request.get_data()
        if request.method == "POST" and request.path in (*GENERATION_PATHS, *EXTRAS_PATHS):
            g.visit = self._stats.arrive(received, generation=request.path in GENERATION_PATHS)
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return Response("Disallowed CORS origin", 400, content_type="text/plain; charset=utf-8")
        if request.method == "HEAD" and request.url_rule is not None:
            return method_not_allowed("GET")
        self._check_credentials()
        return None

    def _leave(self, response: Response) -> Response:
        """Compress, count and spoil what goes out; Forge compresses nothing."""
        fault = current_fault()
        plain = self._forge or (fault is not None and fault.effect in STREAMS)
        asked = "gzip" in request.headers.get("Accept-Encoding", "")
        if asked and not plain and len(response.get_data()) >= _GZIP_FROM:
            response.set_data(gzip.compress(response.get_data(), compresslevel=1))
            response.headers["Content-Encoding"] = "gzip"
            response.vary.add("Accept-Encoding")
        if "visit" in g:
            return Delivery(self._engine, g.visit, fault).send(response)
        return response

    def _check_credentials(self) -> None:
        guarded = request.path.startswith("/sdapi/") and request.path not in _OPEN and request.url_rule is not None
        if self._auth is None or not guarded:
            return
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            raise HttpError(401, "Not authenticated")
        try:
            user, colon, password = base64.b64decode(text, validate=True).decode("ascii").partition(":")
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise HttpError(401, "Invalid authentication credentials")
        given = f"{user}:{password}".encode()
        if not secrets.compare_digest(given, ":".join(self._auth).encode()):
            raise HttpError(401, "Incorrect username or password")


def _start_window(fault: Fault) -> Response:
    """The 404 of a server whose API routes are still missing."""
    if fault.kind == "start-window":
        return as_json({"detail": "Not Found"}, 404)
    return Response("<html><body><h1>Not Found</h1></body></html>", 404, content_type="text/html; charset=utf-8")
