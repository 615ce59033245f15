"""The documentation that a running gateway serves: its examples work, and its page needs nothing from elsewhere."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.system.harness import Gateway, Simulator

#: Members of answers that map names of the request's own choice, so that no two need to have the same.
_FREE = frozenset({"errors", "accepted"})


def shape(value: Any) -> Any:
    """The members of a JSON value at every level, of a list those of its first item."""
    if isinstance(value, dict):
        return {name: {} if name in _FREE else shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return None


def examples(document: dict[str, Any], answer: dict[str, Any]) -> list[Any]:
    """The examples of a documented answer in JSON."""
    content = answer["content"].get("application/json") or answer["content"]["application/problem+json"]
    if "example" in content:
        return [content["example"]]
    listed = content["examples"].values()
    shared = document["components"]["examples"]
    return [(shared[e["$ref"].rpartition("/")[2]] if "$ref" in e else e)["value"] for e in listed]


@pytest.fixture(scope="module")
def document(house: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = house.http.get("/openapi.json").json()
    return found


def body(document: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][f"/{kind}"]["post"]["requestBody"]["content"]["application/json"][
        "example"
    ]
    return found


@pytest.mark.parametrize("kind", ["txt2img", "img2img"])
def test_the_example_body_works_as_it_stands(
    house: Gateway, its_simulator: Simulator, document: dict[str, Any], kind: str
) -> None:
    posted = body(document, kind)
    answers = document["paths"][f"/{kind}"]["post"]["responses"]

    job = house.succeeded(house.send(kind, posted))

    assert job["args"]["prompt"] == posted["prompt"]
    assert len(house.images(job)) == posted["batch_size"]
    finished, queued = examples(document, answers["200"])[0], examples(document, answers["202"])[0]
    assert shape(job) == shape(finished)
    assert shape(queued) == shape({**job, "images": [], "webui": None})


def test_the_examples_of_all_other_endpoints_work_with_the_names_of_a_record(
    house: Gateway, its_simulator: Simulator, document: dict[str, Any]
) -> None:
    made = {kind: house.succeeded(house.send(kind, body(document, kind))) for kind in ("txt2img", "img2img")}
    tried = []
    # Deletion last: what it deletes is what the other examples name.
    for path, item in sorted(document["paths"].items(), key=lambda entry: "delete" in entry[1]):
        for method in ("get", "delete"):
            if method in item:
                status, answer = try_example(house, method, path, item.get("parameters", ()), made["txt2img"])
                answers = item[method]["responses"]
                documented = answers.get("200")
                assert status == (200 if documented else 204), (method, path, answer)
                if answer is not None:
                    assert shape(answer) in [shape(example) for example in examples(document, documented)], (
                        path,
                        answer,
                    )
                tried.append(path)
    only_posts = [path for path, item in document["paths"].items() if not {"get", "delete"} & set(item)]
    assert len(tried) == len(document["paths"]) - len(only_posts)
    assert {"/txt2img", "/img2img"} <= set(only_posts)


def try_example(
    house: Gateway, method: str, path: str, parameters: list[dict[str, Any]], record: dict[str, Any]
) -> tuple[int, Any]:
    """Ask for a path with its examples, as the page does: the names in them are those of the user's newest record."""
    names = {"type": record["type"], "name": record["name"], "filename": record["images"][0]["filename"]}
    values = {parameter["name"]: parameter["example"] for parameter in parameters}
    assert values.get("id", record["id"]) == record["id"]
    with house.http.request(method, path.format(**{**values, **names}), stream=True) as answer:
        kind = answer.headers.get("Content-Type", "")
        if kind.startswith("text/event-stream"):
            # That of a user has no end.
            return answer.status_code, None
        answer.content  # noqa: B018 -- read before the connection is given back
    return answer.status_code, answer.json() if kind.startswith("application/json") else None


def test_the_docs_page_loads_nothing_from_elsewhere(house: Gateway) -> None:
    page = house.http.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
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
    assert 'load("openapi.json")' in house.http.get(f"/{start}").text
    assert house.http.get("/").headers["Location"] in ("docs", "/docs")
