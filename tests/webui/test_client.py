"""The client against a WebUI that is mocked, and against sockets that misbehave."""

import base64
import contextlib
import gzip
import itertools
import json
import logging
import re
import socket
import ssl
import threading
import time

import pytest
import requests
import responses
from responses import matchers

from app.config import WebuiAddress
from app.webui import errors
from app.webui.catalogue import Catalogue, Scheduler
from app.webui.client import ServerState, TaskState, Webui
from app.webui.exchange import Clock, Exchange, Limits, Reply, adapter, prepare, send
from tests.webui.peer import Peer, answer, read_request, resets, says, then, trickles

URL = "http://webui.test:7860"
API = URL + "/sdapi/v1"
#: Bytes; more than any answer here but for those that are to be too large.
LIMIT = 1 << 20
TITLE = "alpha.safetensors [0123456789]"
LISTS = {
    "samplers": [{"name": "Euler", "aliases": ["k_euler"], "options": {}}],
    "schedulers": [{"name": "karras", "label": "Karras"}],
    "upscalers": [{"name": "None"}, {"name": "Lanczos"}],
    "latent-upscale-modes": [{"name": "Latent"}],
    "prompt-styles": [{"name": "anime", "prompt": "{prompt}", "negative_prompt": ""}, {"name": "---", "prompt": None}],
    "sd-models": [{"title": TITLE, "model_name": "alpha", "hash": None, "filename": "/m/alpha.safetensors"}],
}
NOT_FOUND = {"detail": "Not Found"}
TASK = {"active": True, "queued": False, "completed": False, "progress": 0.5, "eta": 2, "id_live_preview": -1}
STATE = {
    "progress": 0.25,
    "eta_relative": 3.5,
    "state": {
        "skipped": False,
        "interrupted": True,
        "job": "scripts_txt2img",
        "job_count": 2,
        "job_no": 1,
        "sampling_step": 5,
        "sampling_steps": 20,
    },
    "current_image": None,
}


def client(url=URL, *, job_timeout=30.0, query_timeout=30.0, connect_timeout=5.0):
    address = WebuiAddress("main", url)
    return Webui(address, job_timeout=job_timeout, query_timeout=query_timeout, connect_timeout=connect_timeout)


# -- a mocked WebUI -----------------------------------------------------------------------------------------------------


@responses.activate
@pytest.mark.parametrize("path", ["txt2img", "img2img"])
@pytest.mark.parametrize(
    ("status", "body"), [(200, b'{"images": []}'), (500, b'{"error": "x"}'), (422, b""), (307, b"")]
)
def test_a_generation_hands_back_any_answer_as_it_is(path, status, body):
    payload = {"prompt": "一只猫", "seed": 42}
    responses.post(
        f"{API}/{path}",
        body=body,
        status=status,
        headers={"Location": "http://other.test/"} if status == 307 else {},
        auto_calculate_content_length=True,
        match=[
            matchers.json_params_matcher(payload),
            matchers.header_matcher({"Content-Type": "application/json", "Accept-Encoding": "identity"}),
        ],
    )
    assert client().generate(path, payload, LIMIT) == Reply(status, body)
    assert len(responses.calls) == 1


@responses.activate
def test_upscaling_goes_to_the_extras():
    responses.post(
        f"{API}/extra-batch-images", json={"images": []}, match=[matchers.json_params_matcher({"imageList": []})]
    )
    assert client().upscale({"imageList": []}, LIMIT).status == 200


@responses.activate
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://user:pass@webui.test:7860", "user:pass"),
        ("http://user:p%40ss%2Fw@webui.test:7860/", "user:p@ss/w"),
        ("http://us%3Aer:@webui.test:7860", "us:er:"),
        ("http://用户:密码@webui.test:7860", "用户:密码"),
        ("http://webui.test:7860", None),
    ],
)
def test_credentials_become_http_basic_and_nothing_else(url, expected, caplog):
    responses.post(f"{API}/interrupt", json={})
    webui = client(url)
    with caplog.at_level(logging.DEBUG):
        webui.interrupt()
    (call,) = responses.calls
    assert call.request.url == f"{API}/interrupt"
    sent = call.request.headers.get("Authorization")
    assert sent == (expected and "Basic " + base64.b64encode(expected.encode()).decode())
    assert "@" not in repr(webui) + caplog.text


