"""What schemathesis can't read in the OpenAPI document: the names that exist, bounds over several fields, pictures.

Before a request that is meant to be valid is sent, :class:`Guide` puts such values in, and leaves the rest as generated. A request
that is meant to be invalid stays as it is.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any
from urllib.parse import quote, unquote

import schemathesis
from flask import Flask
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, events, from_schema
from schemathesis.generation import GenerationMode
from schemathesis.hooks import unregister_all
from werkzeug.serving import WSGIRequestHandler, make_server

from app.parameters import LARGEST_SEED, LONGEST_USER_ID, USER_ID_PATTERN
from tests.inprocess import png_base64

#: Fields of a request that name something, and the lists of ``GET /options`` that they are taken from.
NAMES = {
    "sampler_name": "samplers",
    "scheduler": "schedulers",
    "model": "models",
    "style": "styles",
    "hr_upscaler": "upscalers",
}
#: A sampler that makes no picture of one step.
_DEMANDING = {"UniPC"}
#: What a valid request may be answered with, all documented: the thing is not there, or has ended, or there are too many.
ACCEPTED = ("2xx", "3xx", "404", "409", "429")
#: Of a number of requests one asks for something that exists.
_EXISTING = 2


def settings(max_examples: int, seed: int, token: str) -> SchemathesisConfig:
    """All checks and all phases; the same cases in each run, but for what earlier answers put into later requests.

    :param token: sent with each request, but for those that are to be refused without one.
    """
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": {"Authorization": f"Bearer {token}"},
            "generation": {"deterministic": True, "max-examples": max_examples, "database": "none", "no-shrink": True},
            "phases": {"examples": {"fill-missing": True}},
            "checks": {"positive_data_acceptance": {"expected-statuses": list(ACCEPTED)}},
            "continue-on-failure": True,
            # A stream of a user's jobs has no end; its first event is enough.
            "max-stream-events": 1,
            "request-timeout": 10,
        }
    )


class Guide:
    """Makes the requests valid that are meant to be.

    :param options: the answer of ``GET /options``.
    :param pixels: SDG_MAX_OUTPUT_PIXELS.
    :param token: one that may do everything.
    """

    def __init__(self, options: Mapping[str, Any], pixels: int, token: str) -> None:
        self.token = token
        self._names = {name: sorted(set(options[listed]) - _DEMANDING) for name, listed in NAMES.items()}
        self._pixels = pixels
        self._numbers = itertools.count()
        self._bodies = {"/session": self._session, "/sign": self._sign}
        #: Identities of jobs that were accepted, and the names of their images.
        self._jobs: collections.deque[dict[str, Any]] = collections.deque(maxlen=20)

    def register(self) -> None:
        """Have schemathesis call it, until :func:`unregister_all`."""
        # Functions, for schemathesis can't take methods.
        schemathesis.hook("before_call")(lambda context, case, kwargs: self._before_call(case))
        schemathesis.hook("after_call")(lambda context, case, response: self._after_call(case, response))
        schemathesis.hook("map_path_parameters")(_map_path_parameters)
        schemathesis.hook("filter_failure")(_filter_failure)

    def _before_call(self, case: Any) -> None:
        if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE:
            self._mend(case)

    def _after_call(self, case: Any, response: Any) -> None:
        posted = case.method == "POST" and case.operation.path in ("/txt2img", "/img2img")
        if posted and response.status_code == 200:
            job = json.loads(response.content)
            # schemathesis holds the percent-encoded id against the schema.
            if len(quote(job["id"], safe="")) <= LONGEST_USER_ID:
                self._jobs.append(job)

    def _mend(self, case: Any) -> None:
        number = next(self._numbers)
        if case.path_parameters:
            case.path_parameters = self._path(dict(case.path_parameters), number)
        if case.query:
            case.query = self._query(dict(case.query))
        if case.headers:
            case.headers = self._headers(dict(case.headers), number)
        if isinstance(case.body, dict):
            case.body = self._bodies.get(case.operation.path, self._picture)(dict(case.body), number)

    def _path(self, path: dict[str, Any], number: int) -> dict[str, Any]:
        names_one = {"type", "name"} <= path.keys() or "filename" in path
        return self._existing(path, number) if names_one and self._jobs and number % _EXISTING == 0 else path

    def _existing(self, path: dict[str, Any], number: int) -> dict[str, Any]:
        job = self._jobs[number // _EXISTING % len(self._jobs)]
        images = [image["filename"] for image in job["images"]] or [job["name"]]
        filename = job["name"] if number % 3 == 0 else images[0]
        found = {"id": job["id"], "type": job["type"], "name": job["name"], "filename": filename}
        return {member: quote(found[member], safe="") for member in path}

    def _query(self, query: dict[str, Any]) -> dict[str, Any]:
        # A cursor has a checksum; those of real pages are followed by the stateful phase.
        query.pop("before", None)
        return query | ({"id": _user(query["id"])} if "id" in query else {})

    def _headers(self, headers: dict[str, Any], number: int) -> dict[str, Any]:
        valid = {
            # A key belongs to one body.
            "Idempotency-Key": lambda text: f"{number}-{text}"[:255],
            "Cancel-After": lambda text: text if text.isdecimal() and 5 <= int(text) <= 86400 else "5m",
            # Of those that bytes can't satisfy the answer is 416.
            "Range": lambda text: "bytes=0-9" if text.lower().startswith("bytes") else text,
        }
        return {name: valid.get(name, str)(text) for name, text in headers.items()}

    def _session(self, body: dict[str, Any], _number: int) -> dict[str, Any]:
        return body | {"token": self.token}

    def _sign(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        image = "/get_images/u/txt2img/20261122T061530123-9f2c4e7a-1-0.png"
        forms = (image, f"{image}?size=160", "/jobs/u/events", "/jobs/u/txt2img/20261122T061530123-9f2c4e7a/events")
        body["paths"] = [forms[(number + place) % len(forms)] for place in range(len(body["paths"]))]
        # Streams are signed for an hour at most.
        return body | {"seconds": min(body["seconds"], 3600)}

    def _picture(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        if "id" in body:
            body["id"] = _user(body["id"])
        if "init_images" in body:
            picture = png_base64((64 + number % 3, 64))
            body["init_images"] = [picture] if isinstance(body["init_images"], list) else picture
        for name, offered in self._names.items():
            if body.get(name):
                body[name] = offered[number % len(offered)]
        self._bound(body)
        return body

    def _bound(self, body: dict[str, Any]) -> None:
        """Keep all images together within the pixels that are allowed, and their seeds within what is a seed."""
        pixels = body["width"] * body["height"]
        most = self._pixels / pixels
        upscaled = body.get("hr_upscaler") not in ("", "None")
        if upscaled and body.get("hr_scale", 2) ** 2 > most:
            body["hr_scale"] = 1
        body["batch_size"] = max(
            1, min(body["batch_size"], int(most / (body.get("hr_scale", 2) ** 2 if upscaled else 1)))
        )
        if str(body["seed"]) not in ("", "-1"):
            seed = min(int(body["seed"]), LARGEST_SEED - body["batch_size"] + 1)
            body["seed"] = type(body["seed"])(seed)


def _map_path_parameters(_context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Make the nearest user id of one that fits the document. It is percent-encoded already."""
    encoded = (path_parameters or {}).get("id")
    text = unquote(encoded) if isinstance(encoded, str) else ""
    if text.isprintable() or len(text) > LONGEST_USER_ID or not re.search(USER_ID_PATTERN, text):
        return path_parameters
    mended = _user(text)
    # schemathesis holds a changed one against the schema as it is sent.
    while len(quote(mended, safe="")) > LONGEST_USER_ID:
        mended = mended[:-1]
    return {**path_parameters, "id": quote(mended, safe="")}


