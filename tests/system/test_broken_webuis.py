"""WebUIs that start, load, lie, or never stop talking: each job ends once, and nothing costs a good picture."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest
from PIL import Image

from tests.system.harness import Simulator, Stage
from tests.system.test_correct_pictures import REFERENCE, fails


def _line() -> str:
    data = io.BytesIO()
    Image.new("RGB", (3000, 1), "navy").save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


#: A reference image that hardly has a height.
LINE = _line()


@pytest.fixture
def stage(stage: Stage) -> Stage:
    """A stage whose gateways have one process each: the worker is tested here, and a second one would only cost time."""
    stage.concurrency = 1
    return stage


class TestStarting:
    @pytest.mark.parametrize("kind", ["start-window", "start-window-html"])
    def test_a_job_that_meets_a_webui_without_its_routes_keeps_its_place(
        self, stage: Stage, simulator: Simulator, kind: str
    ) -> None:
        gateway = stage.gateway([simulator])
        simulator.fault(kind, count=1)
        job = gateway.succeeded(gateway.post())
        row = gateway.row(job["name"])
        assert (row["attempts"], row["losses"]) == (0, 0)
        assert simulator.stats()["generations"] == 1

    @pytest.mark.parametrize("flavour", ["a1111-1.10", "forge"])
    def test_a_refusal_with_its_own_words_is_none_of_a_starting_webui(self, stage: Stage, flavour: str) -> None:
        simulator = stage.simulator("--flavour", flavour)
        gateway = stage.gateway([simulator])
        simulator.fault("error-http")
        fails(gateway.post(), "webui-refused", 502)


class Peer:
    """A WebUI by its lists, taken from a simulator, whose generations are answered by the bytes that a test gives."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._answers: dict[str, list[Sequence[bytes]]] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.answered = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def answer(self, route: str, pieces: Sequence[bytes], *, times: int) -> None:
        """Answer the next requests of a route so."""
        self._answers[route] = [pieces] * times

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = self._read(connection)
            answers = self._answers.get(request.split(b" ", 2)[1].decode().removeprefix("/sdapi/v1/"))
            if answers:
                self.answered += 1
                for piece in answers.pop():
                    connection.sendall(piece)
            else:
                self._forward(connection, request)

    def _read(self, connection: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        head, _, body = request.partition(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body

    def _forward(self, connection: socket.socket, request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self._simulator.port)) as real:
            real.sendall(request)
            while data := real.recv(65536):
                connection.sendall(data)


@pytest.fixture
def peer(simulator: Simulator) -> Iterator[Peer]:
    peer = Peer(simulator)
    yield peer
    peer.close()


def test_a_restart_between_a_picture_and_its_upscaling_counts_an_attempt(
    stage: Stage, peer: Peer, simulator: Simulator
) -> None:
    """The generation was made, so the second attempt makes it again."""
    gateway = stage.gateway(peer.url)
    body = b'{"detail":"Not Found"}'
    peer.answer(
        "extra-batch-images", [b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body), body], times=1
    )
    job = gateway.succeeded(gateway.post("img2img", init_images=REFERENCE, hr_upscaler="Lanczos"))
    assert gateway.row(job["name"])["attempts"] == 1
    assert simulator.stats()["generations"] == 2


class TestAnswersWithoutEnd:
    @pytest.mark.parametrize("kind", ["endless", "endless-close", "declares-huge", "huge-json", "many-lists"])
    def test_an_answer_larger_than_its_pictures_can_be_is_cut_off(
        self, stage: Stage, simulator: Simulator, kind: str
    ) -> None:
        gateway = stage.gateway([simulator], WEB_CONCURRENCY=1)
        worker = gateway.worker_pid()
        assert worker is not None
        before = peak(worker)
        simulator.fault(kind, count=9)
        fails(gateway.post(), "webui-bad-answer", 502)
        assert peak(worker) - before < 120_000_000
        simulator.http.delete("/simulator/faults")
        gateway.succeeded(gateway.post(seed="43"))
        assert simulator.stats()["max_in_flight"] == 1

    def test_lists_within_the_bound_of_bytes_are_not_unpacked(
        self, stage: Stage, peer: Peer, simulator: Simulator
    ) -> None:
        gateway = stage.gateway(peer.url, WEB_CONCURRENCY=1)
        worker = gateway.worker_pid()
        assert worker is not None
        body = b'{"images": [' + b"[]," * 2_000_000 + b"[]]}"
        peer.answer("txt2img", [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body], times=9)
        before = peak(worker)
        fails(gateway.post(), "webui-bad-answer", 502)
        assert peak(worker) - before < 60_000_000
        assert peer.answered == 3

    def test_a_long_infotext_is_cut_and_fails_nothing(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator])
        simulator.fault("long-infotext", size=1_000_000)
        job = gateway.succeeded(gateway.post())
        infotext = job["images"][0]["infotext"]
        assert infotext.startswith("a lighthouse")
        assert len(infotext.encode()) <= len("a lighthouse") + 64 * 1024


