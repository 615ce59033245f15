"""What a running gateway says about itself holds: the example bodies work, and the page needs nothing from elsewhere."""

from __future__ import annotations

import re

import pytest

from tests.system.harness import Gateway, Simulator


@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
def test_the_example_body_works_as_it_stands(house: Gateway, its_simulator: Simulator, kind: str) -> None:
    document = house.http.get("/openapi.json").json()
    content = document["paths"][f"/{kind}"]["post"]["requestBody"]["content"]["application/json"]

    job = house.succeeded(house.send(kind, content["example"]))

    assert job["args"]["prompt"] == content["example"]["prompt"]
    assert len(house.images(job)) == content["example"]["batch_size"]


def test_the_docs_page_loads_nothing_from_elsewhere(house: Gateway) -> None:
    page = house.http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert assets
    assert not re.findall(r"(?:https?:)?//", page.text)
    for asset in assets:
        answer = house.http.get(f"/{asset}")
        assert (answer.status_code, bool(answer.content)) == (200, True), asset
        if answer.headers["Content-Type"].startswith("text/css"):
            # Only what a style sheet would load; the script's own texts name many an address.
            assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//|@import", answer.text)
    start = next(asset for asset in assets if asset.endswith("start.js"))
    assert 'url: "openapi.json"' in house.http.get(f"/{start}").text
    assert house.http.get("/").headers["Location"] in ("docs", "/docs")
