"""Signing of URLs that a client names: of pictures and of event streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode

from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from app.api.http import guard, sign_query
from app.api.http.paths import check_values
from app.api.http.refusals import RefusalError, ValidationFailed
from app.gateway.signing import LONGEST_STREAM, Signature, SignedPicture, SignedStream, Signing
from app.problems import shown

_NO_URL: Final = "Must be the path of a picture or of an event stream, as the gateway gives it."


class UrlSigner:
    """Signs URLs.

    :param adapter: of the application, by which paths are read.
    :param check_picture: raises ValidationFailed for the query of a picture that nobody could ask for.
    """

    def __init__(
        self, signing: Signing, adapter: MapAdapter, check_picture: Callable[[Mapping[str, str]], object]
    ) -> None:
        self._signing = signing
        self._adapter = adapter
        self._check_picture = check_picture

    def sign(self, urls: Sequence[str], seconds: int, prefixes: Sequence[str]) -> list[str]:
        """These URLs, signed, in the same order. A signature that one has already is replaced.

        :param prefixes: what may stand before a path: the public URL, the path that a proxy has mounted the gateway under.
        :raises ValidationFailed: one is no URL of a picture or of a stream.
        :raises NotFound: one is of a user for whom the caller may not act.
        :raises NoSigningKey: there is no key.
        """
        return [self._sign(url, seconds, prefixes) for url in urls]

    def _sign(self, url: str, seconds: int, prefixes: Sequence[str]) -> str:
        prefix = next((prefix for prefix in prefixes if prefix and url.startswith(f"{prefix}/")), "")
        path, _, query = url.removeprefix(prefix).partition("?")
        given = [
            (name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in Signature._fields
        ]
        signed = self._read(path, given, url)
        if isinstance(signed, SignedStream) and seconds > LONGEST_STREAM:
            message = f"Event streams are signed for at most {LONGEST_STREAM} seconds: {shown(url)}"
            raise ValidationFailed({"seconds": [message]})
        signature = self._signing.sign(signed, seconds).query
        return f"{prefix}{path}?" + "&".join(filter(None, [urlencode(given), signature]))

    def _read(self, path: str, given: Sequence[tuple[str, str]], url: str) -> SignedPicture | SignedStream:
        """What a path stands for."""
        endpoint, values = _route(path, self._adapter)
        kind = guard.signed_kind(endpoint)
        query = dict(given)
        if kind is None or len(query) != len(given) or not guard.signed_query(kind).issuperset(query):
            raise _refusal(url)
        guard.check_user(values["id"])
        try:
            check_values(dict(values))
            if kind is SignedPicture:
                self._check_picture(query)
            elif sign_query.NAME in query:
                sign_query.parse(query[sign_query.NAME])
        except RefusalError as error:
            raise _refusal(url, str(error)) from error
        return guard.signed(kind, values, query)


def _route(path: str, adapter: MapAdapter) -> tuple[str, Mapping[str, Any]]:
    """The endpoint of a path and its members; nothing for a path that is none."""
    if "%2f" in path.lower() or not path.startswith("/") or path.startswith("//"):
        return "", {}
    try:
        endpoint, values = adapter.match(unquote(path, errors="strict"), method="GET")
    except (HTTPException, UnicodeDecodeError):
        return "", {}
    return endpoint, values


def _refusal(url: str, why: str = _NO_URL) -> ValidationFailed:
    return ValidationFailed({"paths": [f"{shown(url)}: {why}"]})
