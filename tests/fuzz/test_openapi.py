"""The OpenAPI document against the gateway: thousands of requests that schemathesis makes of it, valid and invalid ones.

All checks of schemathesis are on: no answer is a 5xx, each is documented and has the documented shape, no valid request is refused
and no invalid one is accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from app.api import init_app
from app.api.application import Application
from tests.fuzz.guide import Guide, run
from tests.inprocess import Gateway, simulator

#: Minutes of a machine that is busy: run by make fuzz, and so by continuous integration.
pytestmark = pytest.mark.fuzz

_PIXELS = 65536
_SETTINGS = {
    "max_side": 128,
    "max_steps": 8,
    "max_batch_size": 2,
    "max_prompt_chars": 200,
    "max_output_pixels": _PIXELS,
}


@pytest.fixture
def app(tmp_path: Path, migrated_sqlite: Path) -> Iterator[tuple[Flask, Guide]]:
    """A gateway with a worker, whose pictures are small and take no time."""
    with simulator() as server, Gateway(tmp_path, migrated_sqlite, [server.url], **_SETTINGS) as gateway:
        gateway.start()
        app = Application("app", static_folder=None)
        init_app(app, gateway.services)
        token = gateway.services.create_token(name="fuzz", users=["*"], scopes=["delete", "admin"], seconds=None).text
        yield app, Guide(gateway.services.options(), _PIXELS, token)


@pytest.mark.timeout(360)
def test_more_than_two_thousand_requests(app: tuple[Flask, Guide]) -> None:
    findings = run(*app, max_examples=70)
    assert not findings.failures, "\n\n".join([*findings.failures[:20], f"{len(findings.failures)} in all"])
    assert findings.cases >= 2000
    # The requests that are meant to be valid reach what they ask for.
    for operation in ("POST /txt2img", "POST /img2img", "GET /get_args/{id}/{type}/{filename}", "GET /queue"):
        assert findings.statuses[operation, "positive", 200] > 0, findings.statuses
