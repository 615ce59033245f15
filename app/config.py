"""The settings table, and the only reader of the environment.

Every knob of the gateway is one row of :data:`SETTINGS`: its name, its default, the function that reads its text, and one
sentence for people. :func:`load` turns environment variables and ``instance/settings.toml`` into one immutable
:class:`Config`; an unknown or malformed setting raises :class:`ConfigError`, which names it. :func:`read` names them all.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from app.runtime.addresses import host_of, is_loopback, slot_key, with_plain_host, without_mapping

PREFIX = "SDG_"
#: gunicorn's own variable for the number of processes; ours only to have a default and a place in the table.
PROCESSES = "WEB_CONCURRENCY"
SIMULATOR = "simulator"
#: Set by crash tests only: where a process is to die; see app/runtime/failpoints.py.
CRASH_AT = "SDG_TEST_CRASH_AT"

#: Read before settings.toml, which lies there.
INSTANCE = "SDG_INSTANCE"
WEBUI_URLS = "SDG_WEBUI_URLS"


def _checkout() -> Path | None:
    """The checkout that this module lies in; None when the package is installed, for nothing is ever written beside it then."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / "setup.cfg").is_file() else None


CHECKOUT = _checkout()
#: Relative paths count from here: the checkout, else the folder in which the process was started, wherever it goes later.
BASE = CHECKOUT or Path.cwd()
#: The instance folder where ``SDG_INSTANCE`` names none.
DEFAULT_INSTANCE = "instance" if CHECKOUT is not None else "sd-gateway"