@responses.activate
def test_nothing_of_the_environment_takes_part(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine webui.test login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    responses.post(f"{API}/interrupt", json={})
    client().interrupt()
    assert "Authorization" not in responses.calls[0].request.headers


@responses.activate
def test_a_task_is_asked_for_without_a_preview():
    question = {"id_task": "t1", "live_preview": False, "id_live_preview": -1}
    responses.post(f"{URL}/internal/progress", json=TASK, match=[matchers.json_params_matcher(question)])
    assert client().task("t1") == TaskState(active=True, queued=False, completed=False, progress=0.5, eta=2.0)


@responses.activate
def test_an_unknown_task_is_all_false():
    body = {
        "active": False,
        "queued": False,
        "completed": False,
        "progress": None,
        "eta": None,
        "textinfo": "Waiting...",
    }
    responses.post(f"{URL}/internal/progress", json=body)
    assert client().task("t1") == TaskState(active=False, queued=False, completed=False, progress=None, eta=None)


@responses.activate
def test_there_is_no_task_where_the_route_is_missing():
    responses.post(f"{URL}/internal/progress", json=NOT_FOUND, status=404)
    assert client().task("t1") is None


@responses.activate
def test_the_state_of_the_server():
    match = [matchers.query_param_matcher({"skip_current_image": "true"})]
    responses.get(f"{API}/progress", json=STATE, match=match)
    assert client().server_state() == ServerState(
        progress=0.25,
        eta=3.5,
        job="scripts_txt2img",
        job_count=2,
        job_no=1,
        sampling_step=5,
        sampling_steps=20,
        interrupted=True,
        skipped=False,
    )


@responses.activate
def test_a_state_of_another_kind_reads_as_idle():
    responses.get(f"{API}/progress", json={"progress": None, "state": {"job": None, "job_count": None, "job_no": True}})
    assert client().server_state() == ServerState(0.0, 0.0, "", 0, 0, 0, 0, interrupted=False, skipped=False)


def serve_lists(lists=LISTS, *, options=None, task_ids=True, forge=False):
    responses.get(f"{API}/options", json={"sd_model_checkpoint": TITLE} if options is None else options)
    for name, body in lists.items():
        responses.get(f"{API}/{name}", json=body)
    for name in LISTS.keys() - lists.keys():
        responses.get(f"{API}/{name}", json=NOT_FOUND, status=404)
    responses.post(f"{URL}/internal/progress", json=TASK if task_ids else NOT_FOUND, status=200 if task_ids else 404)
    responses.get(f"{API}/sd-modules", json=[] if forge else NOT_FOUND, status=200 if forge else 404)


@responses.activate
def test_the_catalogue():
    serve_lists()
    found = client().catalogue()
    assert found.samplers == ("Euler",)
    assert found.schedulers == (Scheduler("karras", "Karras"),)
    assert found.upscalers == ("None", "Lanczos")
    assert found.latent_modes == ("Latent",)
    assert found.styles == ("anime",)
    assert [one.model_name for one in found.models] == ["alpha"]
    assert (found.loaded_model, found.prompt_comments, found.task_ids, found.forge) == (
        "alpha.safetensors",
        None,
        True,
        False,
    )


@responses.activate
def test_missing_lists_are_empty():
    serve_lists({}, task_ids=False)
    assert client().catalogue() == Catalogue()


@responses.activate
@pytest.mark.parametrize(
    ("options", "loaded"),
    [
        ({"sd_model_checkpoint": "alpha"}, "alpha.safetensors"),
        ({"sd_model_checkpoint": "alpha.safetensors [9999999999]"}, None),
        ({"sd_model_checkpoint": "gone"}, None),
        ({"sd_model_checkpoint": ""}, None),
        ({"sd_model_checkpoint": None}, None),
        ({}, None),
    ],
)
def test_the_loaded_model_is_one_of_the_list(options, loaded):
    serve_lists(options=options)
    assert client().catalogue().loaded_model == loaded


@responses.activate
@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"enable_prompt_comments": True}, True),
        ({"enable_prompt_comments": False}, False),
        ({"enable_prompt_comments": None}, None),
        ({"enable_prompt_comments": "yes"}, None),
        ({}, None),
    ],
)
def test_the_traits_of_a_webui(options, shown):
    serve_lists(options=options, forge=True)
    found = client().catalogue()
    assert (found.prompt_comments, found.forge) == (shown, True)


