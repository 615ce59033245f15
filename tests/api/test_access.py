"""Who may: every path, method and form of a request, judged by a whole gateway with a real database."""

from __future__ import annotations

import base64
import re
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event
from werkzeug.test import TestResponse

from app.api import init_app
from app.api.application import Application
from app.api.http.guard import PUBLIC
from app.gateway import access
from app.gateway.tokens import checksum, id_of
from app.services import Services
from app.simulator import SimulatorServer
from tests.inprocess import FIELDS, Gateway, png_base64, until

NAME = "20261122T061530123-9f2c4e7a"
MEMBERS = {"id": "alice", "type": "txt2img", "name": NAME, "filename": f"{NAME}-1-0.png", "asset": "swagger-ui.css"}
#: Parameters that some endpoint reads, and some that none does.
QUERIES = ("", "?limit=1", "?id=alice", "?size=160", "?sign=3600", "?status=queued", "?token=x&access_token=x", "?%ff")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
CHALLENGE = 'Bearer realm="sd-gateway"'


@pytest.fixture
def gateway(tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> Iterator[Gateway]:
    """A gateway that accepts, and starts nothing."""
    with Gateway(tmp_path, migrated_sqlite, [server.url]) as made:
        yield made


def app_of(services: Services) -> Flask:
    app = Application("app", static_folder=None)
    init_app(app, services)
    return app


@pytest.fixture
def app(gateway: Gateway) -> Flask:
    return app_of(gateway.services)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture(scope="module")
def open_client(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[FlaskClient]:
    """A client of a gateway for which no test makes a token: making an application takes longer than most tests."""
    with Gateway(tmp_path_factory.mktemp("open"), migrated_sqlite, ["http://127.0.0.1:9"]) as made:
        yield app_of(made.services).test_client()


def token(gateway: Gateway, users: tuple[str, ...] = ("*",), scopes: tuple[Any, ...] = ("delete",), **more: Any) -> str:
    made = gateway.services.create_token(
        name="test", users=list(users), scopes=list(scopes), seconds=more.get("seconds")
    )
    return made.text


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def queries(gateway: Gateway) -> list[object]:
    """The uses of the database by requests from now on. Others threads' don't count: the use of a token is noted beside them."""
    asked: list[object] = []
    here = threading.current_thread()

    def note(*args: object) -> None:
        if threading.current_thread() is here:
            asked.append(args)

    event.listen(gateway.services.database.engine, "checkout", note)
    return asked


def body_of(response: TestResponse) -> str:
    """The body of a problem but for the id of its request."""
    return re.sub(r',"request":"[^"]+"', "", response.text)


def problem_of(response: TestResponse) -> tuple[int, str | None]:
    is_problem = response.mimetype == "application/problem+json" and bool(response.data)
    return response.status_code, response.json["type"] if is_problem else None


def paths(app: Flask) -> Iterator[tuple[str, str]]:
    """Every path of the application with the endpoint that it leads to, and some that lead nowhere."""
    for rule in app.url_map.iter_rules():
        adapter = app.url_map.bind("localhost")
        values = {name: MEMBERS[name] for name in rule.arguments}
        yield rule.endpoint, adapter.build(rule.endpoint, values, method=next(iter(rule.methods or ())))
    for path in (
        "/nothing",
        "/t2ihistory/",
        "/t2ihistory/alice/",
        "/jobs/alice/extras/x",
        "/jobs//txt2img",
        "/%ff",
        "/.env",
    ):
        yield "", path


class TestWithoutToken:
    def test_every_path_but_the_public_ones_is_401(self, gateway: Gateway, app: Flask, client: FlaskClient) -> None:
        token(gateway)
        walked = set()
        for endpoint, path in paths(app):
            for method in METHODS:
                # The session of a browser is public with its two methods, and no other path has them both.
                rule_methods = (
                    {m for r in app.url_map.iter_rules(endpoint) for m in r.methods or ()} if endpoint else set()
                )
                for query in QUERIES:
                    response = client.open(path + query, method=method)
                    response.close()
                    walked.add(endpoint)
                    if endpoint in PUBLIC and method in rule_methods:
                        assert response.status_code != 401 or endpoint == "session.create_session", (method, path)
                    elif path != "/session" or method not in ("POST", "DELETE"):
                        assert response.status_code == 401, (method, path, query)
                        assert response.headers["WWW-Authenticate"] == CHALLENGE
        assert {rule.endpoint for rule in app.url_map.iter_rules()} <= walked

    def test_the_public_endpoints_are_those_of_the_design(self, app: Flask) -> None:
        public = {rule.rule for rule in app.url_map.iter_rules() if rule.endpoint in PUBLIC}
        assert public == {"/livez", "/readyz", "/docs", "/docs/start.js", "/docs/<asset>", "/openapi.json", "/session"}
        assert {rule.endpoint for rule in app.url_map.iter_rules() if rule.endpoint in PUBLIC} == PUBLIC

    def test_options_tells_the_methods(self, gateway: Gateway, client: FlaskClient) -> None:
        token(gateway)
        response = client.options("/txt2img")
        assert (response.status_code, set(response.headers["Allow"].split(", "))) == (200, {"OPTIONS", "POST"})

    def test_readiness_tells_no_reasons(self, gateway: Gateway, client: FlaskClient) -> None:
        assert client.get("/readyz").json["reasons"]
        text = token(gateway)
        assert client.get("/readyz").json == {"status": "degraded"}
        assert client.get("/readyz", headers=bearer("sdg_nonsense")).json == {"status": "degraded"}
        assert client.get("/readyz", headers=bearer(text)).json["reasons"]


class TestOfAnotherUser:
    @pytest.mark.parametrize("scopes", [("delete",), ("read",), ("admin",)])
    def test_every_path_with_an_id_is_404_without_a_query(
        self, gateway: Gateway, app: Flask, client: FlaskClient, scopes: tuple[str, ...]
    ) -> None:
        headers = bearer(token(gateway, users=("bob", "alic", "alicea*"), scopes=scopes)) | {"X-Request-ID": "same"}
        client.get("/jobs/bob", headers=headers)
        asked = queries(gateway)
        bodies = set()
        for rule in app.url_map.iter_rules():
            if "id" not in rule.arguments:
                continue
            values = {name: MEMBERS[name] for name in rule.arguments}
            path = app.url_map.bind("localhost").build(rule.endpoint, values, method=next(iter(rule.methods or ())))
            for method in METHODS:
                for query in QUERIES:
                    response = client.open(path + query, method=method, headers=headers)
                    assert response.status_code == 404, (method, path, query)
                    bodies.add(body_of(response))
        for type_ in ("txt2img", "img2img"):
            body = FIELDS | {"id": "alice"} | ({"init_images": png_base64()} if type_ == "img2img" else {})
            response = client.post(f"/{type_}", json=body, headers=headers)
            assert problem_of(response) == (404, "not-found")
            bodies.add(body_of(response))
        assert problem_of(client.get("/queue?id=alice", headers=headers)) == (404, "not-found")
        assert problem_of(client.get("/queue?id=bob&id=alice", headers=headers)) == (404, "not-found")
        assert asked == []
        # The answer is the same whatever was asked for.
        assert len(bodies - {""}) == 1

    def test_it_is_the_same_whether_the_user_exists(self, gateway: Gateway, client: FlaskClient) -> None:
        with gateway.start():
            made = gateway.post()
            user, name, image = made["id"], made["name"], made["images"][0]["filename"]
            paths = [
                f"/t2ihistory/{user}",
                f"/jobs/{user}",
                f"/jobs/{user}/txt2img/{name}",
                f"/get_images/{user}/txt2img/{image}",
            ]
            operator = bearer(token(gateway))
            seen = [client.get(path, headers=operator, buffered=True).status_code for path in paths]
            assert seen == [200] * len(paths)
            headers = bearer(token(gateway, users=("bob",))) | {"X-Request-ID": "same"}
            known = [client.get(path, headers=headers) for path in paths]
            unknown = [client.get(path.replace(f"/{user}", "/nobody"), headers=headers) for path in paths]
            assert {response.status_code for response in (*known, *unknown)} == {404}
            assert len({(body_of(response), *sorted(response.headers)) for response in (*known, *unknown)}) == 1
            assert client.get("/t2ihistory/bob", headers=headers).json == {"records": [], "next": None}

    @pytest.mark.parametrize(
        ("patterns", "user", "seen"),
        [
            (("alice",), "alice", True),
            (("alice",), "Alice", False),
            (("alice",), "alice2", False),
            (("shop-*",), "shop-1", True),
            (("shop-*",), "shop-", True),
            (("shop-*",), "shop", False),
            (("a", "b*"), "bc", True),
            (("灯*",), "灯塔", True),
            (("é",), "e\u0301", False),
            (("*",), "anybody", True),
            (("a*c",), "abc", False),
        ],
    )
    def test_patterns(
        self, gateway: Gateway, client: FlaskClient, patterns: tuple[str, ...], user: str, seen: bool
    ) -> None:
        headers = bearer(token(gateway, users=patterns))
        assert client.get(f"/t2ihistory/{user}", headers=headers).status_code == (200 if seen else 404)


class TestScopes:
    NEEDED = (
        ("GET", "/t2ihistory/alice", "read"),
        ("GET", f"/jobs/alice/txt2img/{NAME}", "read"),
        ("GET", f"/get_args/alice/txt2img/{NAME}", "read"),
        ("GET", "/options", "read"),
        ("GET", "/queue", "read"),
        ("POST", "/txt2img", "generate"),
        ("POST", "/img2img", "generate"),
        ("POST", "/jobs/alice/cancel?status=queued", "generate"),
        ("POST", f"/jobs/alice/txt2img/{NAME}/cancel", "generate"),
        ("DELETE", f"/delete/alice/txt2img/{NAME}", "delete"),
        ("GET", "/webuis", "admin"),
    )

    @pytest.mark.parametrize("scope", ["read", "generate", "delete", "admin"])
    def test_each_includes_the_ones_before_and_admin_is_apart(
        self, gateway: Gateway, client: FlaskClient, scope: str
    ) -> None:
        headers = bearer(token(gateway, scopes=(scope,)))
        order = ["read", "generate", "delete"]
        for method, path, needed in self.NEEDED:
            body = {"json": {"id": "alice"}} if path in ("/txt2img", "/img2img") else {}
            response = client.open(path, method=method, headers=headers, **body)
            allowed = needed == scope or (
                scope in order and needed in order and order.index(needed) <= order.index(scope)
            )
            assert (response.status_code != 403) == allowed, (method, path)
            if not allowed:
                assert problem_of(response) == (403, "scope-missing")
                assert f"scope {needed}," in response.json["detail"]

    def test_the_user_comes_first(self, gateway: Gateway, client: FlaskClient) -> None:
        headers = bearer(token(gateway, users=("bob",), scopes=("read",)))
        assert client.post("/txt2img", json={"id": "alice"}, headers=headers).status_code == 404
        assert client.post("/txt2img", json={"id": "bob"}, headers=headers).status_code == 403
        assert client.delete(f"/delete/alice/txt2img/{NAME}", headers=headers).status_code == 404


def spoilt(text: str) -> str:
    """The same token with another last character."""
    return text[:-1] + ("0" if text[-1] != "0" else "1")


def unknown() -> str:
    text = "sdg_00000000_" + "".join(secrets.choice("abc") for _ in range(32))
    return text + checksum(text)


def with_another_secret(text: str) -> str:
    changed = text[:13] + "".join(secrets.choice("abc") for _ in range(32))
    return changed + checksum(changed)


class TestBadTokens:
    @pytest.mark.parametrize(
        "header",
        [
            lambda text: f"Bearer {spoilt(text)}",
            lambda _: f"Bearer {unknown()}",
            lambda text: f"Bearer {with_another_secret(text)}",
            lambda text: f"Bearer {text}, Bearer {text}",
            lambda text: f"Bearer {text},{text}",
            lambda text: f"Bearer x{text}",
            lambda text: f"Bearer {text.upper()}",
            lambda text: f"Bearer {text}\u00e9",
            lambda text: f"Bearer {text[:-1]}",
            lambda _: "Bearer",
            lambda _: "Bearer ",
            lambda _: "Bearer sdg__",
            lambda _: "Bearer " + "x" * 8000,
        ],
    )
    def test_it_is_invalid_and_nothing_is_told(self, gateway: Gateway, client: FlaskClient, header: Any) -> None:
        text = token(gateway)
        response = client.get("/t2ihistory/alice", headers={"Authorization": header(text)})
        assert problem_of(response) == (401, "token-invalid")
        assert response.headers["WWW-Authenticate"] == CHALLENGE
        assert text not in response.text
        assert client.get("/t2ihistory/alice", headers=bearer(text)).status_code == 200

    @pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "sdg_x", "", "Token x"])
    def test_without_the_scheme_there_is_none(self, gateway: Gateway, client: FlaskClient, header: str) -> None:
        token(gateway)
        assert problem_of(client.get("/queue", headers={"Authorization": header})) == (401, "token-missing")

    @pytest.mark.parametrize("form", ["bearer {}", "BEARER {}", "Bearer  {}", "Bearer {} ", "Bearer {}\t"])
    def test_forms_that_mean_the_same_are_taken(self, gateway: Gateway, client: FlaskClient, form: str) -> None:
        """RFC 9110, sections 5.5 and 11.1: white space around a value is none of it, and schemes have no case."""
        text = token(gateway)
        assert client.get("/queue", headers={"Authorization": form.format(text)}).status_code == 200

    def test_in_the_query_it_is_none(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway)
        for name in ("token", "access_token", "authorization"):
            assert problem_of(client.get(f"/queue?{name}={text}")) == (401, "token-missing")

    def test_a_typing_error_costs_no_query(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway)
        client.get("/queue", headers=bearer(text))
        asked = queries(gateway)
        for wrong in (spoilt(text), text[:20], "sdg_"):
            assert client.get("/queue", headers=bearer(wrong)).status_code == 401
        assert asked == []

    def test_revoked_and_expired(self, gateway: Gateway, client: FlaskClient) -> None:
        text, brief = token(gateway), token(gateway, seconds=3600)
        token_id = id_of(text)
        assert token_id
        assert client.get("/queue", headers=bearer(text)).status_code == 200
        assert gateway.services.revoke_token(token_id)
        assert problem_of(client.get("/queue", headers=bearer(text))) == (401, "token-invalid")
        assert client.get("/queue", headers=bearer(brief)).status_code == 200
        with gateway.services.database.write() as connection:
            connection.exec_driver_sql("UPDATE tokens SET expires_at = 1")
        gateway.services.access.tokens_changed()
        assert problem_of(client.get("/queue", headers=bearer(brief))) == (401, "token-invalid")

    def test_a_revoked_last_token_opens_nothing(self, gateway: Gateway, client: FlaskClient) -> None:
        token_id = id_of(token(gateway))
        assert token_id
        gateway.services.revoke_token(token_id)
        assert problem_of(client.get("/queue")) == (401, "token-missing")

    def test_an_id_alone_is_no_use_of_its_token(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway)
        assert client.get("/queue", headers=bearer(with_another_secret(text))).status_code == 401
        gateway.services.revocation.stop()
        assert gateway.services.token_book.get(id_of(text) or "").used_at is None

    def test_its_use_is_noted_to_the_hour(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway)
        assert client.get("/queue", headers=bearer(text)).status_code == 200
        used = until(lambda: gateway.services.token_book.get(id_of(text) or "").used_at, "its use is noted")
        assert used % 3600 == 0

    def test_rotated(self, gateway: Gateway, client: FlaskClient) -> None:
        old = token(gateway, users=("alice",), scopes=("read",))
        new = gateway.services.rotate_token(id_of(old) or "", 3600).text
        for text in (old, new):
            assert client.get("/t2ihistory/alice", headers=bearer(text)).status_code == 200
            assert client.get("/t2ihistory/bob", headers=bearer(text)).status_code == 404
        with gateway.services.database.read() as connection:
            left = connection.exec_driver_sql("SELECT count(*) FROM tokens WHERE expires_at IS NOT NULL").scalar()
        assert left == 1

    def test_after_twenty_failures_of_an_address_it_is_429(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway)
        for _ in range(access.MOST_FAILURES):
            assert client.get("/queue", headers=bearer("nonsense")).status_code == 401
        response = client.get("/queue", headers=bearer(spoilt(text)))
        assert problem_of(response) == (429, "too-many-failures")
        assert 1 <= int(response.headers["Retry-After"]) <= 72
        # Others are not shut out, neither at this address nor at another one.
        assert client.get("/queue", headers=bearer(text)).status_code == 200
        elsewhere = client.get("/queue", headers=bearer("nonsense"), environ_base={"REMOTE_ADDR": "192.0.2.1"})
        assert elsewhere.status_code == 401
        # Nor does a request without a token count as one.
        assert client.get("/queue").status_code == 401

    def test_one_whose_token_was_revoked_while_it_waited_is_no_guess(
        self, gateway: Gateway, client: FlaskClient
    ) -> None:
        text = token(gateway)
        caller = gateway.services.access.by_text(text, "127.0.0.1")
        gateway.services.revoke_token(id_of(text) or "")
        for _ in range(access.MOST_FAILURES + 1):
            with pytest.raises(access.TokenInvalid):
                gateway.services.access.still(caller)
        assert problem_of(client.get("/queue", headers=bearer("nonsense"))) == (401, "token-invalid")

    def test_where_no_token_can_be_looked_up_nobody_is_served(
        self, gateway: Gateway, client: FlaskClient, tmp_path: Path
    ) -> None:
        headers = bearer(token(gateway))
        (tmp_path / "gateway.db").rename(tmp_path / "elsewhere.db")
        gateway.services.database.engine.dispose()
        gateway.services.access.tokens_changed()
        assert problem_of(client.get("/options", headers=headers)) == (503, "database-unavailable")
        # Whether a token was made is not known either.
        assert problem_of(client.get("/options")) == (503, "database-unavailable")
        assert client.get("/livez").status_code == 200
        # A browser comes back after this, and never after an answer of 503.
        with client.get("/jobs/alice/events", headers=headers) as response:
            assert (response.status_code, response.mimetype) == (200, "text/event-stream")
            assert "event: busy" in response.text
        (tmp_path / "elsewhere.db").rename(tmp_path / "gateway.db")

    def test_valid_tokens_are_looked_up_once_in_a_while(self, gateway: Gateway, client: FlaskClient) -> None:
        headers = bearer(token(gateway, users=("alice",)))
        assert client.get("/nothing", headers=headers).status_code == 404
        asked = queries(gateway)
        for _ in range(20):
            assert client.get("/nothing", headers=headers).status_code == 404
        assert asked == []


