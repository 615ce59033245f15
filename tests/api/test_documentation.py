from __future__ import annotations

import ast
import re
from importlib import metadata
from pathlib import Path

import jsonschema

import app.api as package
from app import problems
from app.api.chinese import CHINESE
from tests.api.conftest import nullable_as_json_schema
from tests.api.fakes import IMG2IMG, TXT2IMG

#: The documentation itself, which does not describe itself.
UNDOCUMENTED = {"/", "/docs", "/docs/start.js", "/docs/{asset}", "/openapi.json"}
SLUG = re.compile(r"\* `([a-z-]+)`")
HAN = re.compile(r"[\u4e00-\u9fff]")
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
        assert {"400", "500"} <= set(operation["responses"]), path
        assert {"200", "204"} & set(operation["responses"]), path
        for status, answer in operation["responses"].items():
            assert status.isdigit(), (path, method)
            if int(status) >= 400:
                assert set(answer["content"]) == {"application/problem+json"}, (path, method, status)
                problem = answer["content"]["application/problem+json"]
                assert problem["schema"] == {"$ref": "#/components/schemas/Problem"}, (path, method, status)
                examples = {f"#/components/examples/{slug}" for slug in SLUG.findall(answer["description"])}
                assert {example["$ref"] for example in problem["examples"].values()} == examples, (path, method, status)


def test_every_slug_is_documented_under_its_status(client):
    document = client.get("/openapi.json").json
    found: dict[str, set[int]] = {}
    for _, _, operation in operations(document):
        for status, answer in operation["responses"].items():
            for slug in SLUG.findall(answer["description"]):
                found.setdefault(slug, set()).add(int(status))
    # A wrong method has no operation to be documented under, and a stream tells its problem in an event; the table lists all.
    assert set(problems.PROBLEMS) - set(found) == {"method-not-allowed", "no-free-stream"}
    assert found == {slug: {problems.PROBLEMS[slug].status} for slug in found}
    for slug in problems.PROBLEMS:
        assert f"| `{slug}` | {problems.PROBLEMS[slug].status} |" in document["tags"][-1]["description"]


def test_the_endpoints_come_first_and_the_table_of_errors_last(client):
    document = client.get("/openapi.json").json
    assert "| `" not in document["info"]["description"]
    used = list(dict.fromkeys(tag for _, _, operation in operations(document) for tag in operation["tags"]))
    assert [tag["name"] for tag in document["tags"]] == [*used, "errors"]


def test_the_document_has_the_version_of_the_package(client):
    assert client.get("/openapi.json").json["info"]["version"] == metadata.version("sd-gateway")


def test_the_operation_ids_name_the_methods_of_a_generated_client(client):
    named = {(method, path): o["operationId"] for path, method, o in operations(client.get("/openapi.json").json)}
    assert named["post", "/txt2img"] == "create_txt2img"
    assert named["get", "/t2ihistory/{id}"] == "list_txt2img_history"
    assert named["get", "/jobs/{id}/{type}/{name}"] == "get_job"
    assert len(set(named.values())) == len(named)
    verbs = {"post": ("create", "cancel"), "get": ("get", "list"), "delete": ("delete",)}
    for (method, path), name in named.items():
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", name), path
        assert name.partition("_")[0] in verbs[method], path


def test_no_class_of_a_generated_client_is_named_after_a_title(client):
    """Generators name the class of an object or of an enumeration after its title; ours are in two languages."""
    for name, schema in client.get("/openapi.json").json["components"]["schemas"].items():
        assert "title" not in schema, name
        for field, described in schema["properties"].items():
            assert "title" not in described or not {"enum", "properties"} & set(described), (name, field)