@responses.activate
@pytest.mark.parametrize("status", [401, 404, 500, 503])
def test_a_webui_that_is_not_ready_is_asked_once(status):
    responses.get(f"{API}/options", json={}, status=status)
    with pytest.raises(errors.NotAnswering):
        client().catalogue()
    assert len(responses.calls) == 1


@responses.activate
@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    ("status", "body"), [(500, "[]"), (200, "{}"), (200, "nonsense"), (200, "null"), (200, "[" * 100_000)]
)
def test_a_list_that_fails_is_not_taken_for_empty(name, status, body):
    serve_lists()
    responses.replace(responses.GET, f"{API}/{name}", body=body, status=status)
    with pytest.raises(errors.NotAnswering):
        client().catalogue()


@responses.activate
@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "credentials"), (403, "credentials"), (404, "--api"), (500, "status 500"), (302, "status 302")],
)
def test_why_a_webui_is_of_no_use(status, said):
    responses.get(f"{API}/options", json={}, status=status)
    with pytest.raises(errors.NotAnswering, match=said):
        client().catalogue()


@responses.activate
@pytest.mark.parametrize("body", ["", "[]", "5", '{"state": []}', "\ufffe"])
def test_an_unreadable_look_says_so(body):
    responses.get(f"{API}/progress", body=body)
    with pytest.raises(errors.NotAnswering):
        client().server_state()


# -- a socket that misbehaves ---------------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


GENERATION = ("txt2img", {"prompt": "x"}, LIMIT)