class TestOpen:
    """As long as no token was made."""

    @pytest.mark.parametrize(
        "host", ["localhost", "localhost:8000", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8000"]
    )
    def test_programs_on_this_machine_are_served(self, open_client: FlaskClient, host: str) -> None:
        assert open_client.get("/t2ihistory/alice", headers={"Host": host}).status_code == 200
        assert open_client.get("/webuis", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "localhost."},
            {"Host": "127.0.0.1."},
            {"Host": "127.1"},
            {"Host": "::1"},
            {"Host": "[::ffff:127.0.0.1]"},
            {"Host": "localtest.me"},
            {"Host": "localhost.evil.example:8000"},
            {"Host": "127.0.0.1.nip.io"},
            {"Host": "localhost:port"},
            {"Host": "user@localhost"},
            {"Host": "192.168.0.2"},
            {"X-Forwarded-For": "127.0.0.1"},
            {"X-Forwarded-Proto": "http"},
            {"X-Forwarded-Anything": ""},
            {"Forwarded": "for=127.0.0.1"},
            {"X-Real-IP": "127.0.0.1"},
            {"CF-Connecting-IP": "127.0.0.1"},
            {"Via": "1.1 proxy"},
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://localhost.evil.example"},
            {"Origin": "http://localhost:3000/path"},
            {"Origin": "file://"},
            {"Origin": "http://localhost#.evil.example"},
            {"Origin": "http://localhost?.evil.example"},
            {"Origin": "http://["},
            {"Host": "127.999.1.1"},
            {"Sec-Fetch-Site": "cross-site"},
        ],
        ids=str,
    )
    def test_what_may_come_from_elsewhere_is_refused(self, open_client: FlaskClient, headers: dict[str, str]) -> None:
        for method, path in (
            ("GET", "/t2ihistory/alice"),
            ("POST", "/txt2img"),
            ("GET", "/nothing"),
            ("DELETE", "/queue"),
        ):
            response = open_client.open(path, method=method, headers=headers)
            assert problem_of(response) == (403, "open-only-to-this-machine"), (method, path)
            assert "sd-gateway tokens create" in response.json["detail"]
        assert open_client.get("/livez", headers=headers).status_code == 200
        assert open_client.get("/readyz", headers=headers).json == {"status": "degraded"}

    @pytest.mark.parametrize(
        "environ",
        [
            {"SERVER_PROTOCOL": "HTTP/1.0"},
            {"REMOTE_ADDR": "192.0.2.1"},
            {"REMOTE_ADDR": "::ffff:192.0.2.1"},
            {"REMOTE_ADDR": ""},
            {"REMOTE_ADDR": "unix:"},
        ],
        ids=str,
    )
    def test_another_peer_is_refused(self, open_client: FlaskClient, environ: dict[str, str]) -> None:
        response = open_client.get("/t2ihistory/alice", environ_overrides=environ)
        assert problem_of(response) == (403, "open-only-to-this-machine")

    @pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
    def test_loopback_peers(self, open_client: FlaskClient, peer: str) -> None:
        assert open_client.get("/queue", environ_overrides={"REMOTE_ADDR": peer}).status_code == 200

    @pytest.mark.parametrize(
        "origin", ["http://localhost:3000", "http://127.0.0.1", "http://[::1]:5173", "https://localhost"]
    )
    def test_pages_of_this_machine(self, open_client: FlaskClient, origin: str) -> None:
        assert open_client.get("/queue", headers={"Origin": origin, "Sec-Fetch-Site": "same-site"}).status_code == 200

    @pytest.mark.parametrize(
        ("address", "served"),
        [
            (("127.0.0.1", 8000), True),
            (("::1", 8000, 0, 0), True),
            (("0.0.0.0", 8000), False),
            (("192.168.0.2", 8000), False),
            ("/run/gateway.sock", False),
            (b"\0abstract", False),
        ],
    )
    def test_every_listener_must_be_a_loopback_port(
        self, gateway: Gateway, client: FlaskClient, address: Any, served: bool
    ) -> None:
        gateway.services.listens_at([("127.0.0.1", 8000), address])
        assert client.get("/queue").status_code == (200 if served else 403)

    def test_with_a_public_url_nobody_is_served(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer
    ) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url], public_url="https://x.example") as gateway:
            assert problem_of(app_of(gateway.services).test_client().get("/queue")) == (
                403,
                "open-only-to-this-machine",
            )

    def test_pages_of_configured_origins(self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url], cors_origins="https://a.example") as gateway:
            client = app_of(gateway.services).test_client()
            headers = {"Origin": "https://a.example", "Sec-Fetch-Site": "cross-site"}
            assert client.get("/queue", headers=headers).status_code == 200
            assert client.get("/queue", headers={"Origin": "https://b.example"}).status_code == 403

    def test_none_opens_it_to_everybody(self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url], auth="none") as gateway:
            client = app_of(gateway.services).test_client()
            headers = {"Host": "x.example", "Via": "1.0 proxy"}
            response = client.get("/queue", headers=headers, environ_overrides={"REMOTE_ADDR": "192.0.2.1"})
            assert response.status_code == 200

    def test_the_first_token_closes_it_at_once(self, gateway: Gateway, client: FlaskClient) -> None:
        assert client.get("/queue").status_code == 200
        token(gateway)
        assert problem_of(client.get("/queue")) == (401, "token-missing")


