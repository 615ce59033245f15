"""flask-smorest with types, with our own reading of requests, and with errors documented as the problems they are.

The name of a view is its ``operationId``, and a schema's ``EXAMPLES`` are shown with every answer of it. What the document says is
translated when it is written (:mod:`app.api.chinese`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeVar, cast

import flask_smorest  # type: ignore[import-untyped]  # the package ships no types
from flask import Request, Response, current_app
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser

from app import problems
from app.api.chinese import chinese, translate
from app.api.http.guard import COOKIE, check_posted_user
from app.api.http.refusals import ValidationFailed
from app.api.http.request import GatewayRequest
from app.api.schemas.examples import problem_example
from app.api.schemas.responses import Answer, Problem
from app.runtime import request_ids

View = TypeVar("View", bound=Callable[..., Any])


class Decorator(Protocol):
    """A decorator that leaves the type of a view as it is."""

    def __call__(self, view: View, /) -> View:
        """Decorate."""
        ...


#: What any request may run into.
ALWAYS = (
    "invalid-request",
    "request-timeout",
    "uri-too-long",
    "expectation-failed",
    "headers-too-large",
    problems.INTERNAL_ERROR,
)


#: What any request may run into but those of the public endpoints.
GUARDED = (
    "token-missing",
    "token-invalid",
    "scope-missing",
    "open-only-to-this-machine",
    "cross-site-request",
    "not-found",
    "too-many-failures",
    "database-unavailable",
)
#: The problems of every endpoint that reads a JSON body.
PROBLEMS_OF_A_BODY = (
    "invalid-json",
    "body-too-large",
    "unsupported-media-type",
    "no-room-for-body",
    "validation-failed",
)


_METHODS: Final = ("get", "post", "put", "patch", "delete")
#: Any text is taken for a request without an id, so the schema knows no pattern.
_REQUEST_ID_ASKED: Final[Mapping[str, Any]] = {
    "in": "header",
    "name": request_ids.HEADER,
    "description": "The id of the request, 1 to 64 letters, digits, dots, dashes or underscores; otherwise one is made.",
    "schema": {"type": "string"},
}
_REQUEST_ID_ANSWERED: Final[Mapping[str, Any]] = {
    "description": "The id of the request, which the log of the gateway names too.",
    "schema": {"type": "string"},
}


#: Messages about the members of one list.
_MOST_MESSAGES = 20


_TOKEN, _SESSION = "token", "session"
#: Either is enough for an endpoint that is not public. A signature, which some take instead, is a part of the URL that was given.
SECURITY: list[dict[str, list[str]]] = [{_TOKEN: []}, {_SESSION: []}]
#: The ways to say who one is, for the OpenAPI document.
SECURITY_SCHEMES: Mapping[str, Mapping[str, str]] = {
    _TOKEN: {
        "type": "http",
        "scheme": "bearer",
        "description": "A token that an operator has made. Without any, programs on this machine are served.",
    },
    _SESSION: {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "The cookie of POST /session."},
}


class Api(flask_smorest.Api):  # type: ignore[misc]  # its base has no types
    """The OpenAPI document and the registration of blueprints; errors are app.problems' business."""

    DEFAULT_ERROR_RESPONSE_NAME = None

    def document(self) -> dict[str, Any]:
        """The OpenAPI document, in both languages."""
        document = self.spec.to_dict()
        _document_request_ids(document)
        return cast("dict[str, Any]", translate(document))

    def _openapi_json(self) -> Response:
        """Serve the document, which never changes after the start."""
        if self._written is None:
            self._written = current_app.json.dumps(self.document()).encode()
        return Response(self._written, mimetype="application/json")

    #: The document as bytes, once it was asked for.
    _written: bytes | None = None

    def _register_error_handlers(self) -> None:
        """Leave them alone: the handler of the base class answers in another shape."""

    def _register_responses(self) -> None:
        """Document no errors of that shape either, but an example of each of ours."""
        for slug, entry in problems.PROBLEMS.items():
            self.spec.components.example(slug, {"summary": entry.title, "value": problem_example(slug)})

    def _register_pagination_header(self) -> None:
        """Pages are ours: by cursor, in the body."""


class Parser(FlaskParser):
    """Loads the body and the query by a schema; every fault leaves as one of our refusals."""

    def load_json(self, req: Request, schema: Schema) -> Any:
        """The body; see :attr:`GatewayRequest.document` for what it raises."""
        del schema
        document = cast("GatewayRequest", req).document
        if not isinstance(document, dict):
            raise ValidationFailed({"_schema": ["The body must be a JSON object."]})
        check_posted_user(document)
        return document

    def load_querystring(self, req: Request, schema: Schema) -> Any:
        """The query; a parameter given twice is refused, for nobody knows which was meant."""
        twice = [name for name in schema.fields if len(req.args.getlist(name)) > 1]
        if twice:
            raise ValidationFailed({name: ["Must be given only once."] for name in twice})
        return req.args.to_dict()

    def handle_error(
        self,
        error: ValidationError,
        req: Request,
        schema: Schema,
        *,
        error_status_code: int | None,
        error_headers: Mapping[str, str] | None,
    ) -> NoReturn:
        """Refuse with the messages of all fields; webargs has put them under their location."""
        del req, schema, error_status_code, error_headers
        located = cast("dict[str, dict[str, Any]]", error.messages)
        raise ValidationFailed(
            {name: _flat(faults) for name, faults in next(iter(located.values())).items()}
        ) from error


