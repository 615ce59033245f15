"""Who may, over real processes: tokens of the command, a gateway that is open to its machine alone, and what ends with a token."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.system.harness import (
    COMMAND,
    NGINX,
    START_SECONDS,
    Gateway,
    Process,
    Simulator,
    Stage,
    at_once,
    clean_environ,
    free_port,
    listens,
    picture,
    replaced,
    run,
    until,
)
from tests.system.sse import EventClient

TOKEN = re.compile(r"sdg_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}")
NAME = "20261122T061530123-9f2c4e7a"
#: A revocation takes at most so long, and the commands and requests of the test on a busy machine some more.
REVOKED_SECONDS, BUSY_SECONDS = 10.0, 10.0
MEMBERS = {"id": "alice", "type": "txt2img", "name": NAME, "filename": f"{NAME}-1-0.png"}
PUBLIC = ("/livez", "/readyz", "/docs", "/docs/start.js", "/docs/swagger-ui.css", "/openapi.json")
QUERIES = ("", "?limit=1&before=x", "?id=alice", "?size=160&format=webp", "?access_token=x", "?exp=1&kid=1&sig=x")


def tokens(gateway: Gateway, *arguments: str) -> str:
    """The output of a command about tokens."""
    done = gateway.cli("tokens", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def create(gateway: Gateway, *options: str) -> str:
    """A new token."""
    text = tokens(gateway, "create", "--name", "test", *options)
    assert TOKEN.fullmatch(text)
    return text


def id_of(text: str) -> str:
    return text.split("_")[1]


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def problem_of(response: requests.Response) -> tuple[int, str | None]:
    is_one = response.headers.get("Content-Type") == "application/problem+json"
    return response.status_code, response.json()["type"] if is_one and response.content else None


def open_gateway(stage: Stage, simulators: Any, **settings: Any) -> Gateway:
    """A gateway as an operator starts it who has set nothing about who may."""
    return stage.gateway(simulators, ready=False, SDG_AUTH=None, **settings)


@pytest.fixture(scope="module")
def house(hall: Stage, houses_simulator: Simulator) -> Gateway:
    """A gateway of two processes with tokens, which tests share."""
    houses_simulator.await_ready()
    gateway = hall.gateway([houses_simulator], ready=False, SDG_AUTH=None)
    until(lambda: gateway.alive and listens(gateway.port), "it listens", START_SECONDS)
    create(gateway)
    return gateway


@pytest.fixture(scope="module")
def everything(house: Gateway) -> str:
    return create(house, "--scopes", "delete,admin")


class TestCommand:
    def test_a_token_is_shown_once(self, house: Gateway) -> None:
        made = house.cli(
            "tokens", "create", "--name", "shop", "--users", "shop-*", "--users", "灯", "--expires", "365d"
        )
        text = made.stdout.strip()
        assert made.returncode == 0
        assert TOKEN.fullmatch(text)
        shown = tokens(house, "show", id_of(text))
        assert {"id        " + id_of(text), "name      shop", "state     valid", "users     shop-* 灯"} <= set(
            shown.splitlines()
        )
        assert "scopes    delete,generate,read" in shown
        listed = tokens(house, "list")
        secret = text.split("_")[2]
        for output in (shown, listed, made.stderr, house.text(), house.database.read_bytes().decode("latin-1")):
            assert secret not in output
        assert [line for line in listed.splitlines() if line.startswith(id_of(text))]

    @pytest.mark.parametrize(
        "arguments",
        [
            ("create",),
            ("create", "--name", ""),
            ("create", "--name", "x" * 65),
            ("create", "--name", "x", "--users", ""),
            ("create", "--name", "x", "--users", "a/b"),
            ("create", "--name", "x", "--users", "a\nb"),
            ("create", "--name", "x", "--users", "u" * 65),
            ("create", "--name", "x", "--scopes", "write"),
            ("create", "--name", "x", "--scopes", ""),
            ("create", "--name", "x", "--expires", "1 year"),
            ("create", "--name", "x", "--expires", "0d"),
            ("create", "--name", "x", "--expires", "-1d"),
            ("show", "00000000"),
            ("revoke", "00000000"),
            ("rotate", "00000000"),
        ],
    )
    def test_what_is_wrong_is_told_in_a_line_and_makes_nothing(
        self, house: Gateway, arguments: tuple[str, ...]
    ) -> None:
        before = tokens(house, "list")
        done = house.cli("tokens", *arguments)
        assert done.returncode != 0
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert tokens(house, "list") == before

    def test_rotated_both_are_valid_for_a_while(self, house: Gateway) -> None:
        old = create(house, "--users", "alice", "--scopes", "read")
        new = tokens(house, "rotate", id_of(old), "--overlap", "1h")
        for text in (old, new):
            assert house.http.get("/t2ihistory/alice", headers=bearer(text)).status_code == 200
            assert house.http.get("/t2ihistory/bob", headers=bearer(text)).status_code == 404
        assert "expires   never" in tokens(house, "show", id_of(new))
        assert "expires   never" not in tokens(house, "show", id_of(old))
        assert tokens(house, "revoke", id_of(old)) == "the token is revoked"
        assert tokens(house, "revoke", id_of(old)) == "the token was revoked already"
        assert house.cli("tokens", "rotate", id_of(old)).returncode == 1

    def test_it_makes_the_first_token_where_nothing_is_yet(self, tmp_path: Path) -> None:
        instance = tmp_path / "new" / "instance"
        environ = clean_environ(tmp_path, SDG_INSTANCE=instance)
        done = run((COMMAND, "tokens", "create", "--name", "first"), environ)
        assert TOKEN.fullmatch(done.stdout.strip()), done.stderr
        assert stat.S_IMODE((instance / "secret-keys").stat().st_mode) == 0o600


def targets(http: Any) -> Iterator[tuple[str, bool]]:
    """Every path of the OpenAPI document, with whether it names a user; and some that lead nowhere."""
    for template in http.get("/openapi.json").json()["paths"]:
        yield template.format(**MEMBERS), "{id}" in template
    for path in (
        "/",
        "/nothing",
        "/metrics",
        "/.env",
        "/docs/nothing",
        "/static/x",
        "/t2ihistory/",
        "/%ff",
        "/jobs/%2e%2e",
    ):
        yield path, False


class TestEveryPath:
    def test_without_a_token_all_but_the_public_ones_are_401(self, house: Gateway) -> None:
        with requests.Session() as session:
            session.trust_env = False
            for path, _ in targets(house.http):
                for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"):
                    for query in QUERIES:
                        signable = query.startswith("?exp") and ("/get_images/" in path or path.endswith("/events"))
                        answer = session.request(method, house.url + path + query, allow_redirects=False)
                        public = path in PUBLIC and method in ("GET", "HEAD")
                        if (path == "/session" and method in ("POST", "DELETE")) or path == "/docs/nothing":
                            continue
                        expected = {200} if public else {403} if signable and method in ("GET", "HEAD") else {401}
                        assert answer.status_code in expected, (method, path, query)

    def test_of_another_user_all_are_404(self, house: Gateway) -> None:
        headers = bearer(create(house, "--users", "bob", "--users", "alice2*", "--scopes", "delete,admin"))
        bodies = set()
        with requests.Session() as session:
            session.trust_env = False
            for path, names_a_user in targets(house.http):
                if not names_a_user:
                    continue
                for method in ("GET", "POST", "PUT", "DELETE"):
                    for query in QUERIES[:-1]:
                        answer = session.request(method, house.url + path + query, headers=headers)
                        assert problem_of(answer) == (404, "not-found"), (method, path, query)
                        bodies.add(answer.json()["detail"])
            for path in ("/txt2img", "/img2img"):
                answer = session.post(house.url + path, json=picture(id="alice"), headers=headers)
                assert problem_of(answer) == (404, "not-found")
                bodies.add(answer.json()["detail"])
        assert len(bodies) == 1

    def test_a_token_works_in_every_process(self, house: Gateway, everything: str) -> None:
        answers = at_once([lambda: house.http.get("/webuis", headers=bearer(everything)).status_code] * 20)
        assert set(answers) == {200}
        cookie = house.http.request("POST", "/session", json={"token": everything}).cookies["sdg_session"]
        answers = at_once([lambda: house.http.get("/webuis", cookies={"sdg_session": cookie}).status_code] * 20)
        assert set(answers) == {200}


def test_failures_are_counted_over_all_processes(stage: Stage, simulator: Simulator) -> None:
    gateway = open_gateway(stage, [simulator])
    gateway.await_ready()
    text = create(gateway)
    answers = [gateway.http.get("/queue", headers=bearer("sdg_bad")) for _ in range(20)]
    assert [problem_of(answer) for answer in answers] == [(401, "token-invalid")] * 20
    # The other process hears of each failure a moment later; where it has started later, only of those since then. If none
    # heard of the other's, these were too few.
    refused: list[requests.Response] = []
    while len(refused) < 10:
        answers.append(gateway.http.get("/queue", headers=bearer("sdg_bad")))
        refused = [*refused, answers[-1]] if problem_of(answers[-1]) == (429, "too-many-failures") else []
        assert len(answers) < 50
    assert refused[-1].headers["Retry-After"]
    assert gateway.http.get("/queue", headers=bearer(text)).status_code == 200


class TestRevocation:
    @contextlib.contextmanager
    def watching(self, gateway: Gateway, text: str) -> Iterator[list[EventClient]]:
        """Streams of one job and of all of its user, both begun."""
        headers = bearer(text) | {"Prefer": "respond-async"}
        job = gateway.http.request("POST", "/txt2img", json=picture(id="alice"), headers=headers).json()
        with contextlib.ExitStack() as stack:
            paths = (f"{job['url']}/events", "/jobs/alice/events")
            streams = [stack.enter_context(EventClient(gateway.url, path, **bearer(text))) for path in paths]
            assert all(stream.next() for stream in streams)
            yield streams

    @pytest.mark.parametrize("how", ["by the command", "on another host"])
    def test_streams_and_waiting_requests_end(self, stage: Stage, how: str) -> None:
        gateway = open_gateway(stage, [stage.simulator(seconds_per_image=60.0)])
        gateway.await_ready()
        text, other = create(gateway, "--users", "alice"), create(gateway)
        with self.watching(gateway, text) as streams:
            began = time.monotonic()
            assert at_once([partial(self.wait, gateway, text), partial(self.revoke, gateway, text, other, how)])[0] == (
                401,
                "token-invalid",
            )
            for stream in streams:
                stream.rest()
            assert time.monotonic() - began < REVOKED_SECONDS + BUSY_SECONDS
        assert problem_of(gateway.http.get("/jobs/alice", headers=bearer(text))) == (401, "token-invalid")
        # The jobs go on.
        assert len(gateway.http.get("/jobs/alice", headers=bearer(other)).json()["jobs"]) == 2

    def wait(self, gateway: Gateway, text: str) -> tuple[int, str | None]:
        return problem_of(gateway.http.request("POST", "/txt2img", json=picture(id="alice"), headers=bearer(text)))

    def revoke(self, gateway: Gateway, text: str, other: str, how: str) -> tuple[int, str | None]:
        until(
            lambda: gateway.http.get("/queue", headers=bearer(other)).json()["counts"] == {"running": 1, "waiting": 1},
            "one job runs, and the other one waits",
        )
        if how == "by the command":
            tokens(gateway, "revoke", id_of(text))
        else:
            with contextlib.closing(sqlite3.connect(gateway.database)) as connection, connection:
                connection.execute("UPDATE tokens SET revoked_at = 1 WHERE id = ?", (id_of(text),))
        return 0, None


class TestOpen:
    def test_it_serves_this_machine_until_a_token_is_made(self, stage: Stage, simulator: Simulator) -> None:
        gateway = open_gateway(stage, [simulator])
        gateway.await_ready()
        made = gateway.http.request("POST", "/txt2img", json=picture())
        assert made.status_code == 200
        assert problem_of(gateway.http.get("/queue", headers={"Host": "gateway.example"})) == (
            403,
            "open-only-to-this-machine",
        )
        text = create(gateway)
        answers = at_once([lambda: gateway.http.get("/queue").status_code] * 10)
        assert set(answers) == {401}
        url = made.json()["images"][0]["url"]
        assert gateway.http.get(url, headers=bearer(text)).content.startswith(b"\x89PNG")

    def test_streams_that_were_begun_without_a_token_end_with_the_first_one(
        self, stage: Stage, simulator: Simulator
    ) -> None:
        gateway = open_gateway(stage, [simulator])
        gateway.await_ready()
        assert "no token was made yet: every program on this machine is served without one" in gateway.text()
        with EventClient(gateway.url, "/jobs/alice/events") as stream:
            assert stream.next() is not None
            create(gateway)
            stream.rest()
        with EventClient(gateway.url, "/jobs/alice/events") as refused:
            assert refused.status == 401

    def test_an_address_of_others_needs_a_token(self, stage: Stage, simulator: Simulator) -> None:
        gateway = open_gateway(stage, [simulator], SDG_BIND=f"0.0.0.0:{(port := free_port())}")
        assert gateway.wait() == 1
        line = gateway.text().splitlines()[-1]
        assert f"other machines can reach 0.0.0.0:{port}" in line
        assert "sd-gateway tokens create" in line
        create(gateway)
        gateway.launch()
        until(lambda: gateway.alive and listens(port), "it listens", START_SECONDS)
        assert requests.get(f"http://127.0.0.1:{port}/queue", timeout=30).status_code == 401

    def test_an_option_of_gunicorn_counts_too(self, stage: Stage, simulator: Simulator) -> None:
        gateway = open_gateway(stage, [simulator], options=("--bind", f"0.0.0.0:{free_port()}"))
        assert gateway.wait() == 1
        assert "other machines can reach 0.0.0.0" in gateway.text()

    def test_none_says_so_at_each_start(self, stage: Stage, simulator: Simulator) -> None:
        gateway = stage.gateway([simulator], SDG_BIND=f"0.0.0.0:{(port := free_port())}", ready=False, SDG_AUTH="none")
        until(lambda: gateway.alive and listens(port), "it listens", START_SECONDS)
        assert requests.get(f"http://127.0.0.1:{port}/queue", headers={"Host": "x"}, timeout=30).status_code == 200
        assert "SDG_AUTH=none: everybody who reaches this gateway may do everything" in gateway.text()

    def test_over_a_unix_socket_nobody_is_served(self, stage: Stage, simulator: Simulator, tmp_path: Path) -> None:
        path = tmp_path / "g.sock"
        gateway = open_gateway(stage, [simulator], SDG_BIND=f"unix:{path}")
        until(lambda: gateway.alive and path.exists() and "Listening" in gateway.text(), "it listens", START_SECONDS)
        assert stat.S_IMODE(path.stat().st_mode) == 0o770
        assert ask_unix(path, "/queue") == (403, "open-only-to-this-machine")
        assert ask_unix(path, "/livez")[0] == 200
        assert "no token was made yet, so what comes over the Unix socket is refused" in gateway.text()
        create(gateway)
        assert ask_unix(path, "/queue") == (401, "token-missing")


def ask_unix(path: Path, target: str) -> tuple[int, str | None]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body).get("type")


#: As a package leaves it and somebody adds the two lines that every guide shows.
_STOCK = """
daemon off; {user} pid nginx.pid; error_log stderr warn; events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {upstream}; }} }}
}}
"""


#: What nginx does by itself since 1.29.7, in the words of earlier versions.
_HIDDEN = "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_pass"


def stock_nginx(stage: Stage, bind: str, **changes: str) -> str:
    """The URL of such an nginx in front of a gateway at this SDG_BIND; some words of its configuration are changed."""
    port, prefix = free_port(), stage.folder / "stock"
    prefix.mkdir()
    upstream = f"http://{bind}:" if bind.startswith("unix:") else f"http://{bind}"
    configuration = replaced(_STOCK.format(port=port, upstream=upstream, user="user root;"), changes)
    (prefix / "nginx.conf").write_text(configuration)
    command = [str(NGINX), "-p", str(prefix), "-c", str(prefix / "nginx.conf"), "-e", "stderr"]
    nginx = stage.add(Process("stock", command, clean_environ(stage.folder), stage.folder))
    until(lambda: nginx.alive and listens(port), "nginx listens", START_SECONDS)
    return f"http://127.0.0.1:{port}"


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_an_nginx_that_hides_itself_is_not_recognised(stage: Stage, simulator: Simulator) -> None:
    """The documented limit of a gateway without tokens (docs/security.md): since 1.29.7 nginx speaks HTTP/1.1 to a bare
    ``proxy_pass``, names the gateway's own address as Host and adds nothing, so that its clients look like programs on this
    machine. That is why a token must be made before anything is put in front.
    """
    bind = f"127.0.0.1:{free_port()}"
    gateway = open_gateway(stage, [simulator], SDG_BIND=bind)
    until(lambda: gateway.alive and "Listening" in gateway.text(), "it listens", START_SECONDS)
    url = stock_nginx(stage, bind, proxy_pass=_HIDDEN)
    # As somebody elsewhere asks.
    headers = {"Host": "pictures.example"}
    assert requests.get(f"{url}/queue", headers=headers, timeout=30).status_code == 200
    # What gives such a client away all the same is a browser that says whose page it shows.
    answer = requests.get(f"{url}/queue", headers=headers | {"Origin": "http://pictures.example"}, timeout=30)
    assert problem_of(answer) == (403, "open-only-to-this-machine")
    text = create(gateway)
    assert requests.get(f"{url}/queue", headers=headers, timeout=30).status_code == 401
    assert requests.get(f"{url}/queue", headers=headers | bearer(text), timeout=30).status_code == 200


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_what_a_stock_nginx_passes_on_is_refused(stage: Stage, simulator: Simulator, tmp_path: Path, kind: str) -> None:
    bind = f"127.0.0.1:{free_port()}" if kind == "tcp" else f"unix:{tmp_path / 'g.sock'}"
    gateway = open_gateway(stage, [simulator], SDG_BIND=bind)
    until(lambda: gateway.alive and "Listening" in gateway.text(), "it listens", START_SECONDS)
    url = stock_nginx(stage, bind)
    for method, path in (("GET", "/t2ihistory/alice"), ("POST", "/txt2img"), ("GET", "/queue"), ("DELETE", "/nothing")):
        answer = requests.request(method, url + path, json=picture() if method == "POST" else None, timeout=30)
        assert problem_of(answer) == (403, "open-only-to-this-machine"), (method, path)
    assert requests.get(url + "/livez", timeout=30).status_code == 200
    # A token is all that is needed.
    text = create(gateway)
    assert requests.get(url + "/queue", headers=bearer(text), timeout=30).status_code == 200


def test_several_processes_agree_on_one_key(stage: Stage, simulator: Simulator) -> None:
    gateway = open_gateway(stage, [simulator], processes=4)
    until(lambda: listens(gateway.port), "it listens", START_SECONDS)
    folder = Path(gateway.environ["SDG_INSTANCE"])
    key = (folder / "secret-keys").read_text()
    assert re.fullmatch(r"1:[A-Za-z0-9+/]{43}=\n", key)
    assert not list(folder.glob(".secret-keys*"))
    text = create(gateway)
    cookie = gateway.http.request("POST", "/session", json={"token": text}).cookies["sdg_session"]
    answers = at_once([lambda: gateway.http.get("/queue", cookies={"sdg_session": cookie}).status_code] * 20)
    assert set(answers) == {200}
