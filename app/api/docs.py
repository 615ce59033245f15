"""The page at /docs: Swagger UI from its package, with nothing loaded from elsewhere."""

from __future__ import annotations

from http import HTTPStatus
from importlib import metadata, resources
from types import MappingProxyType
from typing import Final

from flask import Blueprint, Response, redirect, request, send_from_directory
from werkzeug.wrappers import Response as WerkzeugResponse

from app.api.chinese import chinese, in_both_languages
from app.api.http import conditions
from app.api.http.refusals import NotFound, PreconditionFailed
from app.api.schemas.examples import USER
from app.problems import MEDIA_TYPE, PROBLEMS

_ASSETS: Final = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"})
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>sd-gateway</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" type="image/png" href="docs/favicon-32x32.png">
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
#: A file of its own, so that the policy below can forbid inline scripts. The names in the examples are replaced by those of a
#: record that exists, if the user of the examples has one: then every endpoint can be tried as it stands.
_START: Final = """
async function load(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(url + ": " + answer.status);
  return answer.json();
}

async function newestRecord() {
  const page = await load("t2ihistory/USER?limit=1").catch(() => ({records: []}));
  return page.records[0];
}

function putIn(record, document) {
  const examples = {type: record.type, name: record.name, filename: record.images[0].filename};
  for (const path of Object.values(document.paths))
    for (const parameter of path.parameters || [])
      if (parameter.in === "path" && parameter.name in examples) parameter.example = examples[parameter.name];
}

(async () => {
  const [document, record] = await Promise.all([load("openapi.json"), newestRecord()]);
  if (record) putIn(record, document);
  SwaggerUIBundle({spec: document, dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});
})();
""".replace("USER", USER)
_POLICY: Final = MappingProxyType(
    {
        "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; object-src 'none'",
        # A page that opens this one holds no reference to its window. Browsers heed it over https and on localhost only.
        "Cross-Origin-Opener-Policy": "same-origin",
    }
)
_ASSET_MAX_AGE: Final = 86_400
_INTRODUCTION: Final = (
    "Pictures from Stable Diffusion WebUIs by user id: checked, queued, and kept with their parameters.",
    (
        f"To try the endpoints, begin with POST /txt2img: its example is a request of the user `{USER}`. Then load this page "
        "again: the paths of all other examples name the picture that was made. The table of all errors stands at the end."
    ),
)
_ERRORS: Final = (
    f"Every error is a problem (RFC 9457, `{MEDIA_TYPE}`). Its `type` is one of these words, which never change; `detail` says "
    "what went wrong this time."
)


def version() -> str:
    """The version of the package; ``unknown`` in a checkout that was never installed."""
    try:
        return metadata.version("sd-gateway")
    except metadata.PackageNotFoundError:
        return "unknown"


def introduction() -> str:
    """The introduction above the endpoints, as Markdown."""
    return "\n\n".join(in_both_languages(text) for text in _INTRODUCTION)


def error_table() -> str:
    """Every problem there is, as Markdown."""
    rows = "\n".join(
        f"| `{slug}` | {entry.status} | {entry.title} | {chinese(entry.title)} |" for slug, entry in PROBLEMS.items()
    )
    head = "| type | status | title | 说明 |\n| --- | --- | --- | --- |"
    return f"{in_both_languages(_ERRORS)}\n\n{head}\n{rows}\n"


def blueprint() -> Blueprint:
    """The page, its assets, and the way there from ``/``."""
    blp = Blueprint("docs", __name__)
    folder = str(resources.files("flask_swagger_ui") / "dist")

    @blp.get("/")
    def index() -> WerkzeugResponse:
        return redirect("docs")

    @blp.get("/docs")
    def page() -> Response:
        return Response(_PAGE, headers=dict(_POLICY), mimetype="text/html")

    @blp.get("/docs/start.js")
    def start() -> Response:
        return Response(_START, mimetype="text/javascript")

    @blp.get("/docs/<asset>")
    def assets(asset: str) -> Response:
        if asset not in _ASSETS:
            raise NotFound("The documentation has no such file.")
        conditions.tidy(request.environ)
        response = send_from_directory(folder, asset, max_age=_ASSET_MAX_AGE)
        if response.status_code == HTTPStatus.PRECONDITION_FAILED:
            response.close()
            raise PreconditionFailed("The file has another ETag than If-Match names.")
        return response

    return blp
