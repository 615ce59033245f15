"""Addresses of WebUIs: the slot key that all spellings of one address share. Nothing here asks a name server."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import SplitResult, unquote, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LOCALHOST = "localhost"


def slot_key(url: str, host_id: str) -> str:
    """The key of a WebUI's slot: scheme, host, port and path of its URL, without credentials.

    Numeric hosts are compared by their value (``127.1`` is ``127.0.0.1``), names in lower case without a trailing dot. A loopback
    or unspecified address is this host, so ``host_id`` stands for it: the one of another machine is another WebUI.
    A key is its own key.

    :raises ValueError: the port is no number from 0 to 65535, or brackets hold no IPv6 address.
    """
    parts = urlsplit(url)
    host = _host(host_of(parts), host_id)
    host = f"[{host}]" if ":" in host else host
    port = parts.port if parts.port is not None else _DEFAULT_PORTS[parts.scheme]
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def host_of(parts: SplitResult) -> str:
    """The host of an address, without brackets and percent encoding."""
    return unquote(parts.hostname or "")


def with_plain_host(url: str) -> str:
    """The same URL with a host that connects: percent encoding, which URLs allow there, is taken out."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    # In brackets it is the zone of an IPv6 address (RFC 6874), which keeps its encoding.
    return url if host.startswith("[") else parts._replace(netloc=userinfo + at + unquote(host)).geturl()


@lru_cache(1024)
def without_mapping(text: str) -> IPv4Address | IPv6Address | None:
    """An address; of an IPv4 address in IPv6 (``::ffff:127.0.0.1``) the IPv4 address. None for what is no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own: a loopback address, or ``localhost``."""
    address = without_mapping(host)
    return host == _LOCALHOST or (address is not None and address.is_loopback)


def is_loopback_address(address: object) -> bool:
    """Whether the address of a socket, as ``getsockname()`` has it, is a TCP port of this machine's own."""
    return isinstance(address, tuple) and is_loopback(str(address[0]))


def _host(host: str, host_id: str) -> str:
    if host.lower() == host_id.lower():
        return _name(host_id)
    number = _numeric(host)
    if number is None:
        name = _name(host)
        here = name == _LOCALHOST or name.endswith(f".{_LOCALHOST}")
        return _name(host_id) if here else name
    address = without_mapping(number)
    here = address is None or address.is_loopback or address.is_unspecified
    return _name(host_id) if here else str(address)


def _name(host: str) -> str:
    """A DNS name as it is compared."""
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            # No name server knows it either; it is still told apart from others.
            return host.lower()
    return host.lower().removesuffix(".") or host


def _numeric(host: str) -> str | None:
    """The canonical text of a numeric address; None for a name. Every notation of getaddrinfo(3) is read, such as ``127.1``."""
    try:
        found = socket.getaddrinfo(host.removesuffix("."), None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])
