"""Only the picture that was asked for is stored, although WebUIs answer 200 with other ones in many ways."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import signal
import socket
import sqlite3
import threading
import time
from typing import Any

import pytest
from PIL import Image

from tests.proxy import Proxy
from tests.system.harness import Gateway, Simulator, Stage, until

COMMENT = "#ff00ff hair, C# book\nsecond line"


def overrides(simulator: Simulator) -> list[dict[str, Any]]:
    """The ``override_settings`` of each generation, oldest first."""
    return [entry["payload"]["override_settings"] for entry in simulator.requests()]


def fails(response: Any, slug: str, status: int) -> dict[str, Any]:
    """The problem of a POST whose job failed."""
    problem: dict[str, Any] = response.json()
    assert (response.status_code, problem["type"]) == (status, slug), problem
    return problem


def digest(gateway: Gateway, job: dict[str, Any]) -> list[str]:
    """The pixels of a record's pictures."""
    found = []
    for data in gateway.images(job):
        with Image.open(io.BytesIO(data)) as image:
            found.append(hashlib.sha256(image.convert("RGB").tobytes()).hexdigest())
    return found


def _reference() -> str:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


REFERENCE = _reference()


@pytest.fixture
def stage(stage: Stage) -> Stage:
    """A stage whose gateways have one process each: the worker is tested here, and a second one would only cost time."""
    stage.concurrency = 1
    return stage


class TestPromptsWithANumberSign:
    @pytest.mark.parametrize("options", [[], ["--frozen-options"], ["--flavour", "forge"], ["--flavour", "nowebui"]])
    def test_a_prompt_is_kept_whole_also_where_the_list_of_options_was_frozen_early(
        self, stage: Stage, options: list[str]
    ) -> None:
        gateway = stage.gateway([stage.simulator(*options)])
        job = gateway.succeeded(gateway.post(prompt=COMMENT, negative_prompt="a # b"))
        assert job["args"]["prompt"] == COMMENT
        assert job["images"][0]["infotext"].startswith(f"{COMMENT}\nNegative prompt: a # b\n")

    @pytest.mark.parametrize(
        ("silent", "sent"), [(False, [True, False, False, False]), (True, [True, False, True, False, False])]
    )
    def test_a_webui_that_does_not_know_the_option_is_asked_once_more_without_it(
        self, stage: Stage, silent: bool, sent: list[bool]
    ) -> None:
        simulator = stage.simulator("--lacks-option", "enable_prompt_comments")
        gateway = stage.gateway([simulator])
        if silent:
            simulator.fault("exception-group", count=9)
        for seed in ("1", "2", "3"):
            job = gateway.succeeded(gateway.post(prompt=COMMENT, seed=seed))
            # No attempt was counted.
            assert job["images"][0]["filename"] == f"{job['name']}-1-0.png"
            assert job["images"][0]["infotext"].startswith(COMMENT)
        assert ["enable_prompt_comments" in options for options in overrides(simulator)] == sent

    def test_after_an_error_that_says_nothing_the_prompt_is_kept_whole_and_the_option_put_back(
        self, stage: Stage
    ) -> None:
        simulator = stage.simulator()
        gateway = stage.gateway([simulator])
        simulator.fault("exception-group", count=1)
        simulator.fault("error-500", count=1)
        job = gateway.succeeded(gateway.post(prompt=COMMENT))
        assert job["images"][0]["infotext"].startswith(COMMENT)
        gateway.succeeded(gateway.post(prompt="plain"))
        assert simulator.http.get("/sdapi/v1/options").json()["enable_prompt_comments"] is True

    def test_a_webui_that_has_got_to_know_the_option_makes_no_cut_picture(self, stage: Stage) -> None:
        """It was updated and restarted between two refreshes of its catalogue."""
        simulator = stage.simulator("--lacks-option", "enable_prompt_comments")
        gateway = stage.gateway([simulator])
        gateway.succeeded(gateway.post(prompt=COMMENT))
        simulator.kill()
        simulator.command = [
            part for part in simulator.command if part not in ("--lacks-option", "enable_prompt_comments")
        ]
        simulator.launch()
        simulator.await_ready()
        job = gateway.succeeded(gateway.post(prompt=COMMENT, seed="43"))
        assert job["images"][0]["infotext"].startswith(COMMENT)

    @pytest.mark.parametrize("shown", [True, False])
    def test_the_option_is_overridden_only_where_needed_and_put_back_by_the_next_generation(
        self, stage: Stage, shown: bool
    ) -> None:
        simulator = stage.simulator()
        simulator.http.request("POST", "/sdapi/v1/options", json={"enable_prompt_comments": shown})
        gateway = stage.gateway([simulator])
        for prompt in ("plain", COMMENT, "plain", "plain"):
            gateway.succeeded(gateway.post(prompt=prompt))
        sent = [options.get("enable_prompt_comments") for options in overrides(simulator)]
        assert sent == ([None, False, True, None] if shown else [None, False, None, None])
        assert simulator.http.get("/sdapi/v1/options").json()["enable_prompt_comments"] is shown

    def test_it_is_put_back_although_the_gateway_was_killed_in_between(self, stage: Stage) -> None:
        simulator = stage.simulator()
        gateway = stage.gateway([simulator])
        gateway.succeeded(gateway.post(prompt=COMMENT))
        gateway.kill()
        gateway.launch()
        gateway.await_ready()
        gateway.succeeded(gateway.post(prompt="plain"))
        assert simulator.http.get("/sdapi/v1/options").json()["enable_prompt_comments"] is True

    def test_it_is_put_back_by_another_worker_of_the_same_webui(self, stage: Stage) -> None:
        simulator = stage.simulator()
        gateway = stage.gateway([simulator], ready=False, SDG_WORKER="external")
        first = stage.worker(gateway)
        gateway.await_ready()
        second = stage.worker(gateway)
        until(lambda: "working for" in second.text() and "is up" in second.text(), "the second worker works")

        def suspended() -> bool:
            """Suspend the second worker, but not amid a write, which locks the database."""
            second.running.send_signal(signal.SIGSTOP)
            try:
                with contextlib.closing(sqlite3.connect(gateway.database, timeout=0.1)) as connection:
                    connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                second.running.send_signal(signal.SIGCONT)
                return False
            return True

        until(suspended, "the second worker is suspended")
        gateway.succeeded(gateway.post(prompt=COMMENT))
        assert simulator.http.get("/sdapi/v1/options").json()["enable_prompt_comments"] is False
        first.kill()
        second.running.send_signal(signal.SIGCONT)
        gateway.succeeded(gateway.post(prompt="plain"))
        assert simulator.http.get("/sdapi/v1/options").json()["enable_prompt_comments"] is True


