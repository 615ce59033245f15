"""Signed URLs of pictures and streams, over a whole gateway."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from flask.testing import FlaskClient

from app.gateway import signing as signing_module
from app.gateway.signing import SignedPicture, SignedStream, Signing
from app.simulator import SimulatorServer
from tests.api.test_access import app_of, bearer, problem_of, token
from tests.inprocess import FIELDS, Gateway, simulator

#: Characters that a path holds encoded, and that proxies like to encode in their own way.
USER = "u 1灯~+&"
NAME = "20261122T061530123-9f2c4e7a"


@pytest.fixture
def gateway(tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> Iterator[Gateway]:
    with Gateway(tmp_path, migrated_sqlite, [server.url]) as made:
        yield made.start()


@pytest.fixture
def job(gateway: Gateway) -> dict[str, Any]:
    return gateway.post(id=USER)


@pytest.fixture
def headers(gateway: Gateway, job: dict[str, Any]) -> dict[str, str]:
    return bearer(token(gateway, users=(USER,), scopes=("read",)))


@pytest.fixture
def client(gateway: Gateway) -> FlaskClient:
    return app_of(gateway.services).test_client()


@pytest.fixture
def picture(client: FlaskClient, headers: dict[str, str]) -> str:
    """The signed URL of a picture."""
    page = client.get(f"/t2ihistory/{quote(USER)}?sign=3600", headers=headers).json
    url: str = page["records"][0]["images"][0]["url"]
    return url


class Shared(NamedTuple):
    """A gateway with a picture and a token, of which tests read alone."""

    gateway: Gateway
    client: FlaskClient
    job: dict[str, Any]
    headers: dict[str, str]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Shared]:
    with simulator() as server, Gateway(tmp_path_factory.mktemp("shared"), migrated_sqlite, [server.url]) as gateway:
        job = gateway.start().post(id=USER)
        headers = bearer(token(gateway, users=(USER,), scopes=("read",)))
        yield Shared(gateway, app_of(gateway.services).test_client(), job, headers)


def changed(url: str, **parts: str) -> str:
    """The URL with some of its parameters changed, or added."""
    path, _, query = url.partition("?")
    values = dict(pair.split("=", 1) for pair in query.split("&")) | parts
    return path + "?" + "&".join(f"{name}={value}" for name, value in values.items())


def status(client: FlaskClient, url: str, method: str = "GET", **options: Any) -> tuple[int, str | None]:
    with client.open(url, method=method, **options) as response:
        return problem_of(response)


class TestPictures:
    def test_the_url_needs_no_token(self, client: FlaskClient, picture: str) -> None:
        assert status(client, picture.partition("?")[0]) == (401, "token-missing")
        with client.get(picture) as response:
            assert response.data.startswith(b"\x89PNG")
            assert response.headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
            kept = re.fullmatch(r"private, max-age=(\d+)", response.headers["Cache-Control"])
            assert kept
            assert 3500 < int(kept[1]) <= 3600 * 1.25
            assert 0 < int(response.headers["X-Accel-Expires"]) <= 60
            etag = response.headers["ETag"]
        assert status(client, picture, "HEAD") == (200, None)
        assert status(client, picture, headers={"If-None-Match": etag}) == (304, None)
        assert status(client, picture, headers={"Range": "bytes=0-3"}) == (206, None)

    def test_the_thumbnail_too(self, client: FlaskClient, headers: dict[str, str], job: dict[str, Any]) -> None:
        paths = [f"/jobs/{quote(USER)}?sign=60", f"/jobs/{quote(USER)}/txt2img/{job['name']}?sign=60"]
        for path in paths:
            answer = client.get(path, headers=headers).json
            shown = answer["jobs"][0] if "jobs" in answer else answer
            with client.get(shown["images"][0]["thumbnail_url"]) as response:
                assert response.mimetype == "image/webp"
        # Its signature is not that of the picture.
        assert status(client, shown["images"][0]["thumbnail_url"].replace("size=160", "size=320")) == (
            403,
            "bad-signature",
        )

    def test_the_next_page_is_signed_too(self, gateway: Gateway, client: FlaskClient, headers: dict[str, str]) -> None:
        gateway.post(id=USER)
        page = client.get(f"/t2ihistory/{quote(USER)}?limit=1&sign=60", headers=headers).json
        following = client.get(page["next"], headers=headers).json
        assert "sig=" in following["records"][0]["images"][0]["url"]

    def test_a_post_answers_with_signed_urls(self, gateway: Gateway, client: FlaskClient) -> None:
        made = client.post("/txt2img?sign=600", json=FIELDS | {"id": USER}, headers=bearer(token(gateway))).json
        assert status(client, made["images"][0]["url"]) == (200, None)

    @pytest.mark.parametrize("value", ["59", "604801", "0", "-1", "1h", "", "60&sign=60", "6e2", "٦٠"])
    def test_a_wrong_lifetime(self, gateway: Gateway, client: FlaskClient, headers: dict[str, str], value: str) -> None:
        for path in (f"/t2ihistory/{quote(USER)}", f"/jobs/{quote(USER)}"):
            assert status(client, f"{path}?sign={value}", headers=headers) == (422, "validation-failed")
        with gateway.services.database.read() as connection:
            before = connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar()
            answer = client.post(f"/txt2img?sign={value}", json=FIELDS | {"id": USER}, headers=bearer(token(gateway)))
            assert problem_of(answer) == (422, "validation-failed")
            assert connection.exec_driver_sql("SELECT count(*) FROM jobs").scalar() == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda url: changed(url, exp=str(int(parse_qs(urlsplit(url).query)["exp"][0]) + 1)),
            lambda url: changed(url, exp="99999999999"),
            lambda url: changed(url, exp="9" * 5000),
            lambda url: changed(url, exp=""),
            lambda url: changed(url, exp="-1"),
            lambda url: changed(url, exp="1e9"),
            lambda url: changed(url, kid="2"),
            lambda url: changed(url, kid=""),
            lambda url: changed(url, sig=""),
            lambda url: changed(url, sig="x"),
            lambda url: changed(url, sig="%00%ff"),
            lambda url: changed(url, sig="灯"),
            lambda url: changed(url, sig=parse_qs(urlsplit(url).query)["sig"][0] + "x"),
            lambda url: changed(url, sig=parse_qs(urlsplit(url).query)["sig"][0] + "="),
            lambda url: changed(url, sig="*" + parse_qs(urlsplit(url).query)["sig"][0]),
            lambda url: changed(url, size="160"),
            lambda url: changed(url, format="webp"),
            lambda url: changed(url, download="true"),
            lambda url: changed(url, more="x"),
            lambda url: url + "&exp=99999999999",
            lambda url: url.replace("exp=", "exp=99999999999&exp=", 1),
            lambda url: url + "&" + url.partition("?")[2],
            lambda url: re.sub(r"&kid=[^&]*", "", url),
            lambda url: re.sub(r"exp=[^&]*&", "", url),
            lambda url: url.replace("-1-0.png", "-1-1.png"),
            lambda url: url.replace("txt2img", "img2img"),
            lambda url: url.replace("/get_images/", "/get_images/x"),
            lambda url: url.replace("-0.png", "-00.png"),
        ],
    )
    def test_nothing_of_it_can_be_changed(self, shared: Shared, change: Any) -> None:
        client, headers = shared.client, shared.headers
        page = client.get(f"/t2ihistory/{quote(USER)}?sign=3600", headers=headers).json
        picture = page["records"][0]["images"][0]["url"]
        assert status(client, change(picture)) == (403, "bad-signature")
        assert status(client, change(picture), "HEAD")[0] == 403
        # Nor is a token looked at, where there is a signature.
        assert status(client, change(picture), headers=headers)[0] == 403
        assert status(client, picture) == (200, None)

    def test_it_is_worth_nothing_elsewhere(self, client: FlaskClient, picture: str, job: dict[str, Any]) -> None:
        query = "?" + picture.partition("?")[2]
        for path in (
            f"/get_args/{quote(USER)}/txt2img/{job['images'][0]['filename']}",
            f"/jobs/{quote(USER)}/txt2img/{job['name']}",
            f"/t2ihistory/{quote(USER)}",
            "/queue",
            "/nothing",
        ):
            assert status(client, path + query) == (401, "token-missing")
        assert status(client, f"/jobs/{quote(USER)}/events{query}") == (403, "bad-signature")
        for method in ("POST", "DELETE", "PUT"):
            assert status(client, picture, method) == (401, "token-missing")

    def test_it_expires(self, gateway: Gateway, client: FlaskClient, job: dict[str, Any]) -> None:
        token(gateway)
        signing = gateway.services.signing
        picture = SignedPicture(USER, "txt2img", job["images"][0]["filename"])
        path = f"/get_images/{quote(USER)}/txt2img/{picture.filename}"
        # As it was signed long ago: with the key, only its end is another.
        end = int(time.time()) - 1
        query = f"exp={end}&kid=1&sig={signing._signature(picture, end, '1')}"
        assert status(client, f"{path}?{query}") == (403, "url-expired")

    def test_it_stays_valid_when_the_token_is_revoked(
        self, gateway: Gateway, client: FlaskClient, picture: str
    ) -> None:
        for known in gateway.services.token_book.all():
            gateway.services.revoke_token(known.id)
        assert status(client, picture) == (200, None)

    def test_a_deleted_picture_is_gone(
        self, gateway: Gateway, client: FlaskClient, picture: str, job: dict[str, Any]
    ) -> None:
        gateway.services.archive.delete(USER, "txt2img", job["name"])
        assert status(client, picture) == (404, "job-not-found")

    def test_while_open_a_signature_is_judged_too(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer
    ) -> None:
        folder = tmp_path / "open"
        folder.mkdir()
        with Gateway(folder, migrated_sqlite, [server.url]).start() as gateway:
            job = gateway.post(id=USER)
            client = app_of(gateway.services).test_client()
            url = client.get(f"/jobs/{quote(USER)}/txt2img/{job['name']}?sign=60").json["images"][0]["url"]
            assert status(client, url, headers={"Host": "elsewhere.example"}) == (200, None)
            assert status(client, changed(url, exp="99999999999")) == (403, "bad-signature")


class TestSigning:
    KEYS: ClassVar = {"old": bytes(32), "new": bytes(range(32))}

    def test_listings_that_are_close_hold_the_same_url(self, monkeypatch: pytest.MonkeyPatch) -> None:
        signing, picture = Signing(self.KEYS), SignedPicture("u", "txt2img", "x.png")
        found = set()
        for second in range(0, 900, 90):
            monkeypatch.setattr(signing_module.time, "time", lambda second=second: 1_764_000_000.0 + second)
            signature = signing.sign(picture, 3600)
            assert 3600 <= signature.exp - (1_764_000_000 + second) <= 4500
            found.add(signature.query)
        assert len(found) <= 2

    def test_the_last_key_signs_and_all_verify(self) -> None:
        picture = SignedPicture("u", "txt2img", "x.png")
        old = Signing({"old": self.KEYS["old"]}).sign(picture, 60)
        both = Signing(self.KEYS)
        assert both.check(picture, str(old.exp), old.kid, old.sig) == old.exp
        new = both.sign(picture, 60)
        assert new.kid == "new"
        with pytest.raises(signing_module.BadSignature):
            Signing({"old": self.KEYS["old"]}).check(picture, str(new.exp), new.kid, new.sig)

    def test_parts_can_not_be_shifted(self) -> None:
        signing = Signing(self.KEYS)
        made = signing.sign(SignedPicture("a", "b", "c", None, "1"), 60)
        for other in (
            SignedPicture("a", "b", "c", "1"),
            SignedPicture("ab", "", "c", None, "1"),
            SignedStream("a", "b", "c"),
        ):
            with pytest.raises(signing_module.BadSignature):
                signing.check(other, str(made.exp), made.kid, made.sig)


class TestEndpoint:
    @pytest.fixture
    def gateway(self, shared: Shared) -> Gateway:
        return shared.gateway

    @pytest.fixture
    def client(self, shared: Shared) -> FlaskClient:
        return shared.client

    @pytest.fixture
    def job(self, shared: Shared) -> dict[str, Any]:
        return shared.job

    @pytest.fixture
    def headers(self, shared: Shared) -> dict[str, str]:
        return shared.headers

    def sign(self, client: FlaskClient, headers: dict[str, str], paths: list[Any], seconds: Any = 600) -> Any:
        return client.post("/sign", json={"paths": paths, "seconds": seconds}, headers=headers)

    def test_each_in_its_order(self, client: FlaskClient, headers: dict[str, str], job: dict[str, Any]) -> None:
        user, filename = quote(USER), job["images"][0]["filename"]
        paths = [
            f"/get_images/{user}/txt2img/{filename}",
            f"/get_images/{user}/txt2img/{filename}?size=320",
            f"/get_images/{quote(USER, safe='~+&')}/txt2img/{filename}?format=jpeg&download=true",
            f"/jobs/{user}/txt2img/{job['name']}/events",
        ]
        urls = self.sign(client, headers, paths).json["urls"]
        assert [url.partition("exp=")[0].rstrip("?&") for url in urls] == paths
        for url in urls:
            assert status(client, url) == (200, None)
        # Signing them again replaces what they had.
        assert self.sign(client, headers, urls).json["urls"][1].count("sig=") == 1

    def test_with_a_public_url(self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer) -> None:
        folder = tmp_path / "public"
        folder.mkdir()
        with Gateway(folder, migrated_sqlite, [server.url], public_url="https://x.example/sd").start() as gateway:
            job = gateway.post(id=USER)
            client, headers = app_of(gateway.services).test_client(), bearer(token(gateway))
            url = client.get(f"/jobs/{quote(USER)}/txt2img/{job['name']}", headers=headers).json["images"][0]["url"]
            [signed] = self.sign(client, headers, [url]).json["urls"]
            assert signed.startswith(url + "?exp=")
            assert status(client, signed.removeprefix("https://x.example/sd")) == (200, None)

    @pytest.mark.parametrize(
        "path",
        [
            "",
            "/",
            "get_images/u/txt2img/x",
            "/queue",
            "/t2ihistory/{user}",
            "/get_args/{user}/txt2img/{name}-1-0.png",
            "/get_images/{user}/txt2img/..",
            "/get_images/{user}/txt2img/x.png",
            "/get_images/{user}/extras/{name}-1-0.png",
            "/get_images/{user}/txt2img/{name}-1-0.png?size=1",
            "/get_images/{user}/txt2img/{name}-1-0.png?size=99999",
            "/get_images/{user}/txt2img/{name}-1-0.png?format=svg",
            "/get_images/{user}/txt2img/{name}-1-0.png?size=160&size=160",
            "/get_images/{user}/txt2img/{name}-1-0.png?more=1",
            "/get_images/{user}%2Fx/txt2img/{name}-1-0.png",
            "/get_images/{user}/txt2img/{name}-1-0.png/",
            "//get_images/{user}/txt2img/{name}-1-0.png",
            "https://evil.example/get_images/{user}/txt2img/{name}-1-0.png",
            "/get_images/%ff/txt2img/{name}-1-0.png",
            "/jobs/{user}/txt2img/{name}",
            "/jobs/{user}/txt2img/{name}/events?sign=1",
        ],
    )
    def test_what_is_none_of_ours(self, client: FlaskClient, headers: dict[str, str], path: str) -> None:
        answer = self.sign(client, headers, [path.format(user=quote(USER), name=NAME)])
        assert problem_of(answer) == (422, "validation-failed")
        assert list(answer.json["errors"]) == ["paths"]

    def test_of_another_user(self, client: FlaskClient, headers: dict[str, str]) -> None:
        own = f"/get_images/{quote(USER)}/txt2img/{NAME}-1-0.png"
        for other in (f"/get_images/bob/txt2img/{NAME}-1-0.png", "/jobs/bob/events", f"/get_images/bob/x/{NAME}"):
            assert problem_of(self.sign(client, headers, [own, other])) == (404, "not-found")

    @pytest.mark.parametrize("seconds", [59, 604801, "600", None, 60.5, True])
    def test_bad_seconds(self, client: FlaskClient, headers: dict[str, str], seconds: Any) -> None:
        assert problem_of(self.sign(client, headers, [], seconds)) == (422, "validation-failed")

    def test_bounds(self, client: FlaskClient, headers: dict[str, str]) -> None:
        path = f"/get_images/{quote(USER)}/txt2img/{NAME}-1-0.png"
        assert len(self.sign(client, headers, [path] * 500, 604_800).json["urls"]) == 500
        assert self.sign(client, headers, [], 60).json == {"urls": []}
        assert problem_of(self.sign(client, headers, [path] * 501)) == (422, "validation-failed")
        assert problem_of(self.sign(client, headers, [path + "?" + "x" * 2000])) == (422, "validation-failed")
        assert problem_of(self.sign(client, headers, [f"/jobs/{quote(USER)}/events"], 3601)) == (
            422,
            "validation-failed",
        )
        stream = self.sign(client, headers, [f"/jobs/{quote(USER)}/events"], 3600).json["urls"][0]
        assert int(parse_qs(urlsplit(stream).query)["exp"][0]) <= time.time() + 3600

    def test_the_scope_read_is_enough(self, gateway: Gateway, client: FlaskClient) -> None:
        assert problem_of(self.sign(client, bearer(token(gateway, scopes=("admin",))), [])) == (403, "scope-missing")
        assert self.sign(client, bearer(token(gateway, scopes=("read",))), []).status_code == 200

    def test_without_a_key_it_says_so(self, gateway: Gateway, headers: dict[str, str]) -> None:
        services = dataclasses.replace(gateway.services, signing=Signing({}))
        client = app_of(services).test_client()
        path = f"/get_images/{quote(USER)}/txt2img/{NAME}-1-0.png"
        assert problem_of(self.sign(client, headers, [path])) == (503, "no-signing-key")
        assert status(client, f"/t2ihistory/{quote(USER)}?sign=60", headers=headers) == (503, "no-signing-key")
        assert status(client, f"/t2ihistory/{quote(USER)}", headers=headers) == (200, None)
        assert problem_of(client.post("/session", json={"token": token(gateway)})) == (503, "no-signing-key")

    def test_with_an_empty_file_of_keys_the_log_says_why(
        self, tmp_path: Path, migrated_sqlite: Path, server: SimulatorServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = tmp_path / "empty"
        (folder / "instance").mkdir(parents=True)
        (folder / "instance" / "secret-keys").touch()
        with Gateway(folder, migrated_sqlite, [server.url]) as gateway:
            client = app_of(gateway.services).test_client()
            assert problem_of(self.sign(client, {}, [])) == (200, None)
            path = f"/get_images/{quote(USER)}/txt2img/{NAME}-1-0.png"
            assert problem_of(self.sign(client, {}, [path])) == (503, "no-signing-key")
        [line] = [record.getMessage() for record in caplog.records if "no URL can be signed" in record.getMessage()]
        assert "secret-keys: it is empty." in line


class TestStreams:
    def test_it_ends_with_its_url(
        self, gateway: Gateway, client: FlaskClient, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a second instead of in an hour: nothing else is changed."""
        [url] = client.post(
            "/sign", json={"paths": [f"/jobs/{quote(USER)}/events?sign=60"], "seconds": 60}, headers=headers
        ).json["urls"]
        signing, stream = gateway.services.signing, SignedStream(USER, None, None, "60")
        end = int(time.time()) + 2
        brief = changed(url, exp=str(end), sig=signing._signature(stream, end, "1"))
        began = time.monotonic()
        with client.get(brief) as response:
            gateway.accept(id=USER)
            body = b"".join(response.response)
        assert 0.5 < time.monotonic() - began < 20
        assert b"event: snapshot" in body
        assert status(client, brief) == (403, "url-expired")

    def test_its_pictures_are_signed_too(self, gateway: Gateway, client: FlaskClient, headers: dict[str, str]) -> None:
        job = gateway.post(id=USER)
        path = f"/jobs/{quote(USER)}/txt2img/{job['name']}/events"
        [url] = client.post("/sign", json={"paths": [f"{path}?sign=60"], "seconds": 60}, headers=headers).json["urls"]
        with client.get(url) as response:
            found = re.search(r'"url":"(/get_images/[^"]+sig=[^"]+)"', response.text)
        assert found
        assert status(client, found[1]) == (200, None)
        assert status(client, url.replace("sign=60", "sign=600")) == (403, "bad-signature")
