"""The settings table: defaults, sources, and refusals that name the setting."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from app.config import CHECKOUT, SETTINGS, ConfigError, WebuiAddress, load, read


def webuis(urls: str, tmp_path: Path, host: str = "box") -> tuple[WebuiAddress, ...]:
    return load({"SDG_WEBUI_URLS": urls, "SDG_HOST_ID": host}, tmp_path).webuis


def test_defaults_are_those_of_the_design(tmp_path: Path) -> None:
    config = load({}, tmp_path)
    assert (config.bind, config.web_concurrency, config.threads, config.max_waiters) == ("127.0.0.1:8000", 2, 64, 1000)
    assert (config.instance, config.data_dir) == (tmp_path, tmp_path / "data")
    assert config.database_url == f"sqlite:///{tmp_path}/gateway.db"
    assert (config.sync_timeout, config.job_timeout, config.drain_timeout) == (600, 900, 25)
    assert config.max_output_pixels == 16_777_216


@pytest.mark.parametrize("place", ["", "sub/folder", "/srv/gateway"])
def test_the_paths_of_the_defaults_follow_the_instance_folder(place: str) -> None:
    config = load({"SDG_INSTANCE": place} if place else {})
    folder = CHECKOUT / (place or "instance")
    assert (config.instance, config.data_dir) == (folder, folder / "data")
    assert config.database_url == f"sqlite:///{folder}/gateway.db"


def test_a_path_that_somebody_set_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('data_dir = "/pictures"\n')
    config = load({"SDG_INSTANCE": str(tmp_path), "SDG_DATABASE_URL": "sqlite:////var/db/gateway.db"})
    assert (config.data_dir, config.database_url) == (Path("/pictures"), "sqlite:////var/db/gateway.db")


def test_the_settings_file_can_not_name_another_folder(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('instance = "/srv"\n')
    with pytest.raises(ConfigError, match="SDG_INSTANCE can only be set in the environment"):
        load({"SDG_INSTANCE": str(tmp_path)})


def test_the_environment_beats_the_file_and_the_file_the_default(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        'SDG_MAX_STEPS = 10\nmax_side = 512\nwebui_urls = ["a=http://x:1", "http://y:2"]\n'
    )
    config = load({"SDG_MAX_STEPS": "20"}, tmp_path)
    assert (config.max_steps, config.max_side) == (20, 512)
    assert [webui.key for webui in config.webuis] == ["a", "http://y:2"]


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"SDG_NONSENSE": "1"}, "SDG_NONSENSE"),
        ({"SDG_MAX_STEPS": "many"}, "SDG_MAX_STEPS"),
        ({"SDG_MAX_STEPS": "0"}, "SDG_MAX_STEPS"),
        ({"SDG_SYNC_TIMEOUT": "nan"}, "SDG_SYNC_TIMEOUT"),
        ({"SDG_SYNC_TIMEOUT": "-1"}, "SDG_SYNC_TIMEOUT"),
        ({"SDG_WORKER": "sometimes"}, "SDG_WORKER"),
        ({"SDG_BIND": "8000"}, "SDG_BIND"),
        ({"SDG_BIND": "127.0.0.1:99999"}, "SDG_BIND"),
        ({"SDG_HOST_ID": "a/b"}, "SDG_HOST_ID"),
        ({"SDG_PUBLIC_URL": "ftp://x"}, "SDG_PUBLIC_URL"),
        ({"SDG_DATABASE_URL": "gateway.db"}, "SDG_DATABASE_URL"),
        ({"SDG_DATABASE_URL": "sqlite:///:memory:"}, "SDG_DATABASE_URL"),
        ({"SDG_DATABASE_URL": "mysql://x/y"}, "SDG_DATABASE_URL"),
        ({"SDG_WEBUI_URLS": "localhost:7860"}, "SDG_WEBUI_URLS"),
        ({"SDG_WEBUI_URLS": "http://x:1/?q=1"}, "SDG_WEBUI_URLS"),
        ({"SDG_WEBUI_URLS": " , "}, "SDG_WEBUI_URLS"),
        ({"SDG_WEBUI_URLS": "a=http://x:1,a=http://y:1"}, "SDG_WEBUI_URLS"),
        ({"SDG_MAX_WAITERS": "0"}, "SDG_MAX_WAITERS"),
        ({"WEB_CONCURRENCY": "none"}, "WEB_CONCURRENCY"),
        ({"SDG_ACCEL": "apache"}, "SDG_ACCEL"),
        ({"SDG_ACCEL": "nginx", "SDG_BIND": "0.0.0.0:8000"}, "SDG_ACCEL"),
        ({"SDG_ACCEL": "nginx", "SDG_BIND": "[::]:8000"}, "SDG_ACCEL"),
        ({"SDG_ACCEL": "nginx", "SDG_BIND": "10.0.0.5:8000"}, "SDG_ACCEL"),
        ({"SDG_ACCEL": "nginx", "SDG_BIND": "gateway.example:8000"}, "SDG_ACCEL"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_setting_refuses_to_start_and_says_which(environ: dict[str, str], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named):
        load(environ, tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [("nonsense = 1", "nonsense"), ("max_steps = true", "max_steps"), ("max_steps =", "settings.toml")],
)
def test_a_bad_settings_file_refuses_to_start(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(ConfigError, match=named):
        load({}, tmp_path)


def test_a_password_in_a_bad_address_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        webuis("ftp://me:secret@x:1", tmp_path)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("urls", "keys"),
    [
        ("http://127.0.0.1:7860", ["http://box:7860"]),
        ("http://localhost:7860,http://127.0.0.1:7860/,http://[::1]:7860", ["http://box:7860"]),
        ("http://u:p@gpu:7860/sub", ["http://gpu:7860/sub"]),
        ("http://gpu,https://gpu", ["http://gpu:80", "https://gpu:443"]),
        ("first=http://localhost:1,second=http://127.0.0.1:2", ["first", "second"]),
        ("http://localhost:1,a=http://127.0.0.1:1", ["a"]),
        ("a=http://localhost:1,b=http://127.0.0.1:1", ["a"]),
        ("simulator,simulator", ["simulator"]),
    ],
)
def test_one_webui_has_one_slot_however_it_is_spelled(urls: str, keys: list[str], tmp_path: Path) -> None:
    assert [webui.key for webui in webuis(urls, tmp_path)] == keys


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.2", "0",
        "0.0.0.0", "[::1]", "[0:0:0:0:0:0:0:1]", "[::]", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]", "webui.localhost", "127%2e0.0.1",
        "%6cocalhost", "box", "BOX.", "me:secret@127.1", "127.0.0.1.",
    ],
)  # fmt: skip
def test_every_spelling_of_this_host_is_one_slot(host: str, tmp_path: Path) -> None:
    [webui] = webuis(f"http://localhost:7860,http://{host}:7860/,a=http://{host}:07860//", tmp_path)
    assert webui.key == "a"
    [webui] = webuis(f"http://{host}:7860/", tmp_path, host="Box")
    assert webui.key == "http://box:7860"


@pytest.mark.parametrize(
    "spellings",
    [
        ("http://gpu", "http://GPU.:80/", "HTTP://gpu:080", "http://%67pu:", "http://me:pw@gpu"),
        ("https://gpu/a", "https://gpu:443/a/"),
        ("http://10.1", "http://10.0.0.1", "http://0xa000001", "http://[::ffff:10.0.0.1]", "http://167772161"),
        ("http://[2001:db8:0:0::1]:9", "http://[2001:DB8::0001]:9"),
        ("http://b\u00fccher.example", "http://xn--bcher-kva.example", "http://B\u00dcCHER.example."),
    ],
)
def test_every_spelling_of_another_host_is_one_slot(spellings: tuple[str, ...], tmp_path: Path) -> None:
    assert len(webuis(",".join(spellings), tmp_path)) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://gpu", "https://gpu"), ("http://gpu", "http://gpu:81"), ("http://gpu/a", "http://gpu/A"), ("http://gpu", "http://gpu2"),
        ("http://10.0.0.1", "http://10.0.0.2"), ("http://localhost.example", "http://localhost"), ("http://128.0.0.1", "http://127.0.0.1"),
    ],
)  # fmt: skip
def test_different_addresses_are_different_slots(one: str, other: str, tmp_path: Path) -> None:
    assert len(webuis(f"{one},{other}", tmp_path)) == 2


def test_an_address_connects_where_its_host_was_percent_encoded(tmp_path: Path) -> None:
    [webui] = webuis("http://me:p%40ss@127%2e0.0.1:7860/sub%20folder", tmp_path)
    assert webui.url == "http://me:p%40ss@127.0.0.1:7860/sub%20folder"


def test_no_name_server_is_asked_for_the_key_of_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = socket.getaddrinfo

    def numeric_only(*arguments: Any, flags: int = 0, **named: Any) -> Any:
        assert flags & socket.AI_NUMERICHOST, arguments
        return asked(*arguments, flags=flags, **named)

    monkeypatch.setattr(socket, "getaddrinfo", numeric_only)
    assert [webui.key for webui in webuis("http://gpu.example,http://127.1", tmp_path)] == [
        "http://gpu.example:80",
        "http://box:80",
    ]


@pytest.mark.parametrize(
    ("key", "current"),
    [
        ("http://127.1:7860", "http://box:7860"),
        ("http://[::ffff:127.0.0.1]:7860", "http://box:7860"),
        ("http://Box:7860", "http://box:7860"),
        ("http://gpu.:80/sub", "named"),
        # What this version writes itself stays: another host may use it now.
        ("http://box:7860", "http://box:7860"),
        ("http://gpu:80/sub", "http://gpu:80/sub"),
        # Not configured here, so perhaps the WebUI of another host.
        ("http://127.1:7861", "http://127.1:7861"),
        ("http://elsewhere.:80", "http://elsewhere.:80"),
        ("named", "named"),
        ("simulator", "simulator"),
    ],
)
def test_a_slot_of_an_earlier_version_is_known_again(key: str, current: str, tmp_path: Path) -> None:
    urls = "http://localhost:7860,named=http://gpu/sub,simulator"
    config = load({"SDG_WEBUI_URLS": urls, "SDG_HOST_ID": "Box"}, tmp_path)
    assert config.current_slot_key(key) == current


def test_credentials_stay_in_the_address_and_out_of_the_key(tmp_path: Path) -> None:
    [webui] = webuis("http://me:p=ss@gpu:7860", tmp_path)
    assert (webui.url, webui.key) == ("http://me:p=ss@gpu:7860", "http://gpu:7860")


def test_postgresql_urls_are_driven_by_psycopg_3(tmp_path: Path) -> None:
    for url in ("postgres://h/d", "postgresql://h/d"):
        assert load({"SDG_DATABASE_URL": url}, tmp_path).database_url == "postgresql+psycopg://h/d"


def test_every_setting_has_one_sentence_and_one_field() -> None:
    for setting in SETTINGS:
        assert setting.sentence.endswith("."), setting.name
        assert setting.sentence.count("\n") == 0
    assert len({setting.field for setting in SETTINGS}) == len(SETTINGS)


def test_every_fault_is_found_and_what_is_not_known_for_it(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("max_side = true\ntreads = 8\nmax_steps = 7\n")
    reading = read({"SDG_WEBUI_URL": "http://x:1", "SDG_BIND": "8000", "SDG_THREADS": "5"}, tmp_path)
    assert [
        next(name for name in ("WEBUI_URL", "max_side", "treads", "BIND") if name in text) for text in reading.faults
    ] == [
        "WEBUI_URL",
        "max_side",
        "treads",
        "BIND",
    ]
    # The misspelt name of the file means a setting that the environment gives.
    assert reading.doubtful == {"SDG_WEBUI_URLS", "SDG_MAX_SIDE", "SDG_BIND"}
    assert (reading.config.threads, reading.config.max_steps, reading.config.max_side) == (5, 7, 2048)


def test_of_a_file_that_can_not_be_read_only_the_environment_is_known(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("threads = ")
    reading = read({"SDG_MAX_SIDE": "512"}, tmp_path)
    assert len(reading.faults) == 1
    assert reading.doubtful == {setting.name for setting in SETTINGS} - {"SDG_MAX_SIDE", "SDG_INSTANCE"}