class TestInterruptsThatHide:
    """Interrupts whose flag is lowered before it is read: another client's job waits behind ours, and begins."""

    @pytest.fixture(scope="class")
    @classmethod
    def simulator(cls, hall: Stage) -> Simulator:
        return hall.simulator(seconds_per_image=1.0)

    @pytest.fixture(scope="class")
    @classmethod
    def gateway(cls, hall: Stage, simulator: Simulator) -> Gateway:
        """A gateway that has made enough pictures of this kind to know how long one takes."""
        gateway = hall.gateway([simulator])
        for seed in range(5):
            gateway.succeeded(gateway.post(seed=str(seed), steps=20))
        return gateway

    @staticmethod
    def interrupted_at(
        gateway: Gateway, simulator: Simulator, part: float, seed: str, steps: int = 20
    ) -> dict[str, Any]:
        """A job that is interrupted when so much of it is done, while a stranger's request waits behind it."""
        job = gateway.post(seed=seed, steps=steps, prefer="respond-async").json()
        until(lambda: simulator.http.get("/sdapi/v1/progress").json()["state"]["job_count"] > 0, "the job runs")
        stranger = threading.Thread(
            target=simulator.http.request, args=("POST", "/sdapi/v1/txt2img"), kwargs={"json": {"steps": 1}}
        )
        stranger.start()
        until(lambda: simulator.http.get("/internal/pending-tasks").json()["size"] == 1, "the stranger waits")
        until(lambda: simulator.http.get("/sdapi/v1/progress").json()["progress"] >= part, "so much is done")
        simulator.interrupt()
        finished = gateway.finished(job["url"])
        stranger.join()
        return finished

    @pytest.mark.parametrize("part", [0.05, 0.6])
    def test_a_picture_that_was_interrupted_is_not_stored_although_the_flag_is_down(
        self, gateway: Gateway, simulator: Simulator, part: float
    ) -> None:
        whole = gateway.succeeded(gateway.post(seed="7", steps=20))
        job = self.interrupted_at(gateway, simulator, part, "7")
        assert job["status"] == "succeeded"
        assert digest(gateway, job) == digest(gateway, whole)

    def test_a_job_that_waited_behind_a_stranger_before_it_was_interrupted_is_not_stored(
        self, gateway: Gateway, simulator: Simulator
    ) -> None:
        """Its time from the POST to the answer is long enough; its own time is not."""
        whole = gateway.succeeded(gateway.post(seed="7", steps=20))
        # The gateway has seen strangers there.
        self.interrupted_at(gateway, simulator, 0.3, "8")
        before = threading.Thread(
            target=simulator.http.request, args=("POST", "/sdapi/v1/txt2img"), kwargs={"json": {"steps": 4}}
        )
        before.start()
        until(lambda: simulator.http.get("/sdapi/v1/progress").json()["progress"] > 0, "the stranger runs")
        job = gateway.post(seed="7", steps=20, prefer="respond-async").json()
        until(lambda: simulator.http.get("/internal/pending-tasks").json()["size"] == 1, "ours waits")
        before.join()
        behind = threading.Thread(
            target=simulator.http.request, args=("POST", "/sdapi/v1/txt2img"), kwargs={"json": {"steps": 1}}
        )
        behind.start()
        until(lambda: simulator.http.get("/internal/pending-tasks").json()["size"] == 1, "a stranger waits behind ours")
        until(lambda: simulator.http.get("/sdapi/v1/progress").json()["progress"] >= 0.4, "ours is on its way")
        simulator.interrupt()
        finished = gateway.finished(job["url"])
        behind.join()
        assert digest(gateway, finished) == digest(gateway, whole)

    def test_two_gateways_on_one_webui_finish_all_their_jobs_with_few_repetitions(self, stage: Stage) -> None:
        simulator = stage.simulator(seconds_per_image=0.05)
        gateways = [stage.gateway([simulator]) for _ in range(2)]
        simulator.reset()
        jobs = [
            (gateway, gateway.post(seed=str(n), steps=4 + n % 2, batch_size=1 + n % 2, prefer="respond-async").json())
            for n in range(15)
            for gateway in gateways
        ]
        for gateway, job in jobs:
            assert gateway.finished(job["url"])["status"] == "succeeded"
        assert simulator.stats()["generations"] <= 1.1 * len(jobs)