#: For loopback only, and known to everybody: a key that proves nothing, valid for a hundred years.
TLS_PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgnpLoHlxi26EpSKcV
ghyj1DXqJSNTUNd+bI+14aNISiKhRANCAATZPM7XD0cYeHdf4J7O0rAgU5rYEZEH
XGaYrV/2UnOF3kchYAVzmh4DbiJ8C/N6xJz2bjXcbFNO0CVphYhI6JD5
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUELbTVpHyUUdAT7Mtc8WgdFT0JCwwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMjEwNTc0N1oYDzIxMjYxMDI5
MTA1NzQ3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATZPM7XD0cYeHdf4J7O0rAgU5rYEZEHXGaYrV/2UnOF3kchYAVzmh4D
biJ8C/N6xJz2bjXcbFNO0CVphYhI6JD5o28wbTAdBgNVHQ4EFgQU5nSq+xOZuSxl
D05PkpQb616nZScwHwYDVR0jBBgwFoAU5nSq+xOZuSxlD05PkpQb616nZScwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSQAwRgIhAKxNNcloYV12r8ojlAREwQM5AMH1wE+OIU55tZrrCeJgAiEA
yI+yrYwAvwZ6BWauszRlJdn8cdtH8qNVmxlDAVpTzv0=
-----END CERTIFICATE-----
"""


class TlsPeer(Peer):
    """A :class:`Peer` behind TLS."""

    def __init__(self, part, pem) -> None:
        super().__init__(part)
        self.url = self.url.replace("http:", "https:")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self._listener = context.wrap_socket(self._listener, server_side=True)


@pytest.fixture
def pem(tmp_path, monkeypatch):
    path = tmp_path / "tls.pem"
    path.write_text(TLS_PEM)
    monkeypatch.setattr(requests.adapters, "DEFAULT_CA_BUNDLE_PATH", str(path))
    return path


def test_every_call_uses_a_connection_of_its_own():
    with Peer(says(answer())) as peer:
        webui = client(peer.url)
        assert webui.generate(*GENERATION) == Reply(200, b"{}")
        webui.interrupt()
        assert webui.upscale({}, LIMIT).status == 200
    assert len(peer.requests) == 3
    assert all(b"\r\nConnection: close\r\n" in request for request in peer.requests)


def test_a_base_path_is_kept():
    with Peer(says(answer())) as peer:
        client(peer.url + "/sd/").generate(*GENERATION)
    assert peer.requests[0].startswith(b"POST /sd/sdapi/v1/txt2img HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda connection: None, id="no answer at all"),
        pytest.param(resets, id="reset"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nContent-Le"), id="half a head"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nServer: x\r\n"), id="a head without its end"),
        pytest.param(says(b"nonsense\r\n\r\n"), id="no HTTP"),
        pytest.param(says(answer(b'{"images": [', length=1000)), id="torn"),
        pytest.param(says(answer(b"", length=5)), id="torn before the body"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"), id="torn chunk"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), id="no last chunk"),
        pytest.param(
            says(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"), id="no gzip at all"
        ),
    ],
)
def test_a_generation_without_a_whole_answer_is_broken_and_never_sent_twice(part):
    with Peer(part) as peer:
        webui = client(peer.url)
        with pytest.raises(errors.ConnectionBroken):
            webui.generate(*GENERATION)
        with pytest.raises(errors.NotAnswering):
            webui.server_state()
    assert [request.split(b" ")[0] for request in peer.requests] == [b"POST", b"GET"]


def test_a_refused_connection_was_never_made():
    webui = client(f"http://127.0.0.1:{free_port()}")
    for call in (
        lambda: webui.generate(*GENERATION),
        lambda: webui.upscale({}, LIMIT),
        webui.catalogue,
        webui.interrupt,
    ):
        with pytest.raises(errors.Unreachable):
            call()


def test_an_unknown_host_was_never_reached(monkeypatch):
    def lookup(*_args, **_kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(errors.Unreachable) as caught:
        client("http://user:secret@no-such-host.test").generate(*GENERATION)
    assert "no-such-host" not in str(caught.value)


@contextlib.contextmanager
def full_listener():
    """A port on which connections are neither taken nor refused."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as others:
        # With nobody accepting, the kernel's queue fills up and leaves later connections without an answer.
        for _ in range(4):
            other = others.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_connection_that_is_not_taken_was_never_made():
    with full_listener() as port:
        webui = client(f"http://127.0.0.1:{port}", connect_timeout=0.2)
        with pytest.raises(errors.Unreachable):
            webui.generate(*GENERATION)


def test_a_failed_tls_handshake_sent_nothing():
    class Plain(Peer):
        def _serve(self):
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = self._listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Plain(lambda connection: None) as peer, pytest.raises(errors.Unreachable):
        client(peer.url.replace("http:", "https:")).generate(*GENERATION)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda connection: connection.recv(1), id="silence"),
        pytest.param(then(says(b"HTTP/1.1 200 OK\r\nX-Trickle: "), trickles(b"x")), id="a head that trickles"),
        pytest.param(then(says(answer(b"{", length=1 << 20)), trickles()), id="a body that trickles"),
        pytest.param(then(says(b"HTTP/1.1 200 OK\r\n\r\n{"), trickles()), id="a body without a length"),
    ],
)
def test_time_is_bounded_however_the_answer_comes(part):
    with Peer(part) as peer:
        webui = client(peer.url, job_timeout=0.3, query_timeout=0.3)
        began = time.monotonic()
        with pytest.raises(errors.JobTimeout):
            webui.generate(*GENERATION)
        with pytest.raises(errors.NotAnswering):
            webui.task("t")
        assert time.monotonic() - began < 10


