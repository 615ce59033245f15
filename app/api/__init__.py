"""The HTTP side of the gateway: reads requests strictly, calls one service, writes the answer. :func:`init_app` adds it."""

from __future__ import annotations

import threading

from flask import Response, request
from werkzeug.datastructures import MultiDict

from app import problems
from app.api import docs, events, files, health, history, jobs, options, posts, queue, session, sign
from app.api.application import Application
from app.api.http import cors
from app.api.http.bodies import MEBIBYTE
from app.api.http.delivery import Delivery
from app.api.http.guard import Guard
from app.api.http.openapi import SECURITY_SCHEMES, Api
from app.api.http.openness import Openness
from app.api.http.picture_query import PictureQuery
from app.api.http.problems import register_handlers
from app.api.http.proxies import trust_forwarded_headers
from app.api.http.representation import Presenter
from app.api.http.request import BODY_TURNS, MAX_BODY, present_request
from app.api.http.signed_urls import UrlSigner
from app.api.schemas.responses import InitImage, Webui, args
from app.runtime import request_ids
from app.runtime.cors import CrossOrigin
from app.services import Services

EXTENSION = "sd-gateway"
#: Large bodies that a process has in memory at the same time; their pixels are decoded by as many.
_LARGE_AT_ONCE = 2


def init_app(app: Application, services: Services) -> None:
    """Register everything under this package on ``app``: endpoints, OpenAPI document, docs page, error handlers.

    The services are closed over by the views, and stand in ``app.extensions["sd-gateway"]`` for whoever has only the app.
    """
    app.extensions[EXTENSION] = services
    # An empty path segment is a 404 and never a redirect to another user's path.
    app.url_map.merge_slashes = False
    app.config[MAX_BODY] = services.config.max_body_mb * MEBIBYTE
    app.config[BODY_TURNS] = threading.BoundedSemaphore(_LARGE_AT_ONCE)
    register_handlers(app)
    _guard(services).init_app(app)
    # Outermost, so that everything else, the guard above all, sees the client's address and scheme and not the proxy's.
    app.wsgi_app = trust_forwarded_headers(app.wsgi_app, services.config.trusted_proxies)  # type: ignore[assignment,method-assign]
    cors.init_app(app, CrossOrigin(services.config.cors_origins))
    app.after_request(_finish)
    app.teardown_request(_release_body)
    app.register_blueprint(docs.blueprint())
    _register_endpoints(app, services)


def _guard(services: Services) -> Guard:
    config = services.config
    openness = Openness(lambda: services.listens_to_loopback, config.cors_origins, is_public=bool(config.public_url))
    asks = config.auth != "none"
    return Guard(services.access, services.signing, services.revocation, openness if asks else None, config.public_url)


def _register_endpoints(app: Application, services: Services) -> None:
    app.config.update(
        API_TITLE="sd-gateway",
        API_VERSION=docs.version(),
        OPENAPI_VERSION="3.0.3",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
    )
    public_url = services.config.public_url
    described = {"info": {"description": docs.introduction()}, "servers": [{"url": public_url or "/"}]}
    api = Api(app, spec_kwargs=described)
    for name, scheme in SECURITY_SCHEMES.items():
        api.spec.components.security_scheme(name, dict(scheme))
    for schema in (args(services.parameters), InitImage, Webui):
        # Named only by references, where apispec does not look.
        api.spec.components.schema(schema.__name__, schema=schema)
    sizes = services.config.variant_sizes
    presenter = Presenter(public_url, services.config.sync_timeout, min(sizes), services.signing)
    signer = UrlSigner(
        services.signing, app.url_map.bind(""), lambda query: PictureQuery(sizes).parse(MultiDict(query))
    )
    delivery = Delivery(services.config.data_dir if services.config.accel else None)
    for blueprint in (
        posts.blueprint(services, presenter),
        history.blueprint(services, presenter),
        files.blueprint(services, delivery),
        jobs.blueprint(services, presenter),
        events.blueprint(services, presenter),
        queue.blueprint(services, presenter),
        options.blueprint(services),
        session.blueprint(services),
        sign.blueprint(services, signer),
        health.blueprint(services),
    ):
        api.register_blueprint(blueprint)
    # Behind all others: Swagger UI shows tags without operations too.
    api.spec.tag({"name": "errors", "description": docs.error_table()})


def _finish(response: Response) -> Response:
    """Add the header fields that every answer has."""
    headers = response.headers
    # ``setdefault`` for each field took three times as long, which counts for small pictures.
    own = {name for name, _ in headers}
    for name, value in problems.HEADERS.items():
        if name not in own:
            headers.add(name, value)
    headers.add(request_ids.HEADER, request.environ[request_ids.ENVIRON])
    return response


def _release_body(_error: BaseException | None) -> None:
    """Let the next large body have its turn, however this request ended; before a slow client reads the answer."""
    present_request().release_body()
