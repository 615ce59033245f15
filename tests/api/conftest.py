"""A client that holds every answer against the OpenAPI document."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from flask import Flask
from flask.testing import FlaskClient

from app.api import init_app
from app.api.application import Application
from tests.api import fakes


def make_app(**environ: str) -> tuple[Flask, fakes.FakeServices]:
    services = fakes.FakeServices(fakes.settings(**environ))
    app = Application("app", static_folder=None)
    init_app(app, services)
    app.test_client_class = TruthfulClient
    return app, services


def nullable_as_json_schema(node: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` in the words of JSON Schema."""
    if isinstance(node, list):
        return [nullable_as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: nullable_as_json_schema(value) for key, value in node.items()}
    if changed.pop("nullable", False) is True:
        changed["type"] = [changed["type"], "null"]
    return changed


def documented_operation(document: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    for template, operations in document["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in operations:
            return operations[method.lower()]
    return None


def check_documented(document: dict[str, Any], method: str, path: str, response: Any) -> None:
    operation = documented_operation(document, method, path)
    if operation is None:
        return
    answers = operation["responses"]
    assert str(response.status_code) in answers, f"{response.status_code} of {method} {path} is not documented"
    content = answers[str(response.status_code)].get("content", {})
    if response.status_code == 304:
        return
    if response.mimetype.startswith("image/"):
        assert response.mimetype in content or "image/*" in content
        return
    schema = content[response.mimetype]["schema"]
    validator = jsonschema.Draft202012Validator({**schema, "components": document["components"]})
    validator.validate(response.json)


class TruthfulClient(FlaskClient):
    def open(self, *args: Any, **kwargs: Any) -> Any:
        response = super().open(*args, **kwargs)
        method, path = response.request.method, response.request.path
        if method in ("GET", "POST", "DELETE"):
            document = self.application.extensions.get("document") or self._document()
            check_documented(document, method, path, response)
        return response

    def _document(self) -> dict[str, Any]:
        app = self.application
        with app.app_context():
            text = app.json.dumps(app.extensions["flask-smorest"]["apis"][""]["ext_obj"].spec.to_dict())
        app.extensions["document"] = nullable_as_json_schema(json.loads(text))
        return app.extensions["document"]


@pytest.fixture(scope="package")
def shared_app() -> tuple[Flask, fakes.FakeServices]:
    """Building an app costs a tenth of a second, most of it for the OpenAPI document."""
    return make_app()


@pytest.fixture
def gateway(shared_app: tuple[Flask, fakes.FakeServices]) -> tuple[Flask, fakes.FakeServices]:
    services = shared_app[1]
    services.answers.clear()
    services.calls.clear()
    return shared_app


@pytest.fixture
def services(gateway: tuple[Flask, fakes.FakeServices]) -> fakes.FakeServices:
    return gateway[1]


@pytest.fixture
def client(gateway: tuple[Flask, fakes.FakeServices]) -> FlaskClient:
    return gateway[0].test_client()
