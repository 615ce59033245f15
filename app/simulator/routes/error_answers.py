"""The error answers: the application's exceptions in the form that each flavour gives them (contract: "Error bodies")."""

from __future__ import annotations

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException

from app.simulator.errors import CrashError, HttpError, InvalidError, PlainError
from app.simulator.faults import EXCEPTION_GROUP
from app.simulator.responses import as_json, method_not_allowed
from app.simulator.routes.requests import GENERATION_PATHS, current_fault
from app.simulator.simulator import Simulator


class ErrorAnswers:
    """The error handlers of one simulator."""

    def __init__(self, simulator: Simulator) -> None:
        self._forge = simulator.flavour.forge
        self._faults = simulator.faults

    def register(self, app: Flask) -> None:
        """Let the application answer its errors by these handlers."""
        app.register_error_handler(HttpError, self._on_http_error)
        app.register_error_handler(CrashError, self._on_crash)
        app.register_error_handler(InvalidError, self._on_invalid)
        app.register_error_handler(PlainError, self._on_plain)
        app.register_error_handler(HTTPException, self._on_routing)

    def _on_http_error(self, error: HttpError) -> Response:
        """An HTTPException of the API; A1111 rebuilds it and loses its header."""
        response = as_json(error.body(forge=self._forge), error.status)
        if error.status == 401 and self._forge:
            response.headers["WWW-Authenticate"] = "Basic"
        return response

    def _on_crash(self, error: CrashError) -> Response:
        """An exception of the server."""
        fault = current_fault()
        forge = self._forge or (fault is not None and fault.effect == "error-forge")
        if request.path in GENERATION_PATHS and self._faults.take((EXCEPTION_GROUP,)) is not None:
            error = CrashError("ExceptionGroup", "unhandled errors in a TaskGroup (1 sub-exception)")
        return as_json(error.body(forge=forge), 500)

    def _on_invalid(self, error: InvalidError) -> Response:
        """A validation error of pydantic."""
        return as_json({"detail": error.errors}, 422)

    def _on_plain(self, error: PlainError) -> Response:
        """An exception that only the ASGI server catches."""
        return Response(str(error), 500, content_type="text/plain; charset=utf-8")

    def _on_routing(self, error: HTTPException) -> Response:
        """Unknown path, wrong method, or a slash too many, as the router of the server answers them."""
        if error.code == 405:
            return method_not_allowed(*(getattr(error, "valid_methods", None) or ()))
        if error.code == 500:
            original = getattr(error, "original_exception", None) or error
            return self._on_crash(CrashError(type(original).__name__, str(original)))
        plain = request.path.rstrip("/")
        if plain != request.path and current_app.url_map.bind("simulator").allowed_methods(plain):
            return Response(b"", 307, {"Location": request.host_url.rstrip("/") + plain})
        return as_json({"detail": "Not Found"}, 404)
