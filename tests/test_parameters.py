"""The table of request fields: its own rules, and a field that is added to it by a row alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app import EXTENSION, create_app
from app.config import SETTINGS, load
from app.parameters import LARGEST_SEED, PARAMETERS, TYPES, Parameter, effective, passed_on
from app.simulator import SimulatorServer
from tests.api.conftest import TruthfulClient
from tests.inprocess import FIELDS, hurry, png_base64, simulator, until

#: One field of each kind that can be passed on; two of them with a default, one for a single type, one under another name.
ADDED = (
    Parameter(
        "tiling",
        "boolean",
        "Tiling · 平铺",
        "Whether the edges meet.",
        "边缘是否相接。",
        payload="tiling",
        passed_on=True,
    ),
    Parameter(
        "eta",
        "number",
        "Eta · 噪声",
        "Noise multiplier.",
        "噪声系数。",
        highest=1,
        default=0.25,
        payload="eta",
        passed_on=True,
    ),
    Parameter(
        "variation",
        "integer",
        "Variation seed · 变异种子",
        "A second seed; -1 is a random one.",
        "第二个种子，-1 表示随机。",
        lowest=-1,
        highest=LARGEST_SEED,
        payload="subseed",
        passed_on=True,
    ),
    Parameter(
        "tries",
        "integer",
        "Tries · 次数",
        "Noise steps.",
        "噪声步数。",
        highest="SDG_MAX_STEPS",
        payload="s_noise",
        passed_on=True,
    ),
    Parameter(
        "blank",
        "choice",
        "Blank · 填充",
        "What masked places begin with.",
        "遮罩处的初始内容。",
        choices={"fill": 0, "original": 1, "noise": 2},
        default={"img2img": "original"},
        types=("img2img",),
        payload="inpainting_fill",
        passed_on=True,
    ),
    Parameter(
        "refiner",
        "text",
        "Refiner · 精修",
        "A note.",
        "说明。",
        highest=5,
        payload="refiner_checkpoint",
        passed_on=True,
    ),
)
NAMES = {parameter.name for parameter in ADDED}
POSTED = {"tiling": True, "eta": 0.5, "variation": LARGEST_SEED, "tries": 150, "refiner": "灯塔"}
SENT = {"tiling": True, "eta": 0.5, "subseed": LARGEST_SEED, "s_noise": 150, "refiner_checkpoint": "灯塔"}
PAYLOAD_NAMES = {parameter.payload for parameter in ADDED}


class Site:
    """A gateway with more request fields, whose every answer is held against its own OpenAPI document."""

    def __init__(self, folder: Path, server: SimulatorServer) -> None:
        environ = {
            "SDG_DATA_DIR": str(folder / "data"),
            "SDG_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "SDG_HOST_ID": "testhost",
            "SDG_WEBUI_URLS": server.url,
            "SDG_DRAIN_TIMEOUT": "0",
        }
        self.app = create_app(load(environ, folder), (*PARAMETERS, *ADDED))
        self.app.test_client_class = TruthfulClient
        self.services = self.app.extensions[EXTENSION]
        self.client = self.app.test_client()
        self.data = folder / "data"
        self._server = server

    def post(self, type_: str = "txt2img", **fields: Any) -> Any:
        more = {"init_images": png_base64()} if type_ == "img2img" else {}
        return self.client.post(f"/{type_}", json=FIELDS | more | fields)

    def sent(self) -> dict[str, Any]:
        """The added fields of the last payload that the WebUI got."""
        payload = self._server.simulator.stats.payloads()[-1]["payload"]
        return {name: value for name, value in payload.items() if name in PAYLOAD_NAMES}

    def args(self, job: dict[str, Any]) -> dict[str, Any]:
        return self.client.get(f"/get_args/{job['id']}/{job['type']}/{job['name']}").json


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with pytest.MonkeyPatch.context() as monkeypatch, simulator() as server:
        hurry(monkeypatch)
        site = Site(tmp_path_factory.mktemp("site"), server)
        site.services.start(worker=True)
        try:
            until(lambda: not site.services.readiness(), "readiness")
            yield site
        finally:
            site.services.drain()


def added(args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if name in NAMES}


def test_an_added_field_is_stored_sent_and_reproduced(site: Site) -> None:
    answer = site.post(**POSTED)
    job = answer.json
    assert (answer.status_code, added(job["args"])) == (200, POSTED)
    assert site.sent() == SENT
    [document] = [json.loads(path.read_text("utf-8")) for path in site.data.rglob(f"{job['name']}-1.json")]
    assert added(document["args"]) == POSTED
    # In the table's order, however they were posted.
    assert [name for name in document["args"] if name in NAMES] == [one.name for one in ADDED if one.name in POSTED]
    assert site.client.get(f"/t2ihistory/{job['id']}").json["records"][0]["args"] == job["args"]
    args = site.args(job)
    assert args == job["args"]
    again = site.client.post("/txt2img", json=args).json
    assert (again["args"], site.sent()) == (args, SENT)


def test_an_added_field_that_was_left_out_has_its_default_or_is_not_sent(site: Site) -> None:
    job = site.post().json
    assert (job["status"], added(job["args"]), site.sent()) == ("succeeded", {"eta": 0.25}, {"eta": 0.25})
    job = site.post("img2img").json
    assert added(job["args"]) == {"eta": 0.25, "blank": "original"}
    assert site.sent() == {"eta": 0.25, "inpainting_fill": 1}
    assert added(site.args(job)) == {"eta": 0.25, "blank": "original"}


def test_false_and_zero_are_values_and_not_left_out(site: Site) -> None:
    job = site.post("img2img", tiling=False, eta=0, variation=0, tries=0, refiner="", blank="fill").json
    posted = {"tiling": False, "eta": 0, "variation": 0, "tries": 0, "refiner": "", "blank": "fill"}
    assert added(job["args"]) == posted
    assert site.sent() == {
        "tiling": False, "eta": 0, "subseed": 0, "s_noise": 0, "refiner_checkpoint": "", "inpainting_fill": 0,
    }  # fmt: skip


BAD = {
    "tiling": ([0, 1, "true", [], 1.0], "Must be true or false."),
    "eta": ([-0.1, 1.1, "0.5", True], "Must be a number from 0 to 1."),
    "variation": ([-2, 2**32, 0.5, "7", False], "Must be an integer from -1 to 4294967295."),
    "tries": ([-1, 151], "Must be an integer from 0 to 150."),
    "refiner": (["123456"], "Must be at most 5 characters long."),
    "blank": (["", "Fill", "latent"], "Must be one of fill, original, noise."),
}


@pytest.mark.parametrize("name", BAD)
def test_an_added_field_is_refused_when_it_is_wrong(site: Site, name: str) -> None:
    values, message = BAD[name]
    for value in [*values, None]:
        answer = site.post("img2img", **{name: value})
        assert (answer.status_code, answer.json["type"]) == (422, "validation-failed")
        assert answer.json["errors"] == {name: [message if value is not None else "null is not accepted."]}, value


def test_an_added_field_is_unknown_to_the_other_type_and_near_to_a_misspelt_one(site: Site) -> None:
    assert site.post(blank="fill").json["errors"] == {"blank": ["Unknown field."]}
    assert site.post(tilling=True).json["errors"] == {"tilling": ["Unknown field; did you mean tiling?"]}


def test_an_added_field_is_documented(site: Site) -> None:
    schemas = site.client.get("/openapi.json").json["components"]["schemas"]
    txt2img, img2img = (schemas[f"{type_.capitalize()}Request"] for type_ in TYPES)
    assert txt2img["properties"]["tiling"] == {
        "type": "boolean",
        "title": "Tiling · 平铺",
        "description": "Whether the edges meet.\n\n边缘是否相接。",
    }
    variation, tries, eta = (txt2img["properties"][name] for name in ("variation", "tries", "eta"))
    assert (variation["minimum"], variation["maximum"]) == (-1, LARGEST_SEED)
    assert (tries["minimum"], tries["maximum"]) == (0, 150)
    assert (eta["minimum"], eta["maximum"], eta["default"]) == (0, 1, 0.25)
    assert img2img["properties"]["blank"]["enum"] == ["fill", "original", "noise"]
    assert "blank" not in txt2img["properties"]
    assert not NAMES & set(txt2img["required"] + img2img["required"])
    for name in ("Args", "CompleteArgs"):
        assert set(schemas[name]["properties"]) >= NAMES
        assert not NAMES & set(schemas[name]["required"])


def test_a_job_that_was_accepted_before_a_field_was_known_is_sent_without_it() -> None:
    args = effective(PARAMETERS, "txt2img", FIELDS)
    assert passed_on((*PARAMETERS, *ADDED), "txt2img", args) == passed_on(PARAMETERS, "txt2img", args)


# The table itself.


def test_every_name_stands_once_and_every_passed_on_field_has_a_place_of_its_own() -> None:
    names = [parameter.name for parameter in PARAMETERS]
    places = [parameter.payload for parameter in PARAMETERS if parameter.payload]
    assert len(set(names)) == len(names)
    assert len(set(places)) == len(places)
    assert [parameter.name for parameter in PARAMETERS if parameter.passed_on and not parameter.payload] == []


def test_every_bound_that_is_a_setting_is_one() -> None:
    settings = {setting.name for setting in SETTINGS}
    named = {parameter.highest for parameter in PARAMETERS if isinstance(parameter.highest, str)}
    assert named
    assert named <= settings


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_every_row_is_whole(parameter: Parameter) -> None:
    english, _, chinese = parameter.title.partition(" · ")
    for text, ascii_only in ((english, True), (parameter.english, True), (chinese, False), (parameter.chinese, False)):
        assert text
        assert text.replace("×", "x").isascii() is ascii_only, text
    assert parameter.types
    assert set(parameter.types) <= set(TYPES)
    assert set(parameter.only_upscaled) <= set(parameter.types)
    assert bool(parameter.choices) is (parameter.kind == "choice")
    for type_ in parameter.types:
        default = parameter.default_of(type_)
        assert default is None or not parameter.required
        if parameter.kind == "number" and default is not None:
            assert parameter.lowest <= default <= float(parameter.highest)