def test_a_request_that_nobody_reads_is_bounded_too():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        webui = client(f"http://127.0.0.1:{listener.getsockname()[1]}", job_timeout=0.3)
        with pytest.raises(errors.JobTimeout):
            webui.generate("img2img", {"init_images": ["x" * (32 << 20)]}, LIMIT)


def test_sending_may_take_longer_than_connecting():
    class Slow(Peer):
        def _serve(self):
            connection, _ = self._listener.accept()
            with connection:
                # Reads nothing for longer than the connect timeout, while the socket's buffers are full.
                threading.Event().wait(0.5)
                self.requests.append(read_request(connection))
                connection.sendall(answer())

    with Slow(lambda connection: None) as peer:
        payload = {"init_images": ["x" * (32 << 20)]}
        assert client(peer.url, connect_timeout=0.1).generate("img2img", payload, LIMIT).status == 200


def aborted(peer):
    """Generate at ``peer`` and abort once it has read the request."""
    webui = client(peer.url)

    def abort():
        assert peer.arrived.wait(10)
        webui.abort()

    aborter = threading.Thread(target=abort)
    aborter.start()
    try:
        return webui.generate(*GENERATION)
    finally:
        aborter.join(10)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda connection: connection.recv(1), id="before the answer"),
        # Nothing but the abort tells that this answer did not end by itself.
        pytest.param(
            then(says(b"HTTP/1.1 200 OK\r\n\r\n{}"), lambda connection: connection.recv(1)), id="amid the answer"
        ),
    ],
)
def test_abort_breaks_the_generation_in_flight(part):
    with Peer(part) as peer, pytest.raises(errors.ConnectionBroken):
        aborted(peer)


def test_abort_and_the_clock_work_behind_tls(pem):
    with TlsPeer(lambda connection: connection.recv(1), pem) as peer:
        with pytest.raises(errors.ConnectionBroken):
            aborted(peer)
        with pytest.raises(errors.JobTimeout):
            client(peer.url, job_timeout=0.5).generate(*GENERATION)


def test_a_whole_answer_behind_tls(pem):
    with TlsPeer(says(answer()), pem) as peer:
        assert client(peer.url).generate(*GENERATION) == Reply(200, b"{}")


def test_a_stranger_behind_tls_is_told_nothing(pem, tmp_path, monkeypatch):
    with TlsPeer(says(answer()), pem) as peer:
        monkeypatch.undo()
        with pytest.raises(errors.Unreachable):
            client(peer.url).generate(*GENERATION)
    assert peer.requests == []


class ByteCounter:
    """Takes one request, byte by byte, and answers once it is complete."""

    def __init__(self, listener: socket.socket) -> None:
        self.received = bytearray()
        self.ended_early = threading.Event()
        self._listener = listener
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, self._listener:
            while self.lacks() != 0:
                data = connection.recv(65536)
                if not data:
                    self.ended_early.set()
                    return
                self.received += data
            connection.sendall(answer())

    def lacks(self) -> int | None:
        """The bytes that its body still lacks; None while its head does."""
        head, end, body = bytes(self.received).partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return int(length[1]) - len(body) if end and length else None

    def await_all_but_the_last_byte(self) -> None:
        deadline = time.monotonic() + 10
        while self.lacks() != 1:
            assert time.monotonic() < deadline, f"{self.lacks()} bytes are missing"
            time.sleep(0.001)

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture(params=["plain", "behind TLS"])
def counter(request, pem):
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if request.param == "plain":
        counter = ByteCounter(listener)
        counter.url = f"http://127.0.0.1:{port}"
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        counter = ByteCounter(context.wrap_socket(listener, server_side=True))
        counter.url = f"https://127.0.0.1:{port}"
    yield counter
    counter.join()


