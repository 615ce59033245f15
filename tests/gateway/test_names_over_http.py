"""Names in requests, over HTTP in front of simulators: which file makes the picture, and what happens when lists change."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import requests
from sqlalchemy import text

from app import EXTENSION, create_app
from app.config import load
from app.gateway import offering
from app.jobs.worker import timing
from app.services import Services
from app.simulator import SimulatorServer
from tests.inprocess import FIELDS, arm, hurry, simulator, stats, until

BOTH = {"models": ("a", "sub/a")}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


class Site:
    """A gateway with its HTTP interface, in front of simulators; one folder may be opened several times."""

    def __init__(self, folder: Path, *servers: SimulatorServer, **settings: str) -> None:
        instance = folder / "instance"
        instance.mkdir(exist_ok=True)
        environ = {
            "SDG_DATA_DIR": str(folder / "data"),
            "SDG_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "SDG_HOST_ID": "testhost",
            "SDG_WEBUI_URLS": ",".join(f"gpu{number}={server.url}" for number, server in enumerate(servers)),
            "SDG_DRAIN_TIMEOUT": "0",
        }
        self.app = create_app(load(environ | settings, instance))
        self.services: Services = self.app.extensions[EXTENSION]
        self.client = self.app.test_client()
        self._servers = servers

    def start(self) -> Site:
        """Start the worker and wait until every WebUI was asked what it offers."""
        self.services.start(worker=True)
        until(lambda: len(self.services.offering.catalogues()) == len(self._servers), "the catalogues")
        until(lambda: len(self.services.tables.catalogues.sightings().seen_at) == len(self._servers), "the WebUIs up")
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.services.drain()

    def post(self, *, prefer: str = "", type_: str = "txt2img", **fields: Any) -> Any:
        return self.client.post(f"/{type_}", json=FIELDS | fields, headers={"Prefer": prefer} if prefer else {})

    def picture(self, posted: Any) -> bytes:
        assert posted.status_code == 200, posted.json
        with self.client.get(posted.json["images"][0]["url"]) as response:
            return response.data

    def ready(self) -> dict[str, Any]:
        return dict(self.client.get("/readyz").json)

    def change(self, statement: str, **values: object) -> None:
        with self.services.database.write() as connection:
            assert connection.execute(text(statement), values).rowcount == 1


def direct(server: SimulatorServer, checkpoint: str) -> bytes:
    """The picture of FIELDS that a WebUI makes with the file of that title."""
    fields = {name: FIELDS[name] for name in ("prompt", "negative_prompt", "width", "height", "steps", "cfg_scale")}
    payload = fields | {"seed": 7, "sampler_name": "Euler", "override_settings": {"sd_model_checkpoint": checkpoint}}
    answer = requests.post(f"{server.url}/sdapi/v1/txt2img", json=payload, timeout=30).json()
    return base64.b64decode(answer["images"][0])


def models_of(server: SimulatorServer) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = requests.get(f"{server.url}/sdapi/v1/sd-models", timeout=30).json()
    return listed


def change_models(server: SimulatorServer, **lists: list[str]) -> None:
    requests.post(f"{server.url}/simulator/models", json=lists, timeout=30).raise_for_status()


def sent(server: SimulatorServer) -> dict[str, Any]:
    """The payload of the last generation that the WebUI received."""
    posted = requests.get(f"{server.url}/simulator/requests", timeout=30).json()
    payload: dict[str, Any] = posted[-1]["payload"]
    return payload


@pytest.fixture(params=[True, False], ids=["hashing", "no-hashing"])
def twins(request: pytest.FixtureRequest) -> Iterator[SimulatorServer]:
    """A WebUI with two files of one stem, with and without ``--no-hashing``."""
    with simulator(**BOTH, hashing=request.param) as server:
        yield server


class TestTwoFilesOfOneName:
    def test_each_is_made_by_its_own_file_whatever_was_loaded_before(
        self, tmp_path: Path, twins: SimulatorServer
    ) -> None:
        names = {
            "a.safetensors": "a.safetensors",
            "sub_a": "sub/a.safetensors",
            "sub/a.safetensors": "sub/a.safetensors",
        }
        with Site(tmp_path, twins).start() as site:
            for name in (*names, *reversed(names)):
                posted = site.post(model=name)
                assert site.picture(posted) == direct(twins, names[name])
                assert posted.json["args"]["model"] == {"sub/a.safetensors": "sub_a"}.get(names[name], "a.safetensors")
            site.post(model="a.safetensors")
            assert sent(twins)["override_settings"]["sd_model_checkpoint"] == "a.safetensors"

    def test_the_name_of_both_is_refused_with_the_names_of_each(self, tmp_path: Path, twins: SimulatorServer) -> None:
        with Site(tmp_path, twins).start() as site:
            refused = site.post(model="a")
            assert (refused.status_code, refused.json["type"]) == (422, "unknown-name")
            assert refused.json["accepted"] == {"model": ["a.safetensors", "sub_a"]}
            assert "several files" in refused.json["errors"]["model"][0]
            options = site.client.get("/options").json
            assert (options["models"], options["default_model"]) == (["a.safetensors", "sub_a"], "a.safetensors")
            assert site.post().json["args"]["model"] == "a.safetensors"
            assert stats(twins)["generations"] == 1

    def test_the_args_posted_back_make_the_same_picture(self, tmp_path: Path, twins: SimulatorServer) -> None:
        with Site(tmp_path, twins).start() as site:
            for name in ("a.safetensors", "sub_a"):
                first = site.post(model=name)
                args = site.client.get(f"/get_args/u1/txt2img/{first.json['name']}").json
                again = site.client.post("/txt2img", json=args)
                assert again.json["args"] == args
                assert site.picture(again) == site.picture(first)

    def test_a_webui_where_the_name_means_one_file_takes_it(self, tmp_path: Path, twins: SimulatorServer) -> None:
        with simulator(models=("a",)) as single, Site(tmp_path, twins, single).start() as site:
            for _ in range(3):
                posted = site.post(model="a")
                assert site.picture(posted) == direct(single, "a.safetensors")
                assert posted.json["args"]["model"] == "a"
            assert stats(twins)["generations"] == 0
            assert site.post(model="sub_a").status_code == 200


class TestWhatVersion010Left:
    def test_the_default_model_in_the_settings_is_the_exact_model_name(
        self, tmp_path: Path, twins: SimulatorServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        requests.post(f"{twins.url}/sdapi/v1/options", json={"sd_model_checkpoint": "sub_a"}, timeout=30)
        with caplog.at_level(logging.WARNING), Site(tmp_path, twins, SDG_DEFAULT_MODEL="a").start() as site:
            for _ in range(2):
                assert site.picture(site.post()) == direct(twins, "a.safetensors")
            assert site.client.get("/options").json["default_model"] == "a.safetensors"
        [line] = [record.message for record in caplog.records if "several models called 'a'" in record.message]
        assert "a.safetensors" in line

    def test_so_is_the_default_that_it_stored(
        self, tmp_path: Path, twins: SimulatorServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        requests.post(f"{twins.url}/sdapi/v1/options", json={"sd_model_checkpoint": "sub_a"}, timeout=30)
        with Site(tmp_path, twins) as site:
            site.services.tables.catalogues.set_default_model("a")
            with caplog.at_level(logging.WARNING):
                site.start()
                assert site.picture(site.post()) == direct(twins, "a.safetensors")
            assert site.services.tables.catalogues.default_model() == "a.safetensors"
        [line] = [record.message for record in caplog.records if "several models called 'a'" in record.message]
        assert "a.safetensors" in line

    def test_so_is_the_model_of_a_preset(self, tmp_path: Path, twins: SimulatorServer) -> None:
        (tmp_path / "instance").mkdir()
        (tmp_path / "instance" / "styles.toml").write_text('[plain]\nmodel = "a"\n')
        with Site(tmp_path, twins).start() as site:
            posted = site.post(style="plain")
            assert posted.json["args"]["model"] == "a.safetensors"
            assert site.picture(posted) == direct(twins, "a.safetensors")

    def test_so_is_the_model_of_a_job_that_waited(
        self, tmp_path: Path, twins: SimulatorServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Site(tmp_path, twins).start():
            pass
        with Site(tmp_path, twins) as site:
            waiting = [site.post(model="a.safetensors", prefer="respond-async").json for _ in range(2)]
            body = {"type": "txt2img", "sampler_name": "Euler", "model": "a"}
            body |= dict.fromkeys(("scheduler", "style", "hr_upscaler"))
            site.change(
                "UPDATE requirements SET body = :body", body=json.dumps(body, sort_keys=True, separators=(",", ":"))
            )
            with caplog.at_level(logging.WARNING):
                site.start()
                for job in waiting:
                    until(lambda job=job: site.client.get(job["url"]).json["status"] == "succeeded", "the job")
            done = site.client.get(waiting[0]["url"]).json
            with site.client.get(done["images"][0]["url"]) as picture:
                assert picture.data == direct(twins, "a.safetensors")
        [line] = [record.message for record in caplog.records if "several models called 'a'" in record.message]
        assert "a.safetensors" in line

    def test_a_job_of_this_version_whose_name_became_ambiguous_gets_no_other_pixels(
        self, tmp_path: Path, server: SimulatorServer
    ) -> None:
        change_models(server, add=["sub/a"], remove=[])
        with Site(tmp_path, server).start():
            pass
        with Site(tmp_path, server) as site:
            waiting = site.post(model="a", prefer="respond-async").json
            assert waiting["args"]["model"] == "a"
            change_models(server, add=["a"])
            site.start()
            until(lambda: site.client.get(waiting["url"]).json["status"] == "failed", "the job's end")
            assert site.client.get(waiting["url"]).json["error"]["type"] == "no-longer-available"
            assert stats(server)["generations"] == 0


class TestHashes:
    def test_a_hash_that_is_not_known_yet_is_accepted_and_checked_by_the_result(self, tmp_path: Path) -> None:
        with simulator(models=("a", "b")) as server, Site(tmp_path, server).start() as site:
            assert models_of(server)[1]["hash"] is None
            wrong = site.post(model="b.safetensors [ffffffffff]")
            assert (wrong.status_code, wrong.json["type"]) == (502, "webui-wrong-model")
            known = models_of(server)[1]["hash"]
            for name in (f"b.safetensors [{known}]", f"b [{known.upper()}]", f"b [{models_of(server)[1]['sha256']}]"):
                posted = site.post(model=name)
                assert (posted.status_code, posted.json["args"]["model"]) == (200, "b")

    def test_right_at_the_first_time(self, tmp_path: Path) -> None:
        with simulator(models=("a", "b")) as other:
            direct(other, "b.safetensors")
            title = models_of(other)[1]["title"]
        with simulator(models=("a", "b")) as server, Site(tmp_path, server).start() as site:
            assert models_of(server)[1]["title"] != title
            posted = site.post(model=title)
            assert site.picture(posted) == direct(server, "b.safetensors")

    def test_a_hash_that_disagrees_with_a_known_one_is_refused(self, tmp_path: Path) -> None:
        with simulator(models=("a", "b")) as server, Site(tmp_path, server).start() as site:
            refused = site.post(model="a.safetensors [ffffffffff]")
            assert refused.status_code == 422
            assert refused.json["accepted"]["model"] == ["a", "b"]


class TestSchedulersInSamplers:
    @pytest.mark.parametrize("flavour", ["a1111-1.10", "forge"])
    def test_a_name_of_an_older_webui_is_taken_apart(self, tmp_path: Path, flavour: str) -> None:
        with simulator(flavour=flavour) as server, Site(tmp_path, server).start() as site:
            posted = site.post(sampler_name="DPM++ 2M Karras")
            assert posted.status_code == 200
            args = posted.json["args"]
            assert (args["sampler_name"], args["scheduler"]) == ("DPM++ 2M Karras", "Karras")
            assert (sent(server)["sampler_name"], sent(server)["scheduler"]) == ("DPM++ 2M", "Karras")
            plain = site.post(sampler_name="DPM++ 2M", scheduler="Karras")
            assert site.picture(plain) == site.picture(posted)
            again = site.client.post("/txt2img", json=args)
            assert again.json["args"] == args
            assert site.picture(again) == site.picture(posted)

    def test_args_of_before_and_after_an_upgrade_are_taken_by_both(self, tmp_path: Path) -> None:
        with simulator(flavour="a1111-1.7") as old, Site(tmp_path, old).start() as site:
            posted = site.post(sampler_name="DPM++ 2M Karras")
            assert "scheduler" not in posted.json["args"]
            again = site.post(sampler_name="DPM++ 2M Karras", scheduler="Karras")
            assert site.picture(again) == site.picture(posted)
            assert "scheduler" not in sent(old)
            assert site.post(sampler_name="DPM++ 2M Karras", scheduler="Exponential").status_code == 422

    def test_another_scheduler_beside_it_is_refused(self, tmp_path: Path, server: SimulatorServer) -> None:
        with Site(tmp_path, server).start() as site:
            refused = site.post(sampler_name="DPM++ 2M Karras", scheduler="Exponential")
            assert refused.status_code == 422
            assert "already names a scheduler" in refused.json["errors"]["scheduler"][0]
            assert refused.json["accepted"] == {"scheduler": ["Karras"]}

    def test_a_preset_may_name_one(self, tmp_path: Path, server: SimulatorServer) -> None:
        (tmp_path / "instance").mkdir()
        (tmp_path / "instance" / "styles.toml").write_text('[old]\nsampler = "DPM++ 2M Karras"\n')
        with Site(tmp_path, server).start() as site:
            assert "old" in site.client.get("/options").json["styles"]
            assert site.post(style="old").json["args"]["scheduler"] == "Karras"
            assert sent(server)["sampler_name"] == "DPM++ 2M"


class TestChangedLists:
    @pytest.fixture(autouse=True)
    def _at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a WebUI be asked again without the pause of five seconds; no test depends on how short it is."""
        monkeypatch.setattr(timing, "REFRESH_AGAIN_SECONDS", 0.0)
        monkeypatch.setattr(offering, "RECENT_SECONDS", 0.0)
        monkeypatch.setattr(offering, "REFRESH_PATIENCE_SECONDS", 30.0)

    def test_a_model_that_was_added_is_taken_by_the_first_post(self, tmp_path: Path, server: SimulatorServer) -> None:
        with Site(tmp_path, server).start() as site:
            change_models(server, add=["new"])
            assert site.post(model="new").status_code == 200
            assert "new" in site.client.get("/options").json["models"]

    def test_a_name_that_stays_unknown_is_refused_after_a_refresh(
        self, tmp_path: Path, server: SimulatorServer
    ) -> None:
        with Site(tmp_path, server).start() as site:
            before = site.services.tables.catalogues.sightings()
            assert site.post(model="never").status_code == 422
            after = site.services.tables.catalogues.sightings()
            assert after.all_since(before.now)

    def test_a_worker_of_another_host_sees_it_too(self, tmp_path: Path, server: SimulatorServer) -> None:
        with Site(tmp_path, server).start(), Site(tmp_path, server) as web:
            # No datagram goes out from here, only the row.
            change_models(server, add=["new"])
            assert web.services.notifications.wake is None
            assert web.post(model="new", prefer="respond-async").status_code == 202

    def test_a_wrong_answer_makes_the_worker_refresh_the_catalogue(
        self, tmp_path: Path, server: SimulatorServer
    ) -> None:
        with Site(tmp_path, server).start() as site:
            before = site.services.tables.catalogues.sightings()
            arm(server, "wrong-model")
            failed = site.post()
            assert (failed.status_code, failed.json["type"]) == (502, "webui-wrong-model")
            until(lambda: site.services.tables.catalogues.sightings().all_since(before.now), "a refresh")

    def test_a_model_that_was_removed_is_refused_once_that_was_met(
        self, tmp_path: Path, server: SimulatorServer
    ) -> None:
        with Site(tmp_path, server).start() as site:
            change_models(server, remove=["simulated-two"])
            failed = site.post(model="simulated-two")
            assert failed.status_code == 502
            until(lambda: site.client.get("/options").json["models"] == ["simulated-one"], "the new list")
            refused = site.post(model="simulated-two")
            assert (refused.status_code, refused.json["accepted"]) == (422, {"model": ["simulated-one"]})

    def test_jobs_that_wait_for_a_removed_model_fail_once_that_is_known(
        self, tmp_path: Path, server: SimulatorServer
    ) -> None:
        with Site(tmp_path, server).start() as site:
            arm(server, "hang", seconds=1.0)
            running = site.post(prefer="respond-async").json
            waiting = site.post(model="simulated-two", prefer="respond-async").json
            change_models(server, remove=["simulated-two"])
            assert site.post(model="never").status_code == 422
            until(lambda: site.client.get(waiting["url"]).json["status"] == "failed", "the end of the waiting job")
            assert site.client.get(waiting["url"]).json["error"]["type"] == "no-longer-available"
            until(lambda: site.client.get(running["url"]).json["status"] == "succeeded", "the running job")


