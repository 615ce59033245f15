"""The Flask application of the gateway: its request, its JSON, and the checks of a path before any view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, Response
from flask.json.provider import DefaultJSONProvider
from flask.typing import ResponseReturnValue

from app.api.http import paths
from app.api.http.request import GatewayRequest, present_request
from app.runtime import request_ids
from app.runtime.jsontext import dumps


class _Json(DefaultJSONProvider):
    """UTF-8 as it is, members in the order of the contract."""

    def dumps(self, obj: Any, **_kwargs: Any) -> str:
        """JSON as text."""
        return dumps(obj, self.default).decode()

    def response(self, *args: Any, **kwargs: Any) -> Response:
        """JSON as an answer, which is bytes at once."""
        body = dumps(self._prepare_response_obj(args, kwargs), self.default)
        return Response(body + b"\n", mimetype=self.mimetype)


class Application(Flask):
    """A Flask application whose ``before_request`` hooks see every request first, whatever its path or method."""

    request_class = GatewayRequest
    json_provider_class = _Json

    def wsgi_app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        """Serve a request under its id, which the environ tells from then on: also after a wait."""
        environ[request_ids.ENVIRON] = request_id = request_ids.accepted_or_new(environ.get(request_ids.ENVIRON))
        with request_ids.serving(request_id):
            return super().wsgi_app(environ, start_response)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """The function itself. None of ours is a coroutine; Flask would look at ten functions of each request whether they are."""
        return func

    def dispatch_request(self) -> ResponseReturnValue:
        """Check body and path, then answer as Flask does: raise the routing error, or call the view.

        Not a ``url_value_preprocessor``: Flask calls those before the hooks, so that a bad path would be answered without them.
        """
        asked = present_request()
        # Of the POSTs only those without a member in their path read a body.
        if asked.routing_exception is not None or asked.method != "POST" or asked.view_args:
            asked.check_unread_body()
        paths.check(asked)
        return super().dispatch_request()