def generate(webui, payload, may_complete):
    return webui.generate("txt2img", payload, 1000, may_complete=may_complete)


def upscale(webui, payload, may_complete):
    return webui.upscale(payload, 1000, may_complete=may_complete)


SMALL_AND_LARGE = [{}, {"init_images": ["x" * 3_000_000]}]


@pytest.mark.parametrize("post", [generate, upscale])
@pytest.mark.parametrize("payload", SMALL_AND_LARGE, ids=["small", "large"])
def test_the_last_byte_of_a_request_is_sent_when_it_may_be(counter, post, payload):
    def may_complete():
        counter.await_all_but_the_last_byte()
        return True

    assert post(client(counter.url), payload, may_complete) == Reply(200, b"{}")
    assert counter.lacks() == 0
    assert json.loads(bytes(counter.received).partition(b"\r\n\r\n")[2]) == payload


@pytest.mark.parametrize("post", [generate, upscale])
@pytest.mark.parametrize("payload", SMALL_AND_LARGE, ids=["small", "large"])
def test_a_request_that_may_not_be_completed_breaks_off_before_its_last_byte(counter, post, payload):
    def may_complete():
        counter.await_all_but_the_last_byte()
        return False

    with pytest.raises(errors.Withheld):
        post(client(counter.url), payload, may_complete)
    assert counter.ended_early.wait(10)
    assert counter.lacks() == 1


def test_abort_without_a_generation_does_nothing():
    with Peer(says(answer())) as peer:
        webui = client(peer.url)
        webui.abort()
        assert webui.generate(*GENERATION).status == 200
        webui.abort()
        webui.interrupt()


def test_a_cut_before_the_connection_is_made_still_ends_it():
    with Peer(lambda connection: connection.recv(1)) as peer:
        exchange = Exchange()
        exchange.cut()
        request = prepare("GET", peer.url, None, None, {})
        with pytest.raises(errors.ConnectionBroken):
            send(adapter(), Clock(), request, exchange, Limits(5, 30, 10))


def test_what_is_held_back_has_all_its_time_once_it_is_let_go():
    with Peer(says(answer(json.dumps(STATE).encode()))) as peer:
        webui = client(peer.url, query_timeout=1)
        assert webui.server_state(lambda: threading.Event().wait(1.5)).job_count == 2
    with Peer(lambda connection: connection.recv(1)) as silent, pytest.raises(errors.NotAnswering) as caught:
        client(silent.url, query_timeout=0.2).server_state(lambda: threading.Event().wait(0.3))
    assert isinstance(caught.value.__cause__, errors.JobTimeout)


def test_what_is_held_back_and_called_off_sends_nothing():
    class CalledOff(Exception):
        pass

    def call_off():
        raise CalledOff

    with Peer(says(answer())) as peer:
        webui = client(peer.url)
        with pytest.raises(CalledOff):
            webui.server_state(call_off)
        webui.interrupt()
    assert [request.strip().partition(b" ")[0] for request in peer.requests] == [b"", b"POST"]


def test_polls_run_beside_a_generation():
    polled = threading.Event()

    class Both(Peer):
        def _serve(self):
            first, _ = self._listener.accept()
            with first:
                self.requests.append(read_request(first))
                self.arrived.set()
                second, _ = self._listener.accept()
                with second:
                    self.requests.append(read_request(second))
                    second.sendall(answer(json.dumps(STATE).encode()))
                assert polled.wait(10)
                first.sendall(answer(b'{"images": []}'))

    with Both(lambda connection: None) as peer:
        webui = client(peer.url)
        states = []

        def poll():
            assert peer.arrived.wait(10)
            states.append(webui.server_state())
            polled.set()

        monitor = threading.Thread(target=poll)
        monitor.start()
        assert webui.generate(*GENERATION) == Reply(200, b'{"images": []}')
        monitor.join(10)
        assert states[0].job_count == 2