def _filter_failure(_context: Any, failure: Any, _case: Any, _response: Any) -> bool:
    # OpenAPI 3.0 has no words for the events of a stream; schemathesis takes the schema of the stream for theirs.
    return failure.title != "SSE event violates schema"


def _user(text: str) -> str:
    """The nearest user id, for the document can't say which characters Unicode calls printable."""
    return "".join(letter if letter.isprintable() else "x" for letter in text)


class _Handler(WSGIRequestHandler):
    """One connection of schemathesis. Each of its requests has an address of its own: too many bad tokens of one are 429."""

    protocol_version = "HTTP/1.1"
    _numbers = itertools.count()

    def make_environ(self) -> dict[str, Any]:
        """The environ of a request."""
        return super().make_environ() | {"REMOTE_ADDR": str(IPv4Address(0x0A000000 + next(self._numbers)))}

    def log(self, *_: Any) -> None:
        """Write no line."""


@contextlib.contextmanager
def served(app: Flask) -> Iterator[str]:
    """The URL of a server of the application: schemathesis takes credentials away from requests over HTTP alone."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Findings:
    """What a run has found."""

    cases: int = 0
    #: Statuses of the answers by operation and kind of the request.
    statuses: collections.Counter[tuple[str, str, int]] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)


def run(app: Flask, guide: Guide, max_examples: int, seed: int = 1) -> Findings:
    """Send what schemathesis makes of the application's own document, and check each answer."""
    findings = Findings()
    guide.register()
    try:
        with served(app) as url:
            config = settings(max_examples, seed, guide.token)
            schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config)
            for event in from_schema(schema).execute():
                if isinstance(event, events.ScenarioFinished):
                    _note(event, findings)
                elif isinstance(event, events.FatalError | events.NonFatalError):
                    findings.failures.append(f"{event!r} {getattr(event, 'info', None) or event.exception}")
    finally:
        unregister_all()
    return findings


def _note(event: events.ScenarioFinished, findings: Findings) -> None:
    recorder = event.recorder
    findings.cases += len(recorder.cases)
    if event.status is Status.ERROR:
        findings.failures.append(f"{event.label}: schemathesis failed")
    for case_id, interaction in recorder.interactions.items():
        case = recorder.cases[case_id].value
        kind = case.meta.generation.mode.value if case.meta else "other"
        status = interaction.response.status_code if interaction.response else 0
        findings.statuses[case.operation.label, kind, status] += 1
    for case_id, checks in recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                findings.failures.append(_told(recorder, case_id, check))


def _told(recorder: Any, case_id: str, check: Any) -> str:
    case, response, failure = recorder.cases[case_id].value, recorder.interactions[case_id].response, check.failure_info
    lines = [
        f"{check.name}: {failure.failure.title}: {failure.failure.message}",
        f"{case.meta.phase.name}: {case.meta.phase.data.description}" if case.meta else "",
        f"{case.method} {case.formatted_path} {case.query} {dict(case.headers or {})} {case.body!r:.2000}",
        f"{response.status_code} {response.content!r:.1000}" if response else "no answer",
    ]
    return "\n".join(lines)
