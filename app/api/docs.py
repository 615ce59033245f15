"""The page at /docs: Swagger UI from its package, with nothing loaded from elsewhere."""

from __future__ import annotations

from importlib import resources
from types import MappingProxyType

from flask import Blueprint, Response, redirect, request, send_from_directory
from werkzeug.wrappers import Response as WerkzeugResponse

from app import problems as errors
from app.api.http import conditions
from app.api.http.refusals import NotFound

_ASSETS = frozenset({"swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png"})
_PAGE = """<!DOCTYPE html>
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
#: A file of its own, so that the policy below can forbid inline scripts.
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'
_POLICY = MappingProxyType(
    {"Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"}
)
_ASSET_MAX_AGE = 86_400


def description() -> str:
    """The introduction of the OpenAPI document, with the table of all problems."""
    rows = "\n".join(f"| `{slug}` | {entry.status} | {entry.title} |" for slug, entry in errors.PROBLEMS.items())
    return (
        "Pictures from Stable Diffusion WebUIs by user id: validated, queued, kept with their parameters.\n\n"
        f"Every error is a problem (RFC 9457, `{errors.MEDIA_TYPE}`) whose `type` is one of these:\n\n"
        f"| type | status | title |\n| --- | --- | --- |\n{rows}\n"
    )


def blueprint() -> Blueprint:
    """The page, its assets, and the way there from ``/``."""
    blp = Blueprint("docs", __name__)
    folder = str(resources.files("swagger_ui_bundle") / "vendor")
    versions = [entry.name for entry in resources.files("swagger_ui_bundle").joinpath("vendor").iterdir()]

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
        return send_from_directory(folder, f"{versions[0]}/{asset}", max_age=_ASSET_MAX_AGE)

    return blp