# -- heads and lengths that are not honest --------------------------------------------------------------------------------

HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"


def ask(peer, limit=LIMIT, seconds=30.0):
    request = prepare("GET", peer.url, None, None, {})
    return send(adapter(), Clock(), request, Exchange(), Limits(5, seconds, limit))


def repeats(data, times=None):
    """Send the same bytes again and again: ``times`` times, or until the other side is gone."""

    def part(connection):
        for _ in itertools.count() if times is None else range(times):
            connection.sendall(data)

    return part


@pytest.mark.parametrize("head", [HINT, HINT * 20, b"HTTP/1.1 100 Continue\r\n\r\n" + HINT, HINT[:17] + b"\r\n\r\n"])
def test_interim_answers_are_skipped(head):
    statuses = []
    with Peer(says(head + answer(b'{"images": []}'))) as peer:
        reply = client(peer.url).generate(*GENERATION, on_status=statuses.append)
    assert reply == Reply(200, b'{"images": []}')
    assert statuses == [200]
    assert len(peer.requests) == 1


def test_switching_protocols_is_no_interim_answer():
    with Peer(says(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")) as peer, pytest.raises(errors.WebuiError):
        client(peer.url).generate(*GENERATION)
    assert len(peer.requests) == 1


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(repeats(HINT), id="early hints"),
        pytest.param(repeats(b"HTTP/1.1 102 Processing\r\n\r\n"), id="processing"),
        pytest.param(then(says(HINT[:-2]), repeats(b"X-Again: x\r\n")), id="one with endless headers"),
    ],
)
def test_endless_interim_answers_end_the_exchange(part):
    with Peer(part) as peer:
        began = time.monotonic()
        with pytest.raises(errors.ConnectionBroken):
            client(peer.url).generate(*GENERATION)
        with pytest.raises(errors.NotAnswering):
            client(peer.url).interrupt()
        assert time.monotonic() - began < 10


def test_a_content_length_of_5000_digits_says_nothing():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"
    with Peer(says(head + b'{"images": []}')) as peer:
        assert client(peer.url).generate(*GENERATION) == Reply(200, b'{"images": []}')
    with Peer(says(head + b"x" * 100)) as peer, pytest.raises(errors.AnswerTooLarge):
        ask(peer, limit=99)


@pytest.mark.parametrize("length", [b"10737418240", b"9" * 18])
def test_an_answer_that_declares_gigabytes_is_not_read(length):
    sent = []

    def part(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)
            sent.append(65536)

    with Peer(part) as peer, pytest.raises(errors.AnswerTooLarge):
        client(peer.url).generate(*GENERATION)
    # What the kernel's buffers took, and no more.
    assert sum(sent) < 100 << 20


CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(then(says(b"HTTP/1.1 200 OK\r\n\r\n"), repeats(b"x" * 65536)), id="no length"),
        pytest.param(
            then(says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), repeats(CHUNK)), id="chunked"
        ),
        pytest.param(
            then(says(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(b"x" * (LIMIT + 1)))),
            id="unpacked",
        ),
        pytest.param(
            then(
                says(answer(gzip.compress(b"x" * (LIMIT + 1))).replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1))
            ),
            id="unpacked, with a length",
        ),
    ],
)
def test_an_endless_body_is_read_up_to_the_limit(part):
    with Peer(part) as peer:
        with pytest.raises(errors.AnswerTooLarge) as caught:
            client(peer.url).generate(*GENERATION)
        with pytest.raises(errors.AnswerTooLarge):
            client(peer.url).upscale({}, LIMIT)
    assert isinstance(caught.value, errors.BadAnswer)


