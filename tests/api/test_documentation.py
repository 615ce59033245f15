from __future__ import annotations

import ast
import re
from pathlib import Path

import app.api as package
from app import problems as errors
from tests.api.fakes import IMG2IMG, TXT2IMG

#: The documentation itself, which does not describe itself.
UNDOCUMENTED = {"/", "/docs", "/docs/start.js", "/docs/{asset}", "/openapi.json"}
METHODS = ("get", "post", "put", "patch", "delete")
TITLES = {
    ("/txt2img", "post"): "文生图接口",
    ("/img2img", "post"): "图生图接口",
    ("/t2ihistory/{id}", "get"): "查询文生图记录",
    ("/i2ihistory/{id}", "get"): "查询图生图记录",
    ("/get_images/{id}/{type}/{filename}", "get"): "请求图片",
    ("/get_args/{id}/{type}/{filename}", "get"): "请求作图参数",
    ("/delete/{id}/{type}/{filename}", "delete"): "删除作图记录",
}
FIELDS = {
    "id": "用户id",
    "prompt": "正向提示词",
    "negative_prompt": "反向提示词",
    "width": "宽",
    "height": "高",
    "seed": "种子",
    "steps": "采样步数",
    "hr_upscaler": "高清化采样器",
    "cfg_scale": "提示词关联程度",
    "style": "风格",
    "batch_size": "作图数量",
    "init_images": "参考图",
}


def operations(document):
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def test_every_route_is_documented_and_nothing_else_is(gateway, client):
    documented = {(path, method) for path, method, _ in operations(client.get("/openapi.json").json)}
    routes = {
        (re.sub(r"<(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in gateway[0].url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert {route for route in routes if route[0] not in UNDOCUMENTED} == documented
    assert {path for path, _ in routes} >= UNDOCUMENTED


def test_the_documented_titles_stand_beside_english_ones(client):
    document = client.get("/openapi.json").json
    for (path, method), title in TITLES.items():
        english, _, chinese = document["paths"][path][method]["summary"].partition(" · ")
        assert english.isascii()
        assert chinese == title
    schemas = document["components"]["schemas"]
    for schema, body in (("Txt2imgRequest", TXT2IMG), ("Img2imgRequest", IMG2IMG)):
        assert set(schemas[schema]["required"]) == set(body)
        assert schemas[schema]["additionalProperties"] is False
        for name in body:
            english, _, chinese = schemas[schema]["properties"][name]["title"].partition(" · ")
            assert english.isascii()
            assert chinese == FIELDS[name]


def test_errors_are_documented_as_problems_and_under_no_other_media_type(client):
    document = client.get("/openapi.json").json
    for path, method, operation in operations(document):
        assert {"200", "400", "500"} <= set(operation["responses"]), path
        for status, answer in operation["responses"].items():
            assert status.isdigit(), (path, method)
            if int(status) >= 400:
                problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
                assert answer["content"] == {"application/problem+json": problem}, (path, method, status)


def test_every_slug_is_documented_under_its_status(client):
    document = client.get("/openapi.json").json
    found: dict[str, set[int]] = {}
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            for slug in re.findall(r"`([a-z-]+)`", answer["description"]):
                found.setdefault(slug, set()).add(int(status))
    # A wrong method has no operation to be documented under; the introduction lists it with all others.
    assert set(errors.PROBLEMS) - set(found) == {"method-not-allowed"}
    assert found == {slug: {errors.PROBLEMS[slug].status} for slug in found}
    for slug in errors.PROBLEMS:
        assert f"| `{slug}` | {errors.PROBLEMS[slug].status} |" in document["info"]["description"]


def test_the_document_is_openapi_3_0_and_every_reference_leads_somewhere(client):
    response = client.get("/openapi.json")
    document = response.json
    assert document["openapi"] == "3.0.3"
    references = set(re.findall(r'"#/components/schemas/(\w+)"', response.text))
    assert references <= set(document["components"]["schemas"])
    # Requests stand inline by their own references; everything else must be used.
    assert set(document["components"]["schemas"]) == references
    for path, item in document["paths"].items():
        named = {entry["name"] for entry in item.get("parameters", ()) if entry["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), path
        assert all(entry["required"] for entry in item.get("parameters", ()))


def test_the_queries_and_headers_are_documented(client):
    paths = client.get("/openapi.json").json["paths"]

    def named(path, method="get"):
        return {entry["name"] for entry in paths[path][method].get("parameters", ())}

    assert named("/t2ihistory/{id}") == named("/i2ihistory/{id}") == {"limit", "before"}
    assert named("/jobs/{id}") == {"limit", "before", "status"}
    assert named("/txt2img", "post") == named("/img2img", "post") == {"Prefer", "Idempotency-Key"}
    accepted = paths["/txt2img"]["post"]["responses"]["202"]
    assert {"Location", "Preference-Applied"} == set(accepted["headers"])
    assert "Retry-After" in paths["/txt2img"]["post"]["responses"]["503"]["headers"]


def test_the_docs_page_loads_nothing_from_elsewhere(client):
    page = client.get("/docs")
    assert page.mimetype == "text/html"
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(sources) == 4
    for source in sources:
        assert "//" not in source
        with client.get("/" + source) as asset:
            assert asset.status_code == 200, source
            assert len(asset.data) > 50
    assert 'url: "openapi.json"' in client.get("/docs/start.js").text


def test_every_view_is_short():
    """A view is parse, one call, dump: ten lines at most, without its decorators."""
    views = [
        node
        for module in Path(package.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith(("blp.route", "blp.get")) for decorator in node.decorator_list)
    ]
    assert len(views) == 16
    too_long = {view.name: view.end_lineno - view.lineno + 1 for view in views if view.end_lineno - view.lineno >= 10}
    assert too_long == {}
