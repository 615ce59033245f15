"""The requests that are served as long as no token was made: those of programs on this machine, and nothing that a proxy passes on.

A proxy on this machine makes every client look like one of this machine. Most are recognised by what they do to a request: they add
a forwarding header, speak HTTP/1.0 to their upstream, or pass on the public name as Host. One that does none of these is not, such
as nginx 1.29.7 and later with nothing but a ``proxy_pass`` (https://nginx.org/en/CHANGES); docs/security.md says so. A page of
another site in a browser on this machine is recognised by Origin, Sec-Fetch-Site and, where its name was bound to a loopback
address, by Host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from app.runtime.addresses import is_loopback

_PORT: Final = r"(?::[0-9]{1,5})?"
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#: Host exactly as a client on this machine names it, and the Origin of its pages.
_HOST: Final = re.compile(rf"(?:localhost|127(?:\.{_OCTET}){{3}}|\[::1\]){_PORT}", re.ASCII)
_ORIGIN: Final = re.compile(rf"https?://{_HOST.pattern}", re.ASCII)
#: The beginnings of what proxies and delivery networks add, as WSGI names them, each behind a line feed.
_FORWARDED: Final = re.compile(
    r"\n(?:HTTP_FORWARDED|HTTP_X_FORWARDED|HTTP_VIA|HTTP_X_REAL_IP|HTTP_X_CLIENT_IP|HTTP_TRUE_CLIENT_IP"
    r"|HTTP_X_ORIGINAL_|HTTP_X_ENVOY_|HTTP_CF_|HTTP_CDN_LOOP)",
)
_ADVICE: Final = (
    "As long as no token was made, only programs on this machine are served, and {}. "
    "Make a token ('sd-gateway tokens create --name app'), or set SDG_AUTH=none to serve everybody."
)


class OnlyThisMachine(Exception):
    """No token was made, and the request may come from elsewhere."""

    slug = "open-only-to-this-machine"


class Openness:
    """Judges requests as long as no token was made.

    :param listens_to_loopback: whether the server listens to TCP ports of loopback addresses alone.
    :param is_public: whether the gateway has a public URL, so that somebody else is meant to reach it.
    :param origins: of pages that may call the API besides those of this machine.
    """

    def __init__(self, listens_to_loopback: Callable[[], bool], origins: frozenset[str], *, is_public: bool) -> None:
        self._listens_to_loopback = listens_to_loopback
        self._origins = origins
        self._is_public = is_public

    def check(self, environ: Mapping[str, Any]) -> None:
        """Let a request of a program on this machine pass.

        :raises OnlyThisMachine: it may be another one.
        """
        fault = next(self._faults(environ), None)
        if fault is not None:
            raise OnlyThisMachine(_ADVICE.format(fault))

    def _faults(self, environ: Mapping[str, Any]) -> Iterator[str]:
        if self._is_public:
            yield "SDG_PUBLIC_URL says that others are to reach this gateway"
        if not self._listens_to_loopback():
            yield "this gateway listens to a Unix socket or to an address that others reach"
        if not is_loopback(environ.get("REMOTE_ADDR", "")):
            yield "this request comes from another one"
        if environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
            yield "this request is not HTTP/1.1, so a proxy may have passed it on"
        # One search in all names: to look at each of some forty takes three times as long.
        if _FORWARDED.search("\n".join(("", *environ))):
            yield "a proxy has passed this request on"
        if not _HOST.fullmatch(environ.get("HTTP_HOST", "")):
            yield "the Host of this request is neither localhost, 127.x.x.x nor [::1]"
        if self._is_of_foreign_page(environ):
            yield "a page of another site has sent this request"

    def _is_of_foreign_page(self, environ: Mapping[str, Any]) -> bool:
        origin = environ.get("HTTP_ORIGIN")
        if origin in self._origins:
            return False
        foreign = origin is not None and not _ORIGIN.fullmatch(origin)
        return foreign or "cross-site" in environ.get("HTTP_SEC_FETCH_SITE", "")