def test_a_question_with_an_endless_answer_is_not_answered():
    with (
        Peer(then(says(b"HTTP/1.1 200 OK\r\n\r\n"), repeats(b"x" * 65536))) as peer,
        pytest.raises(errors.NotAnswering),
    ):
        client(peer.url).server_state()


@pytest.mark.parametrize("value", ["[],", "{},"])
def test_a_question_with_too_many_values_is_not_answered(value):
    body = f"[{value * 500_000}{value[:-1]}]".encode()
    with Peer(says(answer(body))) as peer, pytest.raises(errors.NotAnswering):
        client(peer.url).server_state()


def test_an_answer_over_the_limit_is_not_read():
    with Peer(says(answer(b"x" * 100))) as peer:
        with pytest.raises(errors.AnswerTooLarge):
            ask(peer, limit=99)
        assert ask(peer, limit=100).body == b"x" * 100


FAILED = b"HTTP/1.1 500 Internal Server Error\r\n"


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(says(answer(b"x" * 1000, status=b"500 Internal Server Error")), id="with a length"),
        pytest.param(
            then(says(FAILED + b"Content-Length: 10737418240\r\n\r\n"), repeats(b"x" * 65536)), id="gigabytes"
        ),
        pytest.param(then(says(FAILED + b"\r\n"), repeats(b"x" * 65536)), id="endless"),
        pytest.param(then(says(FAILED + b"Transfer-Encoding: chunked\r\n\r\n"), repeats(CHUNK)), id="endless, chunked"),
    ],
)
def test_the_body_of_an_error_is_cut_at_the_limit_and_still_read(part):
    with Peer(part) as peer:
        assert ask(peer, limit=100) == Reply(500, b"x" * 100)


def test_an_error_that_trickles_has_its_time_and_no_more():
    with Peer(then(says(FAILED + b"\r\n"), trickles())) as peer, pytest.raises(errors.JobTimeout):
        ask(peer, seconds=0.3)


# -- whether a process listens ------------------------------------------------------------------------------------------


def unanswered(call):
    with pytest.raises(errors.WebuiError) as caught:
        call()
    return caught.value


def test_nobody_listens_where_the_connection_is_refused():
    webui = client(f"http://127.0.0.1:{free_port()}")
    for call in (lambda: webui.generate(*GENERATION), webui.server_state, webui.catalogue):
        error = unanswered(call)
        assert errors.nobody_listens(error)
        assert errors.reason(error) == "connection refused"


def test_somebody_may_listen_where_the_connection_takes_too_long():
    with full_listener() as port:
        error = unanswered(client(f"http://127.0.0.1:{port}", connect_timeout=0.2).server_state)
    assert isinstance(error, errors.Unreachable)
    assert not errors.nobody_listens(error)
    assert errors.reason(error) == "no connection in time"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        pytest.param(lambda connection: connection.recv(1), "no answer in time", id="silence"),
        pytest.param(resets, "the connection broke before the answer was complete", id="reset"),
        pytest.param(says(answer(b"{")), "its answer is not JSON", id="no JSON"),
        pytest.param(says(answer(b"[]")), "its answer is not a WebUI's", id="another answer"),
        pytest.param(says(answer(b"{}", status=b"500 Oh")), "The WebUI answers with status 500", id="an error"),
    ],
)
def test_somebody_listens_who_answers_badly_or_not_at_all(part, reason):
    with Peer(part) as peer:
        error = unanswered(client(peer.url, query_timeout=0.3).server_state)
    assert isinstance(error, errors.NotAnswering)
    assert not errors.nobody_listens(error)
    assert errors.reason(error) == reason


def test_a_redirect_is_not_followed():
    with Peer(says(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")) as peer:
        assert client(peer.url).generate(*GENERATION) == Reply(307, b"")
    assert len(peer.requests) == 1


def test_no_proxy_is_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Peer(says(answer())) as peer:
        assert client(peer.url).generate(*GENERATION).status == 200