class CannotStart(Exception):
    """The text is one line that names the setting or the folder, and says what to do.

    :param what: what is wrong, or the whole text.
    :param advice: what to do, where that is told apart.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        self.what = what
        self.advice = advice
        super().__init__(" ".join(f"{what} {advice}".split()))


class ConfigError(CannotStart):
    """A setting that the gateway does not know or cannot read; the message names it."""


@dataclass(frozen=True)
class WebuiAddress:
    """One entry of ``SDG_WEBUI_URLS``: where a WebUI listens and the key of its slot in the database."""

    key: str
    url: str

    @property
    def name(self) -> str:
        """The WebUI as the operator wrote it, for the log: its name, else its URL without credentials."""
        if "://" not in self.key:
            return self.key
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@dataclass(frozen=True)
class TrustedProxies:
    """The peers whose forwarding headers are believed."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    #: Whoever reaches a Unix socket.
    unix: bool = False

    def __contains__(self, peer: str) -> bool:
        """Whether a peer is one of them; one of a Unix socket has an empty address."""
        if not peer:
            return self.unix
        address = without_mapping(peer)
        return address is not None and any(address in network for network in self.networks)


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    ``default`` is the text a person would have typed; ``parse`` turns text into the value and raises ``ValueError`` with the
    reason; ``shown`` replaces the default in the README where the real one depends on the machine.
    """

    name: str
    default: str
    parse: Callable[[str], Any]
    sentence: str
    shown: str | None = None
    #: Whether the value is never shown.
    secret: bool = False

    @property
    def field(self) -> str:
        """The attribute of :class:`Config` that holds the value."""
        return self.name.removeprefix(PREFIX).lower()


def _text(value: str) -> str:
    return value


def _number(minimum: float, *, integer: bool) -> Callable[[str], Any]:
    def parse(value: str) -> Any:
        try:
            number = int(value) if integer else float(value)
        except ValueError:
            raise ValueError("must be a whole number" if integer else "must be a number") from None
        if not minimum <= number < float("inf"):
            raise ValueError(f"must be at least {minimum:g}")
        return number

    return parse


_HIGHEST_PORT = 65535
#: As many as SHA-256 gives.
_LEAST_KEY_BYTES = 32
_UNIX = "unix"
_MOST_SIZES = 10
_LEAST_SIZE = 16
_LARGEST_SIZE = 4096
_COUNT = _number(1, integer=True)
_SECONDS = _number(0, integer=False)


def _choice(*names: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in names:
            raise ValueError("must be one of " + ", ".join(name or "empty" for name in names))
        return value

    return parse


def _bind(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if value.startswith("unix:") or (colon and host and port.isdigit() and int(port) <= _HIGHEST_PORT):
        return value
    raise ValueError("must be host:port or unix:path")


def is_loopback_port(bind: str) -> bool:
    """Whether an address, as ``SDG_BIND`` has it, is a TCP port that only this machine reaches."""
    return not bind.startswith("unix:") and is_loopback(bind.rpartition(":")[0].strip("[]"))


def _only_this_machine_reaches(bind: str) -> bool:
    return bind.startswith("unix:") or is_loopback_port(bind)


def _host_id(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", value):
        raise ValueError("must be 1 to 128 letters, digits, dots, dashes or underscores")
    return value


def _public_url(value: str) -> str:
    if value and urlsplit(value).scheme not in ("http", "https"):
        raise ValueError("must begin with http:// or https://")
    return value.rstrip("/")


def _parts(value: str) -> list[str]:
    """The parts of a comma separated list."""
    return [part.strip() for part in value.split(",") if part.strip()]


def _switch(value: str) -> bool:
    if value not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return value == "1"


def secret_keys(value: str) -> Mapping[str, bytes]:
    """Read ``name:base64, …``, the keys by their names in this order.

    :raises ValueError: it is no such list; the text does not show a key.
    """
    keys: dict[str, bytes] = {}
    for part in _parts(value):
        name, _, text = part.partition(":")
        try:
            key = base64.b64decode(text, validate=True)
        except binascii.Error:
            key = b""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,16}", name) or name in keys or len(key) < _LEAST_KEY_BYTES:
            raise ValueError(
                "must be name:base64, …: each name 1 to 16 letters, digits, dashes or underscores, and only once; "
                f"each key at least {_LEAST_KEY_BYTES} bytes"
            )
        keys[name] = key
    return MappingProxyType(keys)


def _networks(value: str) -> TrustedProxies:
    try:
        networks = tuple(ip_network(part, strict=False) for part in _parts(value) if part != _UNIX)
    except ValueError as error:
        raise ValueError(f"must be addresses, networks or the word {_UNIX}: {error}") from None
    return TrustedProxies(networks, unix=_UNIX in _parts(value))


def _origins(value: str) -> frozenset[str]:
    for part in _parts(value):
        parts = urlsplit(part)
        if (
            parts.scheme not in ("http", "https")
            or not parts.netloc
            or part != f"{parts.scheme}://{parts.netloc}".lower()
        ):
            raise ValueError(f"{part!r} is no origin such as https://app.example.com, in lower case and without a path")
    return frozenset(_parts(value))


def _sizes(value: str) -> tuple[int, ...]:
    parts = _parts(value)
    if not 1 <= len(parts) <= _MOST_SIZES or not all(re.fullmatch(r"[0-9]{2,4}", part) for part in parts):
        raise ValueError(f"must be 1 to {_MOST_SIZES} numbers of 2 to 4 digits")
    sizes = tuple(sorted({int(part) for part in parts}))
    if sizes[0] < _LEAST_SIZE or sizes[-1] > _LARGEST_SIZE:
        raise ValueError(f"must be from {_LEAST_SIZE} to {_LARGEST_SIZE} pixels")
    return sizes


def _path(value: str) -> Path:
    path = Path(value).expanduser()
    return path if path.is_absolute() else BASE / path


def _database_url(value: str) -> str:
    """Accept SQLite files and PostgreSQL; a relative SQLite path counts from :data:`BASE`."""
    scheme, separator, rest = value.partition("://")
    if not separator:
        raise ValueError("must be a database URL such as sqlite:///path or postgresql://…")
    if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        return f"postgresql+psycopg://{rest}"
    if scheme != "sqlite" or not rest.startswith("/") or rest == "/" or ":memory:" in rest:
        raise ValueError("must name a SQLite file (sqlite:///path) or PostgreSQL (postgresql://…)")
    return "sqlite:///" + str(_path(rest[1:]))


_NAMED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)=(?P<url>.+)")


def _parse_entry(entry: str, host_id: str) -> tuple[WebuiAddress, str]:
    """One entry as its address and the place it stands for, which two spellings of one WebUI share."""
    if entry == SIMULATOR:
        return WebuiAddress(SIMULATOR, SIMULATOR), SIMULATOR
    named = _NAMED.fullmatch(entry)
    url = (named["url"] if named else entry).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not host_of(parts) or parts.query or parts.fragment:
        raise ValueError(f"{_without_credentials(entry)!r} is no http:// or https:// address")
    place = slot_key(url, host_id)
    return WebuiAddress(named["name"] if named else place, with_plain_host(url)), place


def parse_webui_urls(value: str, host_id: str) -> tuple[WebuiAddress, ...]:
    """Read ``[name=]url, …``; an address given twice counts once.

    Raises ``ValueError`` for what is no http(s) URL, and for one name given to two addresses.
    """
    found: dict[str, WebuiAddress] = {}
    for entry in filter(None, (part.strip() for part in value.split(","))):
        address, place = _parse_entry(entry, host_id)
        if any(address.key == other.key for at, other in found.items() if at != place):
            raise ValueError(f"the name {address.key!r} stands for two addresses")
        # One WebUI under two keys would get two generations at once. A name that a person chose goes before a derived key.
        if place not in found or found[place].key == place:
            found[place] = address
    if not found:
        raise ValueError("must name at least one WebUI")
    return tuple(found.values())


def _without_credentials(entry: str) -> str:
    """What may be shown of an entry that can't be read: nothing up to its last @, and no query, which may hold passwords too."""
    name, _, rest = entry.rpartition("@")
    return ("…@" if name else "") + rest.partition("?")[0]