def _flat(faults: Any) -> list[str]:
    """The messages about a field; those about members of a list, which marshmallow puts under their numbers, name these."""
    if isinstance(faults, list):
        return faults
    named = [f"{member}: {message}" for member, below in faults.items() for message in _flat(below)]
    return named[:_MOST_MESSAGES]


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]  # its base has no types
    """A group of endpoints; the decorators of a view are its contract."""

    ARGUMENTS_PARSER = Parser()

    def route(
        self, rule: str, *, methods: Sequence[str] = ("GET",), parameters: Sequence[Mapping[str, Any]] = ()
    ) -> Decorator:
        """The path and the methods of a view; ``parameters`` documents the members of the path."""
        copied = [dict(parameter) for parameter in parameters]
        return cast("Decorator", super().route(rule, methods=list(methods), parameters=copied))

    def arguments(
        self, schema: Schema | type[Schema], *, location: str = "json", example: Mapping[str, Any] | None = None
    ) -> Decorator:
        """Load the body (``json``) or the ``query`` and hand it to the view as its last positional argument."""
        shown = None if example is None else _plain(example)
        return cast("Decorator", super().arguments(schema, location=location, example=shown))

    def answers(
        self,
        status: int,
        schema: type[Schema] | dict[str, Any] | None,
        description: str,
        *,
        media_type: str = "application/json",
        headers: Mapping[str, Mapping[str, Any]] | None = None,
        example: Mapping[str, Any] | None = None,
    ) -> Decorator:
        """The successful answer; without ``example`` the examples of its schema are shown."""
        shown = _examples(schema) if example is None else {"example": _plain(example)}
        decorator = super().response(
            status, schema, content_type=media_type, description=description, headers=headers, **shown
        )
        return cast("Decorator", decorator)

    def about(self, summary: str, description: str = "", *, parameters: Sequence[Mapping[str, Any]] = ()) -> Decorator:
        """The title of an endpoint, what it does, and the header fields it reads."""
        documented: dict[str, Any] = {"summary": summary}
        documented |= {"description": description} if description else {}
        documented |= {"parameters": [dict(parameter) for parameter in parameters]} if parameters else {}

        def decorate(view: View) -> View:
            return cast("Decorator", self.doc(operationId=view.__name__, **documented))(view)

        return decorate

    def also(self, status: int, description: str, **content: Any) -> Decorator:
        """Document one more answer; ``content`` is what OpenAPI's response object may hold besides."""
        return cast("Decorator", self.doc(responses={status: {"description": description, **_plain(content)}}))

    def problems(self, *slugs: str, public: bool = False) -> Decorator:
        """Document the errors of a view, besides those that any request may run into.

        :param public: nobody needs a token for it (:mod:`app.api.http.guard`).
        """
        by_status: dict[int, list[str]] = defaultdict(list)
        for slug in dict.fromkeys((*ALWAYS, *(() if public else GUARDED), *slugs)):
            by_status[problems.PROBLEMS[slug].status].append(slug)
        responses = {status: _problem_response(status, group) for status, group in sorted(by_status.items())}
        security = [] if public else SECURITY
        return cast("Decorator", self.doc(responses=responses, security=security))


def _document_request_ids(document: dict[str, Any]) -> None:
    """Add the header field that any request may carry and that every answer has."""
    document["components"]["headers"] = {request_ids.HEADER: _REQUEST_ID_ANSWERED}
    reference = {"$ref": f"#/components/headers/{request_ids.HEADER}"}
    for item in document["paths"].values():
        for operation in (item[method] for method in _METHODS if method in item):
            operation["parameters"] = [*operation.get("parameters", ()), dict(_REQUEST_ID_ASKED)]
            for response in operation["responses"].values():
                response["headers"] = {**response.get("headers", {}), request_ids.HEADER: dict(reference)}


def _examples(schema: type[Schema] | dict[str, Any] | None) -> dict[str, Any]:
    """The examples of an answer, as flask-smorest takes them."""
    named = schema.EXAMPLES if isinstance(schema, type) and issubclass(schema, Answer) else {}
    return {"examples": {name: {"value": _plain(value)} for name, value in named.items()}} if named else {}


def _plain(value: Any) -> Any:
    """A copy of an example in dicts and lists only, which flask-smorest can copy again."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _problem_response(status: int, slugs: Sequence[str]) -> dict[str, Any]:
    titles = {slug: problems.PROBLEMS[slug].title for slug in slugs}
    named = "\n".join(f"* `{slug}`: {title} · {chinese(title)}" for slug, title in titles.items())
    examples = {slug: {"$ref": f"#/components/examples/{slug}"} for slug in slugs}
    content = {problems.MEDIA_TYPE: {"schema": Problem, "examples": examples}}
    response: dict[str, Any] = {"description": named, "content": content}
    if status in (429, 503):
        after = {"description": "The seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}}
        response["headers"] = {"Retry-After": after}
    return response
