"""Accepting: what a request becomes before it is committed, and that a refused one leaves nothing."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest

from app.gateway.accept import BadReferenceImage
from app.gateway.offering import NoCatalogue
from app.jobs.errors import KeyOfDeletedJob, KeyReused, NoFreeWaiter, QueueFull, UserQueueFull
from app.jobs.model import Failure
from app.records.errors import StorageFailed
from app.simulator import SimulatorServer
from app.webui.catalogue import Catalogue
from app.webui.errors import UnknownNames
from app.webui.models import read_models
from tests.inprocess import DEADLINE, FIELDS, Gateway, arm, hurry, make_clean, png_base64, png_bytes, stats, until
from tests.jobs.conftest import EVERYTHING, success_of

CATALOGUE = Catalogue(
    samplers=("Euler", "DDIM"),
    upscalers=("None", "Lanczos"),
    latent_modes=("Latent",),
    models=read_models({"title": title, "model_name": title[0]} for title in ("a.safetensors [12]", "b.safetensors")),
    loaded_model="a",
)


class Front(Gateway):
    """A gateway without a worker: what it accepts stays in the queue."""

    def offer(self, catalogue: Catalogue = CATALOGUE) -> None:
        self.services.slots.register("testhost/t", "testhost", ["gpu0"], only=True)
        make_clean(self.services.slots, "gpu0")
        self.services.tables.catalogues.put("gpu0", catalogue.to_json())
        self.services.offering.keep_default_model()

    def finish_next(self) -> None:
        """Be the worker for one job, without pictures."""
        table = self.services.table
        claim = table.claim("gpu0", "testhost/t", "task", EVERYTHING)
        table.answered(claim, 1.0, None, EVERYTHING)
        assert table.succeed(claim, success_of(claim)) == "succeeded"
        self.services.notifications.finished(claim.job.identity)


@pytest.fixture
def front(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Front]:
    with Front(tmp_path, migrated_sqlite, ["gpu0=http://127.0.0.1:9"]) as front:
        front.offer()
        yield front


class TestSeed:
    @pytest.mark.parametrize("posted", ["", "-1"])
    def test_a_random_seed_is_fixed_at_acceptance_and_leaves_room_for_the_batch(
        self, front: Front, posted: str
    ) -> None:
        bounds: list[int] = []

        class Highest(Random):
            def randrange(self, stop: int) -> int:
                bounds.append(stop)
                return stop - 1

        front.services.acceptance._random = Highest(1)
        view = front.accept(seed=posted, batch_size=4)
        assert bounds == [2**32 - 3]
        assert int(view["args"]["seed"]) + 4 - 1 == 4294967295
        assert front.job(view).args["seed"] == view["args"]["seed"]

    def test_two_random_seeds_differ(self, front: Front) -> None:
        assert len({front.accept(seed="")["args"]["seed"] for _ in range(5)}) == 5

    def test_a_seed_that_was_asked_for_is_kept_as_text(self, front: Front) -> None:
        assert front.accept(seed="0")["args"]["seed"] == "0"
        assert front.accept(seed=12)["args"]["seed"] == "12"


class TestNames:
    def test_every_unknown_name_is_told_at_once_and_nothing_is_accepted(self, front: Front) -> None:
        with pytest.raises(UnknownNames) as refused:
            front.accept(style="no such", sampler_name="Eule", model="c", hr_upscaler="Magic")
        assert set(refused.value.errors) == {"style", "sampler_name", "model", "hr_upscaler"}
        assert refused.value.accepted["model"] == ["a", "b"]
        assert front.services.archive.jobs("u1", None, 10, None) == ([], None)

    def test_a_model_is_taken_by_title_and_kept_by_name(self, front: Front) -> None:
        assert front.accept(model="a.safetensors [12]")["args"]["model"] == "a"

    def test_a_preset_names_its_sampler_and_model(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        (tmp_path / "instance").mkdir()
        (tmp_path / "instance" / "styles.toml").write_text(
            '[oil]\nprompt = "oil, {prompt}"\nmodel = "b"\nsampler = "DDIM"\n'
        )
        with Front(tmp_path, migrated_sqlite, ["gpu0=http://127.0.0.1:9"]) as front:
            front.offer()
            args = front.accept(style="oil")["args"]
            assert (args["prompt"], args["style"], args["model"], args["sampler_name"]) == (
                FIELDS["prompt"], "oil", "b", "DDIM",
            )  # fmt: skip
            assert front.accept(style="oil", sampler_name="Euler")["args"]["sampler_name"] == "Euler"

    def test_before_any_webui_was_seen_nothing_can_be_checked(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        with Front(tmp_path, migrated_sqlite, ["gpu0=http://127.0.0.1:9"]) as front:
            with pytest.raises(NoCatalogue) as refused:
                front.accept()
            assert refused.value.retry_after > 0
            with pytest.raises(NoCatalogue):
                front.accept("img2img")
            assert front.files() == set()

    def test_jobs_of_one_need_share_one_demand(self, front: Front) -> None:
        front.accept()
        front.accept(seed="9", prompt="another")
        front.accept(model="b")
        assert len(front.services.table.queries.requirements_after(0)) == 2


class TestCost:
    @pytest.mark.parametrize(
        ("type_", "changes", "cost"),
        [
            ("txt2img", {}, 2 * 64 * 64),
            ("txt2img", {"batch_size": 3, "steps": 10}, 10 * 64 * 64 * 3),
            ("txt2img", {"hr_upscaler": "None"}, 2 * 64 * 64),
            ("txt2img", {"hr_upscaler": "Latent", "hr_scale": 3}, 2 * 64 * 64 * 10),
            ("txt2img", {"hr_upscaler": "Latent"}, 2 * 64 * 64 * 5),
            ("img2img", {"hr_upscaler": "Lanczos"}, 2 * 64 * 64),
        ],
    )
    def test_pixel_steps_are_charged(self, front: Front, type_: str, changes: dict[str, Any], cost: float) -> None:
        assert front.job(front.accept(type_, **changes)).cost == cost


class TestReferenceImage:
    def test_it_is_stored_before_the_job_is_accepted(self, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[set[str]] = []
        accept = front.services.table.accept

        def note(*args: Any) -> Any:
            seen.append(front.files())
            return accept(*args)

        monkeypatch.setattr(front.services.table, "accept", note)
        view = front.accept("img2img", init_images=png_base64((32, 16)))
        assert seen == [{f"{view['name']}-init.png"}]
        assert (view["init_image"]["width"], view["init_image"]["height"]) == (32, 16)
        stored = front.services.records.read_init("u1", "img2img", view["name"])
        assert len(stored) == view["init_image"]["bytes"]

    def test_a_data_uri_is_taken_too(self, front: Front) -> None:
        text = "data:image/png;base64," + base64.b64encode(png_bytes()).decode()
        assert front.accept("img2img", init_images=text)["status"] == "queued"

    @pytest.mark.parametrize("text", ["***", "", base64.b64encode(b"no image").decode(), "http://127.0.0.1/x.png"])
    def test_what_is_no_image_is_refused_by_the_name_of_its_field(self, front: Front, text: str) -> None:
        with pytest.raises(BadReferenceImage) as refused:
            front.accept("img2img", init_images=text)
        assert refused.value.slug == "bad-image"
        assert refused.value.errors == {"init_images": [str(refused.value)]}
        assert front.files() == set()

    def test_too_many_pixels_are_refused(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        with Front(tmp_path, migrated_sqlite, ["gpu0=http://127.0.0.1:9"], max_output_pixels=64 * 64) as front:
            front.offer()
            front.accept("img2img")
            with pytest.raises(BadReferenceImage):
                front.accept("img2img", init_images=png_base64((65, 64)))

    @pytest.mark.parametrize(("setting", "refusal"), [("max_queue", QueueFull), ("max_queue_per_user", UserQueueFull)])
    def test_it_goes_when_the_queue_is_full(
        self, tmp_path: Path, migrated_sqlite: Path, setting: str, refusal: type[Exception]
    ) -> None:
        with Front(tmp_path, migrated_sqlite, ["gpu0=http://127.0.0.1:9"], **{setting: 1}) as front:
            front.offer()
            kept = front.accept("img2img")
            with pytest.raises(refusal):
                front.accept("img2img")
            assert front.files() == {kept["init_image"]["filename"]}

    def test_it_goes_when_another_process_was_faster_with_the_same_key(
        self, front: Front, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept = front.accept("img2img", key="k")
        # The check before acceptance came too early to see the other one.
        monkeypatch.setattr(front.services.table, "find_key", lambda *_: None)
        assert front.accept("img2img", key="k")["name"] == kept["name"]
        assert front.files() == {kept["init_image"]["filename"]}

    def test_one_that_can_not_be_removed_hides_no_refusal(
        self, tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: Any) -> None:
            raise StorageFailed(OSError(5, "Input/output error"), doing="removed")

        with Front(tmp_path, migrated_sqlite, ["gpu0=http://127.0.0.1:9"], max_queue=1) as front:
            front.offer()
            front.accept()
            monkeypatch.setattr(front.services.records, "remove_files", fail)
            with pytest.raises(QueueFull):
                front.accept("img2img")
            assert "could not be removed" in caplog.text


class TestWaiting:
    @pytest.fixture
    def gateway(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Gateway]:
        hurry(monkeypatch)
        with Gateway(tmp_path, migrated_sqlite, [server.url], max_waiters=1) as gateway:
            yield gateway.start()

    def test_a_client_gets_its_finished_job(self, gateway: Gateway) -> None:
        assert gateway.post()["status"] == "succeeded"

    def test_a_client_waits_through_every_attempt(self, gateway: Gateway, server: SimulatorServer) -> None:
        """An attempt that goes back into the queue is no end of the job."""
        for kind in ("error-500", "close"):
            arm(server, kind)
        assert gateway.post()["status"] == "succeeded"

    def test_without_waiting_the_job_is_described_as_it_is(self, gateway: Gateway, server: SimulatorServer) -> None:
        arm(server, "hang")
        running, waiting = gateway.accept(), gateway.accept()
        assert (waiting["status"], waiting["images"], waiting["error"]) == ("queued", [], None)
        assert waiting["position"] in (1, 2)
        until(lambda: stats(server)["generations"])
        assert gateway.post(wait=0.05)["status"] == "queued"
        server.simulator.engine.interrupt()
        gateway.finished(running)
        gateway.finished(waiting)

    def test_without_a_free_waiter_nothing_is_accepted(self, gateway: Gateway, server: SimulatorServer) -> None:
        arm(server, "hang")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(gateway.post)
            until(lambda: stats(server)["generations"])
            with pytest.raises(NoFreeWaiter):
                gateway.post("img2img", id="u2")
            assert gateway.services.archive.jobs("u2", None, 10, None) == ([], None)
            assert gateway.accept(id="u2")["status"] == "queued"
            server.simulator.engine.interrupt()
            waiting.result(DEADLINE)


class TestIdempotency:
    def test_a_repeat_answers_with_the_job_as_it_is_now(self, front: Front) -> None:
        first = front.accept(key="k")
        assert front.accept(key="k")["name"] == first["name"]
        front.finish_next()
        again = front.accept(key="k")
        assert (again["name"], again["status"]) == (first["name"], "succeeded")
        assert len(front.services.archive.jobs("u1", None, 10, None)[0]) == 1

    def test_the_repeats_own_patience_decides(self, front: Front) -> None:
        """Prefer is no part of what is compared: asked without waiting, asked again by one who waits."""
        first = front.accept(key="k")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(front.post, key="k")
            until(lambda: front.services.waiters._waiting)
            front.finish_next()
            view = waiting.result(DEADLINE)
        assert (view["name"], view["status"]) == (first["name"], "succeeded")
        assert front.post(key="k", wait=0)["status"] == "succeeded"

    def test_a_finished_job_needs_no_free_waiter(self, tmp_path: Path, migrated_sqlite: Path) -> None:
        with Front(tmp_path, migrated_sqlite, ["gpu0=http://127.0.0.1:9"], max_waiters=1) as front:
            front.offer()
            front.accept(key="k")
            front.finish_next()
            with front.services.waiters.reserve():
                assert front.post(key="k")["status"] == "succeeded"
                with pytest.raises(NoFreeWaiter):
                    front.post(key="other")

    def test_a_failed_job_answers_its_failure_again(self, front: Front) -> None:
        front.accept(key="k")
        claim = front.services.table.claim("gpu0", "testhost/t", "task", EVERYTHING)
        assert front.services.table.fail(claim, Failure("webui-error", "It failed.")) == "failed"
        assert front.post(key="k")["error"] == {"slug": "webui-error", "detail": "It failed."}

    def test_another_body_or_type_is_another_request(self, front: Front) -> None:
        front.accept(key="k")
        with pytest.raises(KeyReused):
            front.accept(key="k", prompt="another")
        with pytest.raises(KeyReused):
            front.accept("img2img", key="k")
        front.accept(key="k", id="u2")

    def test_the_key_of_a_deleted_job_is_told(self, front: Front) -> None:
        view = front.accept(key="k")
        front.finish_next()
        front.services.archive.delete("u1", "txt2img", view["name"])
        with pytest.raises(KeyOfDeletedJob):
            front.accept(key="k")

    def test_a_random_seed_is_drawn_once(self, front: Front) -> None:
        first = front.accept(key="k", seed="")
        assert front.accept(key="k", seed="")["args"]["seed"] == first["args"]["seed"]

    def test_a_refused_request_keeps_no_key(self, front: Front) -> None:
        with pytest.raises(UnknownNames):
            front.accept(key="k", model="c")
        assert front.accept(key="k")["status"] == "queued"

    def test_two_at_once_make_one_job(self, front: Front) -> None:
        start = threading.Barrier(4)

        def post(_: int) -> str:
            start.wait()
            return front.accept("img2img", key="k")["name"]

        with ThreadPoolExecutor(4) as pool:
            [name] = set(pool.map(post, range(4)))
        assert front.files() == {f"{name}-init.png"}