SETTINGS: tuple[Setting, ...] = (
    Setting(
        INSTANCE,
        DEFAULT_INSTANCE,
        _path,
        "The folder of settings.toml and styles.toml, and of the defaults below that begin with `instance/`; environment only.",
        shown="`instance` in a checkout, else `sd-gateway`",
    ),
    Setting("SDG_BIND", "127.0.0.1:8000", _bind, "Where gunicorn listens: `host:port` or `unix:path`."),
    Setting(PROCESSES, "2", _COUNT, "Web processes (gunicorn's own variable)."),
    Setting("SDG_THREADS", "64", _COUNT, "Threads of each web process."),
    Setting(
        "SDG_MAX_WAITERS",
        "1000",
        _COUNT,
        "Clients of each process that may wait for a picture; they hold a connection, but no thread.",
    ),
    Setting(
        "SDG_MAX_STREAMS",
        "1000",
        _COUNT,
        "Event streams of each process; 20 of them for one user.",
    ),
    Setting(
        WEBUI_URLS,
        "http://127.0.0.1:7860",
        _text,
        "The WebUIs, comma separated, each `[name=]url`; the word `simulator` stands for an embedded simulated one.",
    ),
    Setting(
        "SDG_HOST_ID",
        "",
        lambda value: _host_id(value or socket.gethostname()),
        "The name of this host in the database.",
        shown="the hostname",
    ),
    Setting(
        "SDG_DEFAULT_MODEL",
        "",
        _text,
        "The model of requests that name none, by any of its names; empty: the first one seen loaded in a WebUI.",
    ),
    Setting("SDG_PUBLIC_URL", "", _public_url, "Put before every `url` of an answer; empty: `url`s are rooted paths."),
    Setting("SDG_DATA_DIR", "instance/data", _path, "The folder of the records."),
    Setting(
        "SDG_DATABASE_URL",
        "sqlite:///instance/gateway.db",
        _database_url,
        "The job table: a SQLite file, or `postgresql://…` when there is more than one host.",
    ),
    Setting(
        "SDG_WORKER",
        "embedded",
        _choice("embedded", "external"),
        "`embedded`: one web process of the host runs the worker; `external`: `sd-gateway worker` does.",
    ),
    Setting(
        "SDG_DRAIN_TIMEOUT",
        "25",
        _SECONDS,
        "Seconds that running pictures may take to finish after SIGTERM before they are given back.",
    ),
    Setting("SDG_SYNC_TIMEOUT", "600", _SECONDS, "Seconds that a POST waits for its picture before it answers 202."),
    Setting("SDG_JOB_TIMEOUT", "900", _number(0.1, integer=False), "Seconds that one attempt may run on a WebUI."),
    Setting(
        "SDG_ACCEPT_SIZES",
        "exact",
        _choice("exact", "any"),
        "`exact`: pictures of another size than asked for are refused; `any`: for WebUIs whose extensions change it on purpose.",
    ),
    Setting(
        "SDG_ACCEPT_SEEDS", "exact", _choice("exact", "any"), "The same for the seeds that pictures were made with."
    ),
    Setting(
        "SDG_ACCEL",
        "",
        _choice("", "nginx"),
        "`nginx`: the nginx in front sends the pictures (docs/operations.md); needs a loopback or Unix `SDG_BIND`.",
    ),
    Setting(
        "SDG_AUTH",
        "tokens",
        _choice("tokens", "none"),
        "`tokens`: every request needs a token once the first one exists; until then only local requests are served "
        "(docs/security.md). `none`: everybody who reaches the port may do everything.",
    ),
    Setting(
        "SDG_SECRET_KEYS",
        "",
        secret_keys,
        "Keys of signed URLs and sessions: `name:base64`, comma separated, 32 bytes or more each. The last one signs, all verify. "
        "Several hosts need the same; empty: one is made in the instance folder.",
        secret=True,
    ),
    Setting(
        "SDG_TRUSTED_PROXIES",
        "",
        _networks,
        "Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed, the last value of each: addresses or networks, "
        "comma separated; `unix` means every peer on a Unix socket.",
    ),
    Setting(
        "SDG_CORS_ORIGINS",
        "",
        _origins,
        "Origins whose pages may call the API from a browser, comma separated, such as `https://app.example.com`; empty: none.",
    ),
    Setting(
        "SDG_VARIANT_SIZES",
        "160,320,768",
        _sizes,
        "Sizes in which pictures can be asked for (`?size=`): the longest side, pixels, comma separated; the smallest is that of "
        "`thumbnail_url`.",
    ),
    Setting(
        "SDG_VARIANT_CACHE_MB",
        "1024",
        _COUNT,
        "Disk space for cached variants, MiB; the least recently used are removed first.",
    ),
    Setting(
        "SDG_LOG_FORMAT",
        "text",
        _choice("text", "json"),
        "`json`: each line of the log is a JSON object (docs/operations.md).",
    ),
    Setting("SDG_ACCESS_LOG", "0", _switch, "`1`: a line for each request."),
    Setting("SDG_MAX_QUEUE", "1000", _COUNT, "Unfinished jobs of all users together."),
    Setting("SDG_MAX_QUEUE_PER_USER", "20", _COUNT, "Unfinished jobs of one user."),
    Setting("SDG_MAX_BATCH_SIZE", "8", _COUNT, "Largest `batch_size`."),
    Setting("SDG_MAX_STEPS", "150", _COUNT, "Largest `steps`."),
    Setting(
        "SDG_MAX_SIDE",
        "2048",
        _number(64, integer=True),
        "Largest `width` and `height`, pixels; a side of a reference image may have 8 times as many.",
    ),
    Setting(
        "SDG_MAX_OUTPUT_PIXELS",
        "16777216",
        _number(4096, integer=True),
        "Bound of final width × height × batch_size, and of a reference image's width × height.",
    ),
    Setting("SDG_MAX_PROMPT_CHARS", "20000", _COUNT, "Longest prompt and negative prompt, characters."),
    Setting("SDG_MAX_BODY_MB", "32", _COUNT, "Largest request body, MiB."),
)


