"""The address and the scheme of a client behind a proxy: believed from the proxies of ``SDG_TRUSTED_PROXIES`` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.middleware.proxy_fix import ProxyFix

from app.config import TrustedProxies

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def trust_forwarded_headers(application: _Application, trusted: TrustedProxies) -> _Application:
    """A WSGI application that takes client address and scheme from X-Forwarded-For and -Proto of these proxies.

    Of several values the last one counts, which is the proxy's own; what stands before it may be the client's invention.
    """
    if trusted == TrustedProxies():
        return application
    fixed = ProxyFix(application, x_for=1, x_proto=1)

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        chosen = fixed if environ.get("REMOTE_ADDR", "") in trusted else application
        return chosen(environ, start_response)

    return call