class PoliteProxy(Proxy):
    """Stands before a WebUI and answers 502 itself while that is down, as web servers do; it never refuses a connection."""

    def __init__(self, port: int) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._port = port
        super().__init__(listener)

    def serve(self, client: socket.socket) -> None:
        request = client.recv(65536)
        try:
            webui = socket.create_connection(("127.0.0.1", self._port))
        except ConnectionRefusedError:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        with webui:
            webui.sendall(request)
            threading.Thread(target=_pump, args=(client, webui), daemon=True).start()
            while data := webui.recv(65536):
                client.sendall(data)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


class TestModelsThatCannotBeLoaded:
    """A switch to a model whose file is gone or corrupt leaves the loaded model broken."""

    @pytest.mark.parametrize("flavour", ["a1111-1.10", "forge", "nowebui"])
    @pytest.mark.parametrize("kind", ["load-corrupt", "load-fails"])
    def test_no_job_is_made_with_the_broken_model(self, stage: Stage, flavour: str, kind: str) -> None:
        simulator = stage.simulator("--flavour", flavour, "--model", "one", "--model", "two", "--model", "three")
        gateway = stage.gateway([simulator])
        whole = digest(gateway, gateway.succeeded(gateway.post(model="one")))
        simulator.fault(kind, model="two")
        broken = gateway.post(model="two")
        assert broken.status_code == 502, broken.text
        again = gateway.succeeded(gateway.post(model="one"))
        assert digest(gateway, again) == whole
        assert again["webui"]["model"] == "one"

    def test_jobs_for_other_models_go_first_and_repair_it(self, stage: Stage) -> None:
        simulator = stage.simulator("--model", "one", "--model", "two", "--model", "three", seconds_per_image=1.0)
        gateway = stage.gateway([simulator])
        whole = digest(gateway, gateway.succeeded(gateway.post(model="one")))
        simulator.fault("load-corrupt", model="two")
        simulator.http.request("POST", "/simulator/reset")
        # All of them wait while the first one is made.
        jobs = [gateway.post(model=model, prefer="respond-async").json() for model in ("one", "two", "one", "three")]
        ended = [gateway.finished(job["url"]) for job in jobs]
        assert [job["status"] for job in ended] == ["succeeded", "failed", "succeeded", "succeeded"]
        assert digest(gateway, ended[2]) == whole
        # Before that, nothing was made that no job asked for.
        sent = [entry["payload"] for entry in simulator.requests()]
        models = [payload["override_settings"]["sd_model_checkpoint"] for payload in sent]
        assert "" not in [payload["prompt"] for payload in sent[: models.index("three.safetensors")]]

    def test_a_model_that_a_person_loaded_by_hand_is_doubted_after_a_failed_switch_too(self, stage: Stage) -> None:
        simulator = stage.simulator("--model", "one", "--model", "two", "--model", "three")
        gateway = stage.gateway([simulator])
        whole = digest(gateway, gateway.succeeded(gateway.post(model="two")))
        gateway.succeeded(gateway.post(model="one"))
        answered = time.monotonic()
        simulator.http.request("POST", "/sdapi/v1/options", json={"sd_model_checkpoint": "two.safetensors"})
        simulator.fault("load-corrupt", model="one")
        until(lambda: time.monotonic() > answered + 2.1, "the gateway's last picture is some time ago")
        assert gateway.post(model="one").status_code == 502
        assert digest(gateway, gateway.succeeded(gateway.post(model="two"))) == whole

    def test_a_restart_behind_a_proxy_that_never_refuses_is_noticed(self, stage: Stage) -> None:
        simulator = stage.simulator("--model", "one", "--model", "two")
        proxy = PoliteProxy(simulator.port)
        gateway = stage.gateway(f"big={proxy.url}")
        whole = digest(gateway, gateway.succeeded(gateway.post(model="one")))
        simulator.fault("load-corrupt", model="two")
        assert gateway.post(model="two").status_code == 502
        waiting = gateway.post(model="one", prefer="respond-async").json()
        until(lambda: "big must be restarted" in gateway.text(), "the operator is told")
        simulator.kill()
        simulator.launch()
        done = gateway.finished(waiting["url"], seconds=40)
        proxy.close()
        assert digest(gateway, done) == whole

    def test_with_no_other_model_only_a_restart_helps_and_the_operator_is_told(self, stage: Stage) -> None:
        simulator = stage.simulator("--model", "one", "--model", "two")
        gateway = stage.gateway(f"big={simulator.url}")
        whole = digest(gateway, gateway.succeeded(gateway.post(model="one")))
        simulator.fault("load-corrupt", model="two")
        assert gateway.post(model="two").status_code == 502
        waiting = gateway.post(model="one", prefer="respond-async").json()
        ready = until(lambda: (answer := gateway.http.get("/readyz").json())["reasons"] and answer, "a reason")
        assert ready["status"] == "degraded"
        assert any("big" in reason and "restart" in reason for reason in ready["reasons"]), ready
        assert "big must be restarted" in gateway.text()
        assert gateway.status(waiting["url"]) == "queued"
        simulator.kill()
        until(lambda: "big is down" in gateway.text(), "the gateway has seen it down")
        simulator.launch()
        done = gateway.finished(waiting["url"], seconds=40)
        assert digest(gateway, done) == whole

    @pytest.mark.parametrize(("kind", "count", "status"), [("nan", 1, 422), ("error-500", 3, 502), ("oom", 3, 502)])
    def test_a_job_that_fails_with_the_only_other_model_keeps_nobody_waiting(
        self, stage: Stage, kind: str, count: int, status: int
    ) -> None:
        """The other model was loaded well, and only the job could not be made with it."""
        simulator = stage.simulator("--model", "one", "--model", "two")
        gateway = stage.gateway([simulator])
        whole = digest(gateway, gateway.succeeded(gateway.post(model="one")))
        simulator.fault(kind, count=count)
        assert gateway.post(model="two").status_code == status
        assert digest(gateway, gateway.succeeded(gateway.post(model="one"))) == whole
        assert gateway.readiness() == "ok"
        assert "must be restarted" not in gateway.text()

    def test_a_page_of_a_proxy_does_not_lift_the_doubt(self, stage: Stage) -> None:
        """An error page of a proxy does not show that the WebUI was restarted."""
        simulator = stage.simulator("--model", "one", "--model", "two")
        gateway = stage.gateway([simulator])
        gateway.succeeded(gateway.post(model="one"))
        simulator.fault("load-corrupt", model="two")
        assert gateway.post(model="two").status_code == 502
        until(lambda: gateway.readiness() == "degraded", "the doubt has no remedy")
        made = simulator.stats()["generations"]
        simulator.fault("start-window-html", seconds=3)
        met = gateway.post(model="two", prefer="respond-async").json()
        waiting = gateway.post(model="one", prefer="respond-async").json()
        assert gateway.finished(met["url"], seconds=40)["status"] == "failed"
        assert simulator.stats()["generations"] == made + 3
        assert gateway.status(waiting["url"]) == "queued"

    def test_the_doubt_outlives_the_gateway(self, stage: Stage) -> None:
        simulator = stage.simulator("--model", "one", "--model", "two", "--model", "three")
        gateway = stage.gateway([simulator])
        whole = digest(gateway, gateway.succeeded(gateway.post(model="one")))
        simulator.fault("load-corrupt", model="two")
        # Killed before the answer comes: nobody hears that the switch failed.
        simulator.fault("hang-idle", seconds=5)
        gateway.post(model="two", prefer="respond-async")
        until(lambda: len(simulator.requests()) == 2, "the switch was asked for")
        until(lambda: simulator.http.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0, "it has failed")
        gateway.kill()
        gateway.launch()
        gateway.await_ready()
        job = gateway.succeeded(gateway.post(model="one"))
        assert digest(gateway, job) == whole

    def test_a_vanished_model_is_not_asked_for(self, stage: Stage) -> None:
        simulator = stage.simulator("--model", "one", "--model", "two")
        gateway = stage.gateway([simulator])
        whole = digest(gateway, gateway.succeeded(gateway.post(model="one")))
        simulator.fault("load-fails", model="two")
        fails(gateway.post(model="two"), "no-longer-available", 502)
        assert digest(gateway, gateway.succeeded(gateway.post(model="one"))) == whole
        assert simulator.stats()["generations"] == 2


