"""Every fault that the simulator can be told to have, as a client sees it."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import socket
import time
import zlib
from typing import Any

import pytest
import requests

from app.simulator import FAULT_KINDS, FLAVOURS, SimulatorServer, SimulatorSettings, create_simulator, parse_fault
from tests.simulator.test_simulator import SMALL, arm, client, draw, fast, info, opened, png, pool, post, slow, stats

__all__ = ["fast", "pool", "slow"]


def armed(kind: str, flavour: str = "a1111-1.10", count: int = 1) -> Any:
    return client(flavour, faults=((kind, count),))


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_error_500(flavour: str) -> None:
    webui = armed("error-500", flavour)
    answer = draw(webui)
    words = "message" if flavour == "forge" else "errors"
    assert answer.status_code == 500
    assert answer.json == {"error": "RuntimeError", "detail": "", "body": "", words: "simulated failure"}
    assert draw(webui).status_code == 200


@pytest.mark.parametrize(
    ("kind", "status", "keys"),
    [
        ("error-http", 404, {"error", "detail", "body", "errors"}),
        ("error-422", 422, {"detail"}),
        ("error-forge", 500, {"error", "detail", "body", "message"}),
    ],
)
def test_error_shapes(kind: str, status: int, keys: set[str]) -> None:
    answer = draw(armed(kind))
    assert (answer.status_code, set(answer.json)) == (status, keys)


def test_error_plain() -> None:
    answer = draw(armed("error-plain"))
    assert (answer.status_code, answer.mimetype, answer.text) == (500, "text/plain", "Internal Server Error")


def test_a_failed_generation_leaks_its_task() -> None:
    webui = armed("error-500")
    draw(webui, force_task_id="failed")
    task = webui.post("/internal/progress", json={"id_task": "failed"}).json
    assert (task["active"], task["completed"]) == (True, False)
    assert webui.get("/sdapi/v1/progress").json["state"]["job_count"] == 0


def test_out_of_memory() -> None:
    answer = draw(armed("oom"))
    assert (answer.status_code, answer.json["error"]) == (500, "OutOfMemoryError")
    assert "out of memory" in answer.json["errors"]


def test_out_of_memory_for_batches_only() -> None:
    webui = armed("oom-batch")
    assert draw(webui, n_iter=2).status_code == 200
    assert draw(webui, batch_size=2).status_code == 500
    assert draw(webui, batch_size=2).status_code == 200


def test_bad_json() -> None:
    answer = draw(armed("bad-json"))
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.data)


def test_bad_base64() -> None:
    (text,) = draw(armed("bad-base64")).json["images"]
    with pytest.raises(ValueError, match="base64"):
        base64.b64decode(text, validate=True)


@pytest.mark.parametrize(("kind", "image_format"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(kind: str, image_format: str) -> None:
    assert opened(draw(armed(kind)).json["images"][0]).format == image_format


def test_grid() -> None:
    answer = draw(armed("grid"))
    assert info(answer)["index_of_first_image"] == 1
    assert (len(answer.json["images"]), len(info(answer)["infotexts"]), len(info(answer)["all_seeds"])) == (2, 2, 1)
    assert answer.json["images"][1] == draw(client()).json["images"][0]


def test_too_few_images() -> None:
    assert draw(armed("no-images"), batch_size=2).json["images"] == []
    assert len(draw(armed("fewer-images"), batch_size=3).json["images"]) == 2


def test_wrong_model() -> None:
    webui = armed("wrong-model")
    assert info(draw(webui))["sd_model_name"] == "another-model"
    assert info(draw(webui))["sd_model_name"] == "simulated-one"


def test_lost_model() -> None:
    webui = client(models=("a", "b"), faults=(("lost-model", 1),))
    assert [entry["model_name"] for entry in webui.get("/sdapi/v1/sd-models").json] == ["a"]
    assert info(draw(webui))["sd_model_name"] == "a"
    assert info(draw(webui, override_settings={"sd_model_checkpoint": "b"}))["sd_model_name"] == "a"
    assert info(draw(webui, override_settings={"sd_model_checkpoint": "b"}))["sd_model_name"] == "b"


def test_the_loaded_model_can_be_lost_too() -> None:
    webui = client(models=("a", "b"))
    webui.post("/simulator/faults", json={"kind": "lost-model", "model": "a"})
    assert info(draw(webui))["sd_model_name"] == "b"
    webui.delete("/simulator/faults")
    assert len(webui.get("/sdapi/v1/sd-models").json) == 2


def test_interrupted() -> None:
    webui = armed("interrupted")
    half = draw(webui).json["images"]
    assert len(half) == 1
    assert half != draw(webui).json["images"]


@pytest.mark.parametrize("path", ["samplers", "options", "sd-models", "upscalers", "prompt-styles"])
def test_lists_that_fail(path: str) -> None:
    webui = client(faults=(("catalogue-500", 1), ("slow-start", 1)))
    codes = [webui.get(f"/sdapi/v1/{path}").status_code for _ in range(3)]
    assert codes == [500, 404, 200]
    assert webui.get("/sdapi/v1/progress").status_code == 200


def test_slow_start_for_a_time() -> None:
    app = create_simulator(SimulatorSettings(seconds_per_image=0))
    webui = app.test_client()
    webui.post("/simulator/faults", json={"kind": "slow-start", "seconds": 3600})
    assert {webui.get("/sdapi/v1/samplers").status_code for _ in range(5)} == {404}
    fault = app.extensions["simulator"].faults.find("slow-start")
    fault.seconds = 0
    assert webui.get("/sdapi/v1/samplers").status_code == 200
    assert webui.get("/simulator/faults").json == {"armed": []}


@pytest.mark.parametrize(
    ("kind", "status"), [("extras-500", 500), ("extras-error-http", 404), ("extras-error-plain", 500)]
)
def test_extras_errors(kind: str, status: int) -> None:
    webui = armed(kind)
    assert draw(webui).status_code == 200
    body = {"image": png(), "upscaler_1": "Lanczos"}
    assert webui.post("/sdapi/v1/extra-single-image", json=body).status_code == status
    assert webui.post("/sdapi/v1/extra-single-image", json=body).status_code == 200


def test_extras_pictures() -> None:
    webui = client(faults=(("extras-fewer-images", 1), ("extras-bad-base64", 1), ("extras-jpeg", 1)))
    body = {"imageList": [{"data": png(), "name": "a"}] * 2, "upscaler_1": "Lanczos"}
    answers = [webui.post("/sdapi/v1/extra-batch-images", json=body).json["images"] for _ in range(3)]
    assert len(answers[0]) == 1
    with pytest.raises(ValueError, match="base64"):
        base64.b64decode(answers[1][0], validate=True)
    assert opened(answers[2][0]).format == "JPEG"


def test_extras_interrupted_before_the_image(fast: SimulatorServer, pool: concurrent.futures.Executor) -> None:
    arm(fast, "extras-hang")
    running = pool.submit(post, fast, "/sdapi/v1/extra-single-image", image=png(), upscaler_1="Lanczos")
    # The counter moves before the work, so that one image reads as done at once.
    while fast.simulator.engine.progress()["progress"] != 1.0:
        assert not running.done()
    assert fast.simulator.engine.progress()["state"]["job"] == "Upscale"
    post(fast, "/sdapi/v1/interrupt")
    answer = running.result(20)
    assert (answer.status_code, answer.json()["error"]) == (500, "IndexError")


@pytest.mark.parametrize(("flavour", "words"), [("a1111-1.7", "all NaNs"), ("a1111-1.10", "NaNs"), ("forge", "NaNs")])
def test_nan(flavour: str, words: str) -> None:
    answer = draw(armed("nan", flavour))
    text = answer.json["message" if flavour == "forge" else "errors"]
    assert (answer.status_code, answer.json["error"]) == (500, "NansException")
    assert text.startswith(f"A tensor with {words} was produced in Unet. ")


@pytest.mark.parametrize("flavour", ["a1111-1.10", "forge"])
def test_exception_group_strikes_generations_that_fail(flavour: str) -> None:
    webui = client(flavour, faults=(("exception-group", 2), ("oom", 1)))
    words = "message" if flavour == "forge" else "errors"
    text = "unhandled errors in a TaskGroup (1 sub-exception)"
    assert draw(webui).json == {"error": "ExceptionGroup", "detail": "", "body": "", words: text}
    assert draw(webui).status_code == 200
    unknown = {"override_settings": {"no_such_option": 1}}
    assert draw(webui, **unknown).json["error"] == "ExceptionGroup"
    assert draw(webui, **unknown).json["error"] == "KeyError"


def test_wrong_seeds() -> None:
    webui = armed("wrong-seeds")
    wrong = info(draw(webui, batch_size=2))
    assert (wrong["seed"], wrong["all_seeds"]) == (777777, [777777, 777778])
    assert info(draw(webui, batch_size=2))["all_seeds"] == [42, 43]


def test_wrong_size() -> None:
    webui = armed("wrong-size")
    answer = draw(webui, batch_size=2)
    assert [opened(image).size for image in answer.json["images"]] == [(8, 2000)] * 2
    assert opened(answer.json["images"][0]).info["parameters"] == info(answer)["infotexts"][0]
    assert opened(draw(webui).json["images"][0]).size == (64, 64)


def test_extras_wrong_size() -> None:
    webui = armed("extras-wrong-size")
    body = {"image": png(), "upscaler_1": "Lanczos"}
    sizes = [opened(webui.post("/sdapi/v1/extra-single-image", json=body).json["image"]).size for _ in range(2)]
    assert sizes == [(8, 2000), (128, 96)]


def test_text_chunk() -> None:
    data = base64.b64decode(draw(armed("text-chunk")).json["images"][0])
    start = data.index(b"zTXt")
    length = int.from_bytes(data[start - 4 : start], "big")
    keyword, _, packed = data[start + 4 : start + 4 + length].partition(b"\0")
    assert keyword == b"workflow"
    assert len(zlib.decompress(packed[1:])) == 2**21
    assert data.index(b"zTXt") < data.index(b"IDAT")
    with pytest.raises(ValueError, match="too large"):
        opened(base64.b64encode(data).decode())


@pytest.mark.parametrize(("more", "characters"), [({}, 2**20), ({"size": 5000}, 5000)])
def test_long_infotext(more: dict[str, int], characters: int) -> None:
    webui = client()
    webui.post("/simulator/faults", json={"kind": "long-infotext", **more})
    answer = draw(webui, batch_size=2)
    texts = info(answer)["infotexts"]
    assert [len(text) for text in texts] == [characters] * 2
    assert texts[0].startswith(info(draw(webui, batch_size=2))["infotexts"][0])
    data = base64.b64decode(answer.json["images"][1])
    assert texts[1].encode("latin-1") in data


# Faults of progress and of the start


def test_nonsense_progress_is_another_nonsense_each_time() -> None:
    webui = armed("nonsense-progress", count=10)
    bodies = [webui.get("/sdapi/v1/progress").get_data(as_text=True) for _ in range(5)]
    digits = str(7 * 10**399)
    for body, mark in zip(bodies, (digits, "NaN", "Infinity", "-Infinity", '"0.5"'), strict=True):
        found = json.loads(body)
        assert f'"progress": {mark}' in body
        assert f'"sampling_step": {mark}' in body
        assert found["state"]["interrupted"] is False
        assert found["state"]["job"] == ""
    tasks = [webui.post("/internal/progress", json={"id_task": "x"}).get_data(as_text=True) for _ in range(5)]
    assert f'"eta": {digits}' in tasks[0]
    assert '"active": false' in tasks[0]
    assert webui.get("/sdapi/v1/progress").json["progress"] == 0.0


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/sdapi/v1/progress", "/sdapi/v1/options", "/internal/ping"])
def test_start_window(path: str) -> None:
    webui = client(faults=(("start-window", 2), ("start-window-html", 1)))
    ask = webui.post if path.endswith("txt2img") else webui.get
    for _ in range(2):
        answer = ask(path)
        assert (answer.status_code, answer.json) == (404, {"detail": "Not Found"})
    page = ask(path)
    assert (page.status_code, page.mimetype) == (404, "text/html")
    with pytest.raises(json.JSONDecodeError):
        json.loads(page.data)
    assert ask(path).status_code != 404
    assert webui.get("/simulator/stats").json["generations"] == 0


@pytest.mark.parametrize("kind", ["start-window", "start-window-html"])
def test_start_window_for_a_time(kind: str) -> None:
    app = create_simulator(SimulatorSettings(seconds_per_image=0))
    webui = app.test_client()
    webui.post("/simulator/faults", json={"kind": kind, "seconds": 3600})
    assert {webui.get("/sdapi/v1/samplers").status_code for _ in range(5)} == {404}
    assert webui.get("/simulator/stats").status_code == 200
    app.extensions["simulator"].faults.find(kind).seconds = 0
    assert webui.get("/sdapi/v1/samplers").status_code == 200


# Faults of the connection


def ask(server: SimulatorServer) -> socket.socket:
    """A connection on which a generation was asked for."""
    body = json.dumps(SMALL).encode()
    head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    line = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    line.sendall(head.encode() + body)
    return line


def read_head(answers: Any) -> tuple[int, dict[str, str]]:
    """Status and header fields of the next answer on a connection."""
    status = int(answers.readline().split()[1])
    return status, dict(field.decode().strip().split(": ", 1) for field in iter(answers.readline, b"\r\n"))


def until_free(server: SimulatorServer) -> None:
    """Wait until every thread of the server has let go of its connection."""
    limit = time.perf_counter() + 20
    while server.connections():
        assert time.perf_counter() < limit, "a connection is still held"


@pytest.mark.parametrize(("more", "count"), [({}, 2), ({"size": 1}, 1), ({"size": 7}, 7)])
def test_early_hints(fast: SimulatorServer, more: dict[str, int], count: int) -> None:
    arm(fast, "early-hints", **more)
    with ask(fast) as line, line.makefile("rb") as answers:
        assert [read_head(answers)[0] for _ in range(count)] == [103] * count
        status, fields = read_head(answers)
        assert status == 200
        assert len(json.loads(answers.read(int(fields["Content-Length"])))["images"]) == 1


def test_early_hints_come_before_the_work(slow: SimulatorServer) -> None:
    arm(slow, "early-hints", size=1)
    with ask(slow) as line, line.makefile("rb") as answers:
        assert read_head(answers)[0] == 103
        assert slow.simulator.engine.wait_busy(10)


def test_long_content_length(fast: SimulatorServer) -> None:
    arm(fast, "long-content-length")
    with ask(fast) as line, line.makefile("rb") as answers:
        status, fields = read_head(answers)
        assert (status, len(fields["Content-Length"]), fields["Content-Length"].isdigit()) == (200, 5000, True)
        assert len(json.loads(answers.read())["images"]) == 1


@pytest.mark.parametrize("kind", ["endless", "endless-close", "declares-huge"])
def test_an_answer_without_an_end(fast: SimulatorServer, kind: str) -> None:
    arm(fast, kind)
    with ask(fast) as line:
        with line.makefile("rb") as answers:
            status, fields = read_head(answers)
            beginning = answers.readline() + answers.read(3_000_000) if kind == "endless" else answers.read(3_000_000)
        expected = {"endless": None, "endless-close": None, "declares-huge": "10000000000"}[kind]
        assert (status, fields.get("Content-Length")) == (200, expected)
        assert (fields.get("Transfer-Encoding") == "chunked") == (kind == "endless")
        assert b'{"images":["iVBOR' in beginning[:100]
        assert len(beginning) >= 3_000_000
    until_free(fast)
    assert post(fast, "/sdapi/v1/txt2img", **SMALL).status_code == 200


@pytest.mark.parametrize("kind", ["endless", "endless-close", "declares-huge", "huge-json", "many-lists"])
def test_a_stream_ends_with_the_server(kind: str) -> None:
    with SimulatorServer(SimulatorSettings(seconds_per_image=0, faults=((kind, 1),))) as server:
        line = ask(server)
        assert line.recv(100).startswith(b"HTTP/1.1 200")
    with line, contextlib.suppress(ConnectionResetError):
        while line.recv(2**20):
            pass
    until_free(server)


def test_huge_json(fast: SimulatorServer) -> None:
    arm(fast, "huge-json", size=1_000_000)
    answer = post(fast, "/sdapi/v1/txt2img", **SMALL)
    assert len(answer.content) == 1_000_000
    padded = answer.json()
    assert padded.pop("padding").strip("A") == ""
    assert padded["images"] == post(fast, "/sdapi/v1/txt2img", **SMALL).json()["images"]


@pytest.mark.parametrize("size", [1000, 1001, 1002, 500_000])
def test_many_lists(fast: SimulatorServer, size: int) -> None:
    arm(fast, "many-lists", size=size)
    answer = post(fast, "/sdapi/v1/txt2img", **SMALL)
    assert len(answer.content) == size
    lists = answer.json()["images"]
    assert len(lists) > size // 3 - 20
    assert not any(lists)


@pytest.mark.parametrize(("kind", "size"), [("huge-json", 900_000_000), ("many-lists", 300_000_000)])
def test_how_large_they_are_by_themselves(fast: SimulatorServer, kind: str, size: int) -> None:
    arm(fast, kind)
    with ask(fast) as line, line.makefile("rb") as answers:
        assert read_head(answers)[1]["Content-Length"] == str(size)


def test_torn(fast: SimulatorServer) -> None:
    arm(fast, "torn")
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        post(fast, "/sdapi/v1/txt2img", **SMALL)
    assert post(fast, "/sdapi/v1/txt2img", **SMALL).status_code == 200
    assert stats(fast)["generations"] == 2


def test_close(fast: SimulatorServer) -> None:
    arm(fast, "close")
    with pytest.raises(requests.ConnectionError):
        post(fast, "/sdapi/v1/txt2img", **SMALL, force_task_id="closed")
    assert post(fast, "/internal/progress", id_task="closed").json()["completed"] is True


def test_hang_stays_busy_until_it_is_interrupted(fast: SimulatorServer, pool: concurrent.futures.Executor) -> None:
    arm(fast, "hang")
    running = pool.submit(post, fast, "/sdapi/v1/txt2img", **SMALL, n_iter=2, force_task_id="hung")
    engine = fast.simulator.engine
    while not engine.task_progress("hung", -1)["active"]:
        assert not running.done()
    while engine.progress()["state"]["job_count"] != 2:
        assert not running.done()
    engine.interrupt()
    assert len(running.result(20).json()["images"]) <= 1
    assert engine.progress()["state"]["job_count"] == 0


def test_hang_for_a_time(fast: SimulatorServer) -> None:
    arm(fast, "hang", seconds=0.05)
    began = time.perf_counter()
    assert post(fast, "/sdapi/v1/txt2img", **SMALL).status_code == 200
    assert time.perf_counter() - began >= 0.05


def test_hang_idle_ends_the_work_and_says_nothing(fast: SimulatorServer) -> None:
    arm(fast, "hang-idle")
    with pytest.raises(requests.ReadTimeout):
        requests.post(fast.url + "/sdapi/v1/txt2img", json=SMALL | {"force_task_id": "mute"}, timeout=1.0)
    assert fast.simulator.engine.progress()["state"]["job_count"] == 0
    assert post(fast, "/internal/progress", id_task="mute").json()["completed"] is True
    assert post(fast, "/sdapi/v1/txt2img", **SMALL).status_code == 200
    assert stats(fast)["max_in_flight"] == 1


def test_hang_idle_ends_in_a_broken_line(fast: SimulatorServer) -> None:
    arm(fast, "hang-idle", seconds=0)
    with pytest.raises(requests.ConnectionError):
        post(fast, "/sdapi/v1/txt2img", **SMALL)


def test_trickle(fast: SimulatorServer) -> None:
    arm(fast, "trickle", seconds=0.3)
    plain = {"Accept-Encoding": "identity"}
    with requests.post(fast.url + "/sdapi/v1/txt2img", json=SMALL, timeout=20, stream=True, headers=plain) as answer:
        assert answer.raw.read(1) == b"{"
        rest = answer.raw.read()
    assert len(rest) + 1 == int(answer.headers["Content-Length"])
    json.loads(b"{" + rest)


def test_refuse(fast: SimulatorServer) -> None:
    with requests.Session() as session:
        assert session.get(fast.url + "/sdapi/v1/samplers", timeout=20).status_code == 200
        arm(fast, "refuse", seconds=3600)
        with pytest.raises(requests.ConnectionError):
            session.get(fast.url + "/sdapi/v1/samplers", timeout=20)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", fast.port))


def test_refuse_ends() -> None:
    with SimulatorServer(SimulatorSettings(seconds_per_image=0)) as server:
        server.refuse(0.0)
        limit = time.perf_counter() + 20
        while time.perf_counter() < limit:
            try:
                assert requests.get(server.url + "/sdapi/v1/samplers", timeout=20).status_code == 200
            except requests.ConnectionError:
                continue
            break
        else:
            pytest.fail("it never listened again")


def test_refuse_from_the_start() -> None:
    with (
        SimulatorServer(SimulatorSettings(faults=(("refuse", 3600),))) as server,
        pytest.raises(ConnectionRefusedError),
    ):
        socket.create_connection(("127.0.0.1", server.port))


def test_refuse_lets_an_answer_out(slow: SimulatorServer, pool: concurrent.futures.Executor) -> None:
    running = pool.submit(post, slow, "/sdapi/v1/txt2img", **SMALL)
    assert slow.simulator.engine.wait_busy(10)
    slow.refuse(3600)
    slow.simulator.engine.interrupt()
    assert running.result(20).status_code == 200


# Arming


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_parse(kind: str) -> None:
    assert parse_fault(kind) == (kind, 1)
    assert parse_fault(f"{kind}:12") == (kind, 12)


@pytest.mark.parametrize("text", ["", "nope", "nope:1", "oom:0", "oom:-1", "oom:x", "oom:1.5", "oom:²"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"fault|count"):
        parse_fault(text)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"kind": "nope"},
        {"kind": "oom", "count": 0},
        {"kind": "oom", "count": True},
        {"kind": "hang", "seconds": -1},
        {"kind": "hang", "seconds": "x"},
        {"kind": "lost-model", "model": 1},
        {"kind": "oom", "colour": "red"},
        {"kind": "huge-json", "size": 0},
        {"kind": "huge-json", "size": "1"},
    ],
)
def test_arming_refuses(body: Any) -> None:
    webui = client()
    answer = webui.post("/simulator/faults", json=body)
    assert (answer.status_code, set(answer.json)) == (422, {"error"})
    assert webui.get("/simulator/faults").json == {"armed": []}


def test_refuse_needs_a_server() -> None:
    assert client().post("/simulator/faults", json={"kind": "refuse"}).status_code == 409


def test_faults_strike_in_their_order_and_can_be_cleared() -> None:
    webui = client()
    for kind, count in (("oom", 2), ("error-plain", 1), ("no-images", 5)):
        webui.post("/simulator/faults", json={"kind": kind, "count": count})
    assert [draw(webui).status_code for _ in range(3)] == [500, 500, 500]
    assert draw(webui).json["images"] == []
    assert webui.get("/simulator/faults").json == {"armed": [{"kind": "no-images", "count": 4}]}
    webui.delete("/simulator/faults")
    assert len(draw(webui).json["images"]) == 1