@dataclass(frozen=True)
class Config:
    """Every setting, parsed; the field names are those of :data:`SETTINGS` in lower case without the prefix."""

    #: Where styles.toml and settings.toml are read.
    instance: Path
    bind: str
    web_concurrency: int
    threads: int
    max_waiters: int
    max_streams: int
    webui_urls: str
    host_id: str
    default_model: str
    public_url: str
    data_dir: Path
    database_url: str
    worker: str
    drain_timeout: float
    sync_timeout: float
    job_timeout: float
    accept_sizes: str
    accept_seeds: str
    accel: str
    auth: str
    #: Of signed URLs and sessions, by their names, the one that signs last; empty when the instance folder's is used.
    secret_keys: Mapping[str, bytes]
    trusted_proxies: TrustedProxies
    cors_origins: frozenset[str]
    #: Longest sides in pixels, ascending.
    variant_sizes: tuple[int, ...]
    variant_cache_mb: int
    log_format: str
    access_log: bool
    max_queue: int
    max_queue_per_user: int
    max_batch_size: int
    max_steps: int
    max_side: int
    max_output_pixels: int
    max_prompt_chars: int
    max_body_mb: int
    #: Parsed from ``webui_urls``, each WebUI once.
    webuis: tuple[WebuiAddress, ...]
    #: Empty but in crash tests.
    crash_at: str = ""

    def current_slot_key(self, key: str) -> str:
        """The key of a slot whose key an earlier version wrote: another one only for a WebUI of this process.

        Earlier versions gave each spelling of an address a key of its own. A key that this version could have written is kept.
        """
        if "://" not in key:
            return key
        place = slot_key(key, self.host_id)
        mine = {slot_key(webui.url, self.host_id): webui.key for webui in self.webuis if webui.url != SIMULATOR}
        return key if place == key else mine.get(place, key)