def peak(pid: int) -> int:
    """The most memory that a process ever had, bytes (VmHWM)."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 -- a line of the kernel, no file
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


class TestLists:
    """Lists of models, samplers and so on that are huge or malformed."""

    def test_thousands_of_models_of_one_name_cost_little(self, stage: Stage, peer: Peer, simulator: Simulator) -> None:
        real = simulator.http.get("/sdapi/v1/sd-models").json()
        entries = [
            {"title": f"{n}/a.safetensors", "model_name": f"{n}_a", "sha256": f"{n:064x}" if n % 2 else None}
            for n in range(10_000)
        ]
        self._answer(peer, "sd-models", real + entries)
        gateway = stage.gateway(peer.url, WEB_CONCURRENCY=1)
        job = gateway.succeeded(gateway.post(model=real[0]["model_name"]))
        assert job["webui"]["model"] == real[0]["model_name"]
        worker = gateway.worker_pid()
        assert worker is not None
        assert peak(worker) < 250_000_000

    @pytest.mark.parametrize("route", ["prompt-styles", "samplers", "schedulers", "upscalers"])
    def test_a_name_that_nobody_can_ask_for_is_left_out(
        self, stage: Stage, peer: Peer, simulator: Simulator, route: str
    ) -> None:
        """An unpaired surrogate, as Python makes it of a file name that is no UTF-8."""
        entry = {"name": "caf\udce9", "label": "caf\udce9", "prompt": "", "negative_prompt": ""}
        self._answer(peer, route, [entry, *simulator.http.get(f"/sdapi/v1/{route}").json()])
        gateway = stage.gateway(peer.url)
        gateway.succeeded(gateway.post())
        assert "caf" not in gateway.http.get("/options").text

    def _answer(self, peer: Peer, route: str, entries: Sequence[object]) -> None:
        body = json.dumps(entries).encode()
        peer.answer(route, [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body], times=99)


class TestWhatIsNotNeededForThePicture:
    @pytest.mark.parametrize("kind", ["early-hints", "long-content-length", "text-chunk"])
    def test_it_does_not_cost_the_picture(self, stage: Stage, simulator: Simulator, kind: str) -> None:
        gateway = stage.gateway([simulator])
        simulator.fault(kind)
        job = gateway.succeeded(gateway.post())
        assert gateway.row(job["name"])["attempts"] == 0
        [data] = gateway.images(job)
        assert data.startswith(b"\x89PNG")
        assert gateway.cli("records", "verify").returncode == 0

    def test_numbers_of_thousands_of_digits_do_not_cost_the_picture(
        self, stage: Stage, peer: Peer, simulator: Simulator
    ) -> None:
        gateway = stage.gateway(peer.url)
        first = gateway.succeeded(gateway.post())
        answer = simulator.http.request("POST", "/sdapi/v1/txt2img", json=simulator.requests()[-1]["payload"]).json()
        wild = "9" * 5000
        info = answer["info"].replace("{", f'{{"wild": {wild}, ', 1)
        body = f'{{"wild": {wild}, "images": {json.dumps(answer["images"])}, "info": {json.dumps(info)}}}'.encode()
        peer.answer("txt2img", [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body], times=1)
        job = gateway.succeeded(gateway.post())
        assert gateway.row(job["name"])["attempts"] == 0
        assert gateway.images(job) == gateway.images(first)
        assert peer.answered == 1

    def test_numbers_of_hundreds_of_digits_in_the_progress_do_not_cost_the_picture(
        self, stage: Stage, slow: Simulator
    ) -> None:
        gateway = stage.gateway([slow])
        slow.fault("nonsense-progress", count=1000)
        posted = [gateway.post(seed=str(seed), prefer="respond-async").json() for seed in range(4)]
        for job in posted:
            # Somebody watches, so that the progress is asked for.
            assert gateway.finished(job["url"])["status"] == "succeeded"
            assert gateway.row(job["name"])["attempts"] == 0
        assert "Traceback" not in gateway.text()


class TestErrorsThatWouldComeAgain:
    @pytest.mark.parametrize("flavour", ["a1111-1.10", "forge", "nowebui"])
    def test_the_same_webui_is_not_asked_again_and_the_detail_says_what_to_change(
        self, stage: Stage, flavour: str
    ) -> None:
        simulator = stage.simulator("--flavour", flavour)
        gateway = stage.gateway([simulator])
        problem = fails(gateway.post(sampler_name="UniPC", steps=1), "webui-cannot", 422)
        assert "steps" in problem["detail"]
        assert "order" not in problem["detail"]
        assert simulator.stats()["generations"] == 1

    def test_a_reference_image_of_an_extreme_shape(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator])
        problem = fails(gateway.post("img2img", init_images=LINE, resize_mode="fill"), "webui-cannot", 422)
        assert "resize_mode" in problem["detail"]
        assert gateway.succeeded(gateway.post("img2img", init_images=LINE, resize_mode="stretch"))

    def test_a_webui_set_to_another_picture_format_sends_png(self, stage: Stage, simulator: Simulator) -> None:
        simulator.http.request("POST", "/sdapi/v1/options", json={"samples_format": "gif"})
        gateway = stage.gateway([simulator])
        [image] = gateway.succeeded(gateway.post())["images"]
        assert image["media_type"] == "image/png"
        simulator.http.request("POST", "/sdapi/v1/options", json={"samples_format": "png"})

    def test_one_broken_gpu_does_not_fail_what_another_webui_can_make(
        self, stage: Stage, fast: list[Simulator]
    ) -> None:
        broken, whole, *_ = fast
        gateway = stage.gateway([broken])
        broken.fault("nan", count=99)
        gateway.stop()
        gateway = stage.gateway([broken, whole])
        jobs = [gateway.post(seed=str(seed), prefer="respond-async").json() for seed in range(6)]
        for job in jobs:
            assert gateway.finished(job["url"])["status"] == "succeeded"
        assert whole.stats()["generations"] == 6
        assert broken.stats()["generations"] <= 6

    def test_a_job_that_no_webui_can_make_is_tried_once_on_each(self, stage: Stage, fast: list[Simulator]) -> None:
        gateway = stage.gateway(fast)
        for simulator in fast:
            simulator.fault("nan", count=99)
        problem = fails(gateway.post(), "webui-cannot", 422)
        assert "NaN" in problem["detail"]
        assert sum(simulator.stats()["generations"] for simulator in fast) == 3
        assert max(simulator.stats()["generations"] for simulator in fast) == 1

    def test_where_the_error_says_nothing_it_is_tried_again(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator])
        simulator.fault("exception-group", count=3)
        simulator.fault("nan", count=3)
        fails(gateway.post(), "webui-error", 502)
        assert simulator.stats()["generations"] == 3


@pytest.mark.soak
class TestAtLength:
    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("kind", ["huge-json", "many-lists"])
    def test_three_gigabytes_cost_little_memory_and_the_slot_is_free_again(
        self, stage: Stage, simulator: Simulator, kind: str
    ) -> None:
        gateway = stage.gateway([simulator], WEB_CONCURRENCY=1)
        worker = gateway.worker_pid()
        assert worker is not None
        simulator.fault(kind, count=3, size=3_000_000_000)
        fails(gateway.post(), "webui-bad-answer", 502)
        assert peak(worker) < 400_000_000
        gateway.succeeded(gateway.post(seed="43"))

    @pytest.mark.timeout(300)
    def test_a_first_load_of_eighty_seconds_without_task_ids_is_waited_for(self, stage: Stage) -> None:
        simulator = stage.simulator("--flavour", "nowebui", "--seconds-per-first-load", "80")
        gateway = stage.gateway([simulator])
        job = gateway.post(prefer="respond-async").json()
        done = gateway.finished(job["url"], seconds=120)
        assert (done["status"], gateway.row(job["name"])["attempts"]) == ("succeeded", 0)
        assert simulator.stats()["generations"] == 1