class TestProxies:
    """Whose failures are counted, and what scheme a cookie is for."""

    def asked(self, client: FlaskClient, peer: str, forwarded: str) -> int:
        """The status of a request with a bad token."""
        headers = bearer("nonsense") | {"X-Forwarded-For": forwarded}
        return client.get("/queue", headers=headers, environ_overrides={"REMOTE_ADDR": peer}).status_code

    @pytest.mark.parametrize(
        ("trusted", "peer", "counted"),
        [
            ("", "127.0.0.1", "127.0.0.1"),
            ("10.0.0.0/8", "10.1.2.3", "192.0.2.9"),
            ("10.0.0.0/8", "11.1.2.3", "11.1.2.3"),
            ("127.0.0.1,::1", "::ffff:127.0.0.1", "192.0.2.9"),
            ("unix", "", "192.0.2.9"),
            ("127.0.0.1", "", ""),
        ],
    )
    def test_forwarding_headers_are_believed_from_trusted_proxies_alone(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer, trusted: str, peer: str, counted: str
    ) -> None:
        with Gateway(tmp_path, migrated_sqlite, [server.url], trusted_proxies=trusted) as gateway:
            token(gateway)
            client = app_of(gateway.services).test_client()
            for _ in range(access.MOST_FAILURES):
                assert self.asked(client, peer, "203.0.113.7, 192.0.2.9") == 401
            for address in ("192.0.2.9", "203.0.113.7"):
                assert self.asked(client, address, "") == (429 if address == counted else 401)
            # The peer for itself: from a proxy that is believed this is another address.
            assert self.asked(client, peer, "198.51.100.1") == (429 if peer == counted else 401)