class TestSeedsAndSizes:
    def test_other_seeds_than_asked_for_are_tried_again_once(self, stage: Stage) -> None:
        simulator = stage.simulator()
        gateway = stage.gateway([simulator])
        simulator.fault("wrong-seeds")
        job = gateway.succeeded(gateway.post(seed="42", batch_size=2))
        assert [image["seed"] for image in job["images"]] == ["42", "43"]
        simulator.fault("wrong-seeds", count=9)
        problem = fails(gateway.post(seed="42"), "webui-bad-answer", 502)
        assert "777777" in problem["detail"]
        assert "42" in problem["detail"]
        assert simulator.stats()["generations"] == 4

    @pytest.mark.parametrize(
        ("kind", "fields", "fault"),
        [
            ("txt2img", {}, "wrong-size"),
            ("txt2img", {"hr_upscaler": "Latent", "hr_scale": 1.5}, "wrong-size"),
            ("img2img", {"hr_upscaler": "Lanczos"}, "extras-wrong-size"),
        ],
    )
    def test_pictures_of_another_size_than_asked_for_are_not_stored(
        self, stage: Stage, kind: str, fields: dict[str, Any], fault: str
    ) -> None:
        simulator = stage.simulator()
        gateway = stage.gateway([simulator])
        body = fields if kind == "txt2img" else fields | {"init_images": REFERENCE}
        simulator.fault(fault, count=9)
        problem = fails(gateway.post(kind, **body), "webui-bad-answer", 502)
        assert "8×2000" in problem["detail"]
        assert simulator.stats()["generations"] == 2
        assert not [name for name in gateway.files() if name.endswith("-0.png")]

    @pytest.mark.parametrize("scale", [1, 1.1, 1.3333, 2.55, 4])
    @pytest.mark.parametrize("kind", ["txt2img", "img2img"])
    def test_sizes_that_webuis_round_down_are_those_asked_for(
        self, house: Gateway, its_simulator: Simulator, kind: str, scale: float
    ) -> None:
        body: dict[str, Any] = {"width": 72, "height": 104, "hr_upscaler": "Lanczos", "hr_scale": scale}
        body |= {"init_images": REFERENCE} if kind == "img2img" else {}
        [image] = house.succeeded(house.post(kind, **body))["images"]
        assert (image["width"], image["height"]) == (int(72 * scale) // 8 * 8, int(104 * scale) // 8 * 8)

    def test_a_webui_whose_extensions_change_them_on_purpose_can_be_accepted(self, stage: Stage) -> None:
        simulator = stage.simulator()
        gateway = stage.gateway([simulator], SDG_ACCEPT_SIZES="any", SDG_ACCEPT_SEEDS="any")
        simulator.fault("wrong-seeds")
        assert gateway.succeeded(gateway.post())["images"][0]["seed"] == "777777"
        simulator.fault("wrong-size")
        [image] = gateway.succeeded(gateway.post())["images"]
        assert (image["width"], image["height"]) == (8, 2000)


class TestReproduction:
    def test_img2img_repeats_nearly_and_txt2img_exactly(self, stage: Stage) -> None:
        """A real WebUI encodes the reference image with the random state that the job before left behind."""
        gateway = stage.gateway([stage.simulator("--flavour", "a1111-1.10-torch")])

        def posted_back(kind: str, job: dict[str, Any]) -> dict[str, Any]:
            args = gateway.http.get(f"/get_args/user/{kind}/{job['name']}").json()
            return gateway.succeeded(gateway.send(kind, args))

        made = gateway.succeeded(gateway.post(seed="3"))
        nearly = gateway.succeeded(gateway.post("img2img", init_images=REFERENCE))
        gateway.succeeded(gateway.post(seed="5"))
        assert digest(gateway, posted_back("txt2img", made)) == digest(gateway, made)
        gateway.succeeded(gateway.post(seed="6"))
        again = posted_back("img2img", nearly)
        assert digest(gateway, again) != digest(gateway, nearly)
        assert [image["seed"] for image in again["images"]] == [image["seed"] for image in nearly["images"]]


@pytest.mark.soak
class TestAtLength:
    @pytest.mark.timeout(600)
    def test_of_fifty_interrupted_pictures_none_is_stored_although_the_flag_is_down(self, stage: Stage) -> None:
        simulator = stage.simulator(seconds_per_image=1.0)
        gateway = stage.gateway([simulator])
        whole = digest(gateway, [gateway.succeeded(gateway.post(seed="7", steps=50)) for _ in range(6)][-1])
        for number in range(50):
            job = TestInterruptsThatHide.interrupted_at(gateway, simulator, 0.7 * number / 50, "7", steps=50)
            assert digest(gateway, job) == whole, number

    @pytest.mark.timeout(600)
    def test_two_gateways_with_fifty_mixed_jobs_each_finish_all_of_them(self, stage: Stage) -> None:
        simulator = stage.simulator("--model", "one", "--model", "two", seconds_per_image=0.2)
        gateways = [stage.gateway([simulator], SDG_MAX_QUEUE_PER_USER=50) for _ in range(2)]
        simulator.reset()
        jobs = [
            (gateway, gateway.post(**mixed(number), prefer="respond-async").json())
            for number in range(50)
            for gateway in gateways
        ]
        for gateway, job in jobs:
            assert gateway.finished(job["url"], seconds=300)["status"] == "succeeded"
        assert simulator.stats()["generations"] <= 1.1 * len(jobs)


def mixed(number: int) -> dict[str, Any]:
    """Fields of the ``number``-th of many different jobs."""
    return {
        "seed": str(number),
        "steps": (4, 8, 12)[number % 3],
        "batch_size": 1 + number % 2,
        "hr_upscaler": "Latent" if number % 5 == 0 else "",
    }