def _toml_text(value: Any) -> str:
    """A TOML value as the text the environment would have held; lists become comma separated."""
    if isinstance(value, list):
        return ",".join(_toml_text(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a string or a number")
    return str(value)


def _instance(environ: Mapping[str, str]) -> Path:
    return _path(environ.get(INSTANCE, "") or DEFAULT_INSTANCE)


def _defaults(instance: Path) -> dict[str, str]:
    """The default texts; the paths among them follow the instance folder."""
    prefixes = {"instance/": f"{instance}/", "sqlite:///instance/": f"sqlite:///{instance}/"}
    defaults = {setting.name: setting.default for setting in SETTINGS} | {INSTANCE: str(instance)}
    for name, text in defaults.items():
        for prefix, absolute in prefixes.items():
            if text.startswith(prefix):
                defaults[name] = absolute + text.removeprefix(prefix)
    return defaults


class _Faults:
    """What is wrong with the settings, gathered while they are read."""

    def __init__(self) -> None:
        #: One line each, which names the setting.
        self.texts: list[str] = []
        #: See :attr:`Reading.doubtful`.
        self.doubtful: set[str] = set()

    def add(self, text: str, *doubtful: str) -> None:
        self.texts.append(text)
        self.doubtful.update(doubtful)

    def add_unknown(self, names: Sequence[str], known: Mapping[str, str], place: str = "") -> None:
        """Settings that stand in no row of the table.

        :param known: the spellings that are known there, each with the name of its setting.
        :param place: what goes before the text: where they stand.
        """
        near = {other for name in names for other in difflib.get_close_matches(name.upper(), known, n=1)}
        advice = f"did you mean {', '.join(sorted(near))}?" if near else "the README lists all settings"
        self.add(f"{place}unknown setting {', '.join(names)}; {advice}", *(known[name] for name in near))


def _read_file(path: Path, faults: _Faults) -> dict[str, str]:
    """The settings of ``settings.toml``; keys are the names of the table, with or without ``SDG_``, in any case."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        everything = (setting.name for setting in SETTINGS if setting.name != INSTANCE)
        faults.add(f"{path} can't be read: {getattr(error, 'strerror', None) or error}", *everything)
        return {}
    known = {name: setting.name for setting in SETTINGS for name in (setting.name, setting.name.removeprefix(PREFIX))}
    values: dict[str, str] = {}
    for key, value in table.items():
        name = known.get(key.upper())
        if name is None:
            faults.add_unknown([key], known, f"{path}: ")
        elif name == INSTANCE:
            faults.add(f"{path}: {INSTANCE} can only be set in the environment, for this file lies in that folder")
        else:
            try:
                values[name] = _toml_text(value)
            except ValueError as error:
                faults.add(f"{path}: {key} {error}", name)
    return values


def _texts(environ: Mapping[str, str], instance: Path, faults: _Faults) -> dict[str, str]:
    """The text of every setting, from the environment over ``settings.toml`` over the defaults."""
    texts = _defaults(instance) | _read_file(instance / "settings.toml", faults)
    given = {name: environ[name] for name in texts if environ.get(name, "") != "" and name != INSTANCE}
    known = {setting.name: setting.name for setting in SETTINGS}
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in {*known, CRASH_AT})
    if unknown:
        faults.add_unknown(unknown, known)
        # Before what is wrong in the file: so it is the first one that is told.
        faults.texts.insert(0, faults.texts.pop())
    faults.doubtful -= given.keys()
    return texts | given


def _parse(texts: Mapping[str, str], defaults: Mapping[str, str], faults: _Faults) -> dict[str, Any]:
    """The value of every setting by its field in :class:`Config`; that of its default where it can't be read."""
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        try:
            values[setting.field] = setting.parse(texts[setting.name].strip())
        except ValueError as error:
            faults.add(f"{setting.name}: {error}", setting.name)
            values[setting.field] = setting.parse(defaults[setting.name])
    try:
        values["webuis"] = parse_webui_urls(values["webui_urls"], values["host_id"])
    except ValueError as error:
        faults.add(f"{WEBUI_URLS}: {error}", WEBUI_URLS)
        values["webuis"] = parse_webui_urls(defaults[WEBUI_URLS], values["host_id"])
    if values["accel"] and not _only_this_machine_reaches(values["bind"]):
        faults.add("SDG_ACCEL: needs SDG_BIND to be a loopback address or a Unix socket, so that only nginx reaches it")
    return values


def effective() -> dict[str, str]:
    """The text of every setting as this process would use it, without user names, passwords and keys.

    :raises ConfigError: for an unknown or malformed setting, naming it.
    """
    load()
    texts = _texts(os.environ, _instance(os.environ), _Faults())
    shown = {name: without_secrets(text) for name, text in texts.items()}
    shown |= {setting.name: "…" for setting in SETTINGS if setting.secret and texts[setting.name]}
    return shown | {WEBUI_URLS: ",".join(without_secrets(url) for url in texts[WEBUI_URLS].split(","))}


def sockets_are_handed_over() -> bool:
    """Whether systemd has started this process with sockets that listen already (sd_listen_fds(3))."""
    return "LISTEN_PID" in os.environ


def without_secrets(url: str) -> str:
    """A URL with … in place of user and password, which may stand in its query too. Any other text stays as it is."""
    scheme, separator, rest = url.partition("://")
    rest = re.sub(r"(?i)\b(user|\w*pass\w*)=[^&]*", r"\1=…", rest)
    # Up to the last @: a password may hold one, and a slash.
    return scheme + separator + re.sub(r"^.*@", "…@", rest)


@dataclass(frozen=True)
class Reading:
    """The settings as far as they can be read."""

    #: With the default in place of what can't be read.
    config: Config
    #: One line for each fault, which names the setting.
    faults: tuple[str, ...]
    #: Settings whose value is not known: those that can't be read, and those that a misspelt name may stand for.
    doubtful: frozenset[str]


def read(environ: Mapping[str, str] | None = None, instance: Path | None = None) -> Reading:
    """Read the environment over ``settings.toml`` over the defaults, and find all faults in them.

    :param environ: instead of the process's environment, for tests.
    :param instance: instead of the folder that ``SDG_INSTANCE`` names, for tests.
    """
    environ = os.environ if environ is None else environ
    instance = instance or _instance(environ)
    faults = _Faults()
    values = _parse(_texts(environ, instance, faults), _defaults(instance), faults)
    config = Config(**values, crash_at=environ.get(CRASH_AT, ""))
    return Reading(config, tuple(faults.texts), frozenset(faults.doubtful))


def load(environ: Mapping[str, str] | None = None, instance: Path | None = None) -> Config:
    """Read the settings as :func:`read` does, whose parameters these are.

    :raises ConfigError: for an unknown or malformed setting, naming it.
    """
    reading = read(environ, instance)
    if reading.faults:
        raise ConfigError(reading.faults[0])
    return reading.config