def texts(node, place=()):
    """Every summary, title and description of an OpenAPI document, with its place; none of the data in its examples."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("summary", "title", "description") and isinstance(value, str):
                yield (*place, name), value
            elif name not in ("example", "value", "enum", "default"):
                yield from texts(value, (*place, name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from texts(value, (*place, index))


def test_every_text_is_in_english_and_chinese(client):
    document = client.get("/openapi.json").json
    found = dict(texts(document))
    del found["info", "title"]
    for place, text in found.items():
        lines = text.split(" · ") if place[-1] in ("summary", "title") else re.split(r" · |\n\n", text)
        assert any(HAN.search(line) for line in lines), (place, text)
        assert any(line and not HAN.search(line) for line in lines), (place, text)
    for path, method, operation in operations(document):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)
        shared = document["paths"][path].get("parameters", [])
        for described in (*shared, *operation.get("parameters", ()), *operation["responses"].values()):
            assert described["description"], (method, path)
    for name, schema in document["components"]["schemas"].items():
        for field, described in schema["properties"].items():
            # In OpenAPI 3.0 nothing may stand beside a reference.
            assert "$ref" in described or {"description", "title"} & set(described), (name, field)


def test_every_translation_is_used(client):
    found = "\n".join(text for _, text in texts(client.get("/openapi.json").json))
    assert [english for english, chinese in CHINESE.items() if english not in found or chinese not in found] == []
    assert [english for english, chinese in CHINESE.items() if not HAN.search(chinese) or not english.isascii()] == []


def test_every_endpoint_has_examples_that_fit_its_schema(client):
    document = nullable_as_json_schema(client.get("/openapi.json").json)
    for path, _, operation in operations(document):
        for parameter in document["paths"][path].get("parameters", ()):
            jsonschema.validate(parameter["example"], parameter["schema"])
        for status, answer in operation["responses"].items():
            for media_type, content in answer.get("content", {}).items():
                if not media_type.startswith("image/"):
                    examples = content.get("examples", {"only": {"value": content.get("example")}})
                    for name, example in examples.items():
                        check_example(
                            document, content["schema"], resolved(document, example)["value"], (path, status, name)
                        )


def resolved(document, node):
    """A node of the document, or what it refers to."""
    for name in node.get("$ref", "").removeprefix("#/").split("/") if "$ref" in node else ():
        node = document[name] if name in document else node[name]
    return node


def check_example(document, schema, example, place):
    assert example is not None, place
    errors = jsonschema.Draft202012Validator({**schema, "components": document["components"]}).iter_errors(example)
    assert [error.message for error in errors] == [], place


def test_the_examples_of_problems_are_of_their_slug(client):
    examples = client.get("/openapi.json").json["components"]["examples"]
    assert set(examples) == set(problems.PROBLEMS)
    for slug, example in examples.items():
        problem = problems.PROBLEMS[slug]
        assert {name: example["value"][name] for name in ("type", "title", "status")} == {
            "type": slug,
            "title": problem.title,
            "status": problem.status,
        }
        assert example["value"]["detail"]


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


def test_every_operation_takes_the_id_of_a_request_and_every_answer_has_it(client):
    document = client.get("/openapi.json").json
    for path, method, operation in operations(document):
        [asked] = [entry for entry in operation["parameters"] if entry["name"] == "X-Request-ID"]
        assert (asked["in"], asked["schema"], asked.get("required")) == ("header", {"type": "string"}, None), path
        for status, answer in operation["responses"].items():
            assert answer["headers"]["X-Request-ID"] == {"$ref": "#/components/headers/X-Request-ID"}, (
                method,
                path,
                status,
            )
    assert document["components"]["headers"].keys() == {"X-Request-ID"}


def test_the_queries_and_headers_are_documented(client):
    paths = client.get("/openapi.json").json["paths"]

    def named(path, method="get"):
        found = {entry["name"] for entry in paths[path][method].get("parameters", ())}
        return found - {"X-Request-ID"}

    assert named("/t2ihistory/{id}") == named("/i2ihistory/{id}") == {"limit", "before", "sign"}
    assert named("/jobs/{id}") == {"limit", "before", "status", "sign"}
    of_posts = {"Prefer", "Idempotency-Key", "Cancel-After", "sign"}
    assert named("/txt2img", "post") == named("/img2img", "post") == of_posts
    accepted = paths["/txt2img"]["post"]["responses"]["202"]
    assert {"Location", "Preference-Applied", "X-Request-ID"} == set(accepted["headers"])
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
    assert 'load("openapi.json")' in client.get("/docs/start.js").text


def test_every_view_is_short():
    """A view is parse, one call, dump: ten lines at most, without its decorators."""
    views = [
        node
        for module in Path(package.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator).startswith(("blp.route", "blp.get")) for decorator in node.decorator_list)
    ]
    assert len(views) == 25
    too_long = {view.name: view.end_lineno - view.lineno + 1 for view in views if view.end_lineno - view.lineno >= 10}
    assert too_long == {}