class TestSession:
    def begin(self, client: FlaskClient, text: str, **headers: str) -> TestResponse:
        return client.post("/session", json={"token": text}, headers=headers)

    def test_the_cookie_stands_for_the_token(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway, users=("alice",), scopes=("read",))
        response = self.begin(client, text)
        assert response.json == {"users": ["alice"], "scopes": ["read"], "seconds": 43200}
        cookie = response.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        assert text not in cookie
        assert client.get("/t2ihistory/alice").status_code == 200
        assert client.get("/t2ihistory/bob").status_code == 404
        assert client.delete("/session").status_code == 204
        assert client.get("/t2ihistory/alice").status_code == 401

    def test_over_https_it_is_secure(self, gateway: Gateway, client: FlaskClient) -> None:
        response = client.post("/session", json={"token": token(gateway)}, base_url="https://localhost")
        assert "Secure" in response.headers["Set-Cookie"].split("; ")

    @pytest.mark.parametrize("body", [{"token": "nonsense"}, {"token": ""}, {"token": "sdg_00000000_" + "0" * 38}])
    def test_a_bad_token_begins_none(self, gateway: Gateway, client: FlaskClient, body: dict[str, str]) -> None:
        token(gateway)
        response = client.post("/session", json=body)
        assert problem_of(response) == (401, "token-invalid")
        assert "Set-Cookie" not in response.headers

    @pytest.mark.parametrize("body", [{}, {"token": None}, {"token": 1}, {"token": "x", "more": 1}, []])
    def test_a_bad_body(self, gateway: Gateway, client: FlaskClient, body: Any) -> None:
        assert problem_of(client.post("/session", json=body)) == (422, "validation-failed")

    def test_revoked_it_is_worth_nothing(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway)
        self.begin(client, text)
        gateway.services.revoke_token(id_of(text) or "")
        assert problem_of(client.get("/queue")) == (401, "token-invalid")

    def test_signed_by_another_key(
        self, tmp_path: Path, gateway: Gateway, client: FlaskClient, migrated_sqlite: Path, server: SimulatorServer
    ) -> None:
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        folder = tmp_path / "other"
        folder.mkdir()
        text = token(gateway)
        with Gateway(folder, migrated_sqlite, [server.url], secret_keys=f"1:{key}") as other:
            cookie = other.services.signing.session(id_of(text) or "")
        client.set_cookie("sdg_session", cookie)
        assert problem_of(client.get("/queue")) == (401, "token-invalid")
        for garbage in ("", "x", "a.b.c", "ä", "x" * 4000):
            client.set_cookie("sdg_session", garbage)
            assert client.get("/queue").status_code == 401

    @pytest.mark.parametrize(
        ("headers", "taken"),
        [
            ({"Sec-Fetch-Site": "same-origin"}, True),
            ({"Sec-Fetch-Site": "same-site"}, False),
            ({"Sec-Fetch-Site": "cross-site"}, False),
            ({"Sec-Fetch-Site": "none"}, False),
            ({"Origin": "http://localhost"}, True),
            ({"Origin": "http://evil.example"}, False),
            ({"Origin": "null"}, False),
            ({"Origin": ""}, False),
            ({"Origin": "http://["}, False),
            ({"Origin": "http://localhost.evil.example"}, False),
            ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, False),
            ({}, False),
        ],
        ids=str,
    )
    def test_what_changes_something_must_come_from_our_own_page(
        self, gateway: Gateway, client: FlaskClient, headers: dict[str, str], taken: bool
    ) -> None:
        self.begin(client, token(gateway))
        response = client.post("/jobs/alice/cancel?status=queued", headers=headers)
        assert problem_of(response) == ((200, None) if taken else (403, "cross-site-request"))

    def test_a_body_of_this_size_is_no_token(self, gateway: Gateway, client: FlaskClient) -> None:
        response = client.post("/session", json={"token": "x" * 5000})
        assert problem_of(response) == (413, "body-too-large")
        assert "4 KiB" in response.json["detail"]

    def test_another_site_reads_nothing(self, gateway: Gateway, client: FlaskClient) -> None:
        text = token(gateway)
        self.begin(client, text)
        response = client.get("/queue", headers={"Sec-Fetch-Site": "cross-site"})
        assert problem_of(response) == (403, "cross-site-request")
        # A token is no cookie: no browser adds it by itself.
        assert client.get("/queue", headers=bearer(text) | {"Sec-Fetch-Site": "cross-site"}).status_code == 200

    def test_a_bad_token_is_not_replaced_by_the_cookie(self, gateway: Gateway, client: FlaskClient) -> None:
        self.begin(client, token(gateway))
        assert client.get("/queue", headers=bearer("nonsense")).status_code == 401


class TestQueue:
    def test_names_are_the_users_own_unless_an_admin_asks(self, gateway: Gateway, client: FlaskClient) -> None:
        with gateway.start():
            gateway.services.tables.queue.pause()
            for user in ("alice", "bob"):
                gateway.accept(id=user)
            mine = bearer(token(gateway, users=("alice",), scopes=("read",)))
            admin = bearer(token(gateway, scopes=("read", "admin")))
            named = {
                who: [entry.get("id") for entry in client.get(path, headers=headers).json["waiting"]]
                for who, path, headers in (
                    ("nobody", "/queue", mine),
                    ("alice", "/queue?id=alice", mine),
                    ("admin", "/queue", admin),
                )
            }
        assert named == {"nobody": [None, None], "alice": ["alice", None], "admin": ["alice", "bob"]}