def test_webuis_that_were_asked_just_now_are_not_asked_again(tmp_path: Path, server: SimulatorServer) -> None:
    with Site(tmp_path, server).start() as site:
        change_models(server, add=["new"])
        before = site.services.tables.catalogues.sightings().seen_at
        assert site.post(model="new").status_code == 422
        assert site.services.tables.catalogues.sightings().seen_at == before


class TestFreshServer:
    def test_the_first_model_is_the_default_as_soon_as_it_is_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timing, "FRESH_SECONDS", 0.05)
        monkeypatch.setattr(offering, "REFRESH_PATIENCE_SECONDS", 0.0)
        with simulator(fresh=True, seconds_per_first_load=3600.0) as server, Site(tmp_path, server).start() as site:
            refused = site.post()
            assert (refused.status_code, refused.json["type"]) == (503, "no-default-model")
            assert refused.headers["Retry-After"] == "2"
            ready = site.ready()
            assert ready["status"] == "degraded"
            [reason] = ready["reasons"]
            assert "No default model is known" in reason
            loaded = {"sd_model_checkpoint": "simulated-two"}
            requests.post(f"{server.url}/sdapi/v1/options", json=loaded, timeout=30).raise_for_status()
            until(lambda: site.ready()["status"] == "ok", "readiness")
            assert site.client.get("/options").json["default_model"] == "simulated-two"

    def test_a_configured_default_that_is_missing_is_degraded_too(
        self, tmp_path: Path, server: SimulatorServer
    ) -> None:
        with Site(tmp_path, server, SDG_DEFAULT_MODEL="gone").start() as site:
            assert site.ready()["status"] == "degraded"
            assert site.post().status_code == 503
            assert site.post(model="simulated-one").status_code == 200
