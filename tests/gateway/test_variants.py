"""Pictures in other sizes and formats, over HTTP: what they show, how they are kept, and that they go with their picture."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from PIL import Image
from sqlalchemy import text
from werkzeug.test import TestResponse

from app import EXTENSION, create_app
from app.config import load
from app.services import Services
from app.simulator import SimulatorServer
from tests.inprocess import FIELDS, USER, hurry, png_base64, simulator, until
from tests.records import profiles
from tests.system.test_machine import fill, mount, unmount

MEDIA_TYPES = {"webp": "image/webp", "jpeg": "image/jpeg", "png": "image/png"}
LONG_AGO = 2 * 3600
MINUTE = 60
#: What a disk gives at a time.
BLOCK = 4096


_OTHER_FORMAT = "UPDATE jobs SET images = replace(replace(images, '.png', :new), 'image/png', :type) WHERE name = :name"


class Site:
    """A gateway in this process, and a client of it."""

    def __init__(self, folder: Path, server: SimulatorServer, data: Path | None = None, **settings: str) -> None:
        (folder / "instance").mkdir()
        self.data = data or folder / "data"
        environ = {
            "SDG_DATA_DIR": str(self.data),
            "SDG_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
            "SDG_HOST_ID": "testhost",
            "SDG_WEBUI_URLS": server.url,
            "SDG_DRAIN_TIMEOUT": "0",
        }
        self.app = create_app(load(environ | settings, folder / "instance"))
        self.services: Services = self.app.extensions[EXTENSION]
        self.services.start(worker=True)
        until(lambda: not self.services.readiness(), "readiness")

    @property
    def client(self) -> FlaskClient:
        client = self.app.test_client()
        # The same for all, so that whole headers can be compared.
        client.environ_base["HTTP_X_REQUEST_ID"] = "r"
        return client

    def job(self, type_: str = "txt2img", **fields: Any) -> dict[str, Any]:
        """A succeeded job of one small picture."""
        images = {"init_images": png_base64()} if type_ == "img2img" else {}
        answer = self.client.post(f"/{type_}", json=FIELDS | images | fields)
        assert answer.status_code == 200, answer.json
        return answer.json

    def url(self, **fields: Any) -> str:
        """The URL of a new picture."""
        return self.job(**fields)["images"][0]["url"]

    def picture_of(self, data: bytes, extension: str = "png") -> str:
        """The URL of a new picture that has these bytes; its row is that of a picture of this format."""
        job = self.job()
        [image] = job["images"]
        stored = self.find(image["filename"])
        stored.write_bytes(data)
        if extension != "png":
            stored.rename(stored.with_suffix(f".{extension}"))
            media_type = Image.MIME[{"jpg": "JPEG"}.get(extension, extension.upper())]
            with self.services.database.write() as connection:
                values = {"new": f".{extension}", "type": media_type, "name": job["name"]}
                assert connection.execute(text(_OTHER_FORMAT), values).rowcount == 1
        return image["url"].replace(".png", f".{extension}")

    def get(self, url: str, **headers: str) -> TestResponse:
        """The answer, read whole."""
        with self.client.get(url, headers=headers, buffered=True) as response:
            return response

    def find(self, filename: str) -> Path:
        """The file of a record with this name."""
        [path] = [path for path in self.data.rglob(filename) if ".variants" not in path.parts]
        return path

    def variants(self) -> list[Path]:
        """All files below the folder of variants that are of a picture."""
        return sorted(
            path for path in (self.data / ".variants").rglob("*") if path.is_file() and "room" not in path.name
        )

    def folders(self) -> list[str]:
        """All folders of users in the folder of variants."""
        return [str(path) for path in (self.data / ".variants").glob("*/*")]

    def room(self) -> int:
        """Bytes that the variants take by the gateway's own count."""
        return int((self.data / ".variants" / ".room").read_text("ascii"))


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    with simulator() as server:
        yield server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, server: SimulatorServer) -> Iterator[Site]:
    """The gateway of the tests that need no settings of their own."""
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        site = Site(tmp_path_factory.mktemp("site"), server)
        yield site
        site.services.drain()


@pytest.fixture
def make(tmp_path: Path, server: SimulatorServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Site]]:
    """Makes the gateway of one test."""
    hurry(monkeypatch)
    made: list[Site] = []

    def make_site(data: Path | None = None, **settings: str) -> Site:
        made.append(Site(tmp_path, server, data, **settings))
        return made[-1]

    yield make_site
    for site in made:
        site.services.drain()


def opened(answer: TestResponse) -> Image.Image:
    assert answer.status_code == 200, answer.json
    image = Image.open(io.BytesIO(answer.data))
    image.load()
    return image


def png(image: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **how)
    return buffer.getvalue()


def taken(paths: list[Path]) -> int:
    """The room that files take, in bytes; of those that are still there."""
    sizes = []
    for path in paths:
        with suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return sum(-(-size // BLOCK) * BLOCK for size in sizes)


def near(pixel: Any, expected: tuple[int, ...], by: int = 12) -> bool:
    return all(abs(one - other) <= by for one, other in zip(pixel, expected, strict=True))


class TestWhatIsAnswered:
    def test_the_thumbnail_of_every_picture(self, site: Site) -> None:
        job = site.job("img2img", width=512, height=256, init_images=png_base64((300, 400)))
        for entry, size in ((job["images"][0], (160, 80)), (job["init_image"], (120, 160))):
            assert entry["thumbnail_url"] == f"{entry['url']}?size=160&format=webp"
            answer = site.get(entry["thumbnail_url"])
            image = opened(answer)
            assert (image.format, image.size, image.info.get("exif"), image.info.get("icc_profile")) == (
                "WEBP",
                size,
                None,
                None,
            )
            assert job["args"]["prompt"].encode() not in answer.data
        [listed] = site.get(f"/i2ihistory/{USER}?limit=1").json["records"]
        assert listed == job

    @pytest.mark.parametrize("format_", [None, *MEDIA_TYPES])
    @pytest.mark.parametrize(
        ("size", "sides"), [(None, (512, 256)), (160, (160, 80)), (320, (320, 160)), (768, (512, 256))]
    )
    def test_size_and_format(self, site: Site, size: int | None, sides: tuple[int, int], format_: str | None) -> None:
        job = site.job(width=512, height=256)
        query = [f"size={size}"] * (size is not None) + [f"format={format_}"] * (format_ is not None)
        answer = site.get(f"{job['images'][0]['url']}?{'&'.join(query)}")
        image = opened(answer)
        assert image.size == sides
        assert answer.mimetype == MEDIA_TYPES[format_ or "png"] == Image.MIME[image.format or ""]
        if query:
            assert b"lighthouse" not in answer.data
            assert not {"exif", "icc_profile", "parameters", "comment", "xmp"} & set(image.info)

    def test_a_variant_is_served_as_a_picture_is(self, site: Site) -> None:
        url = site.url(width=512)
        name = url.rpartition("/")[2].removesuffix(".png")
        names = {
            "size=160&format=jpeg": f"{name}-160.jpg",
            "format=webp": f"{name}.webp",
            "size=320": f"{name}-320.png",
        }
        for query, shown in names.items():
            first = site.get(f"{url}?{query}")
            again = site.get(f"{url}?{query}&download=false")
            assert (first.data, first.headers) == (again.data, again.headers)
            headers = dict(first.headers)
            assert headers["Content-Length"] == str(len(first.data))
            assert headers["Content-Disposition"] == f"inline; filename={shown}"
            assert sorted(headers["Cache-Control"].split(", ")) == ["immutable", "max-age=31536000", "private"]
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Content-Security-Policy"] == "default-src 'none'; sandbox"
            downloaded = site.get(f"{url}?{query}&download=true")
            assert downloaded.headers["Content-Disposition"] == f"attachment; filename={shown}"
            assert downloaded.data == first.data

    def test_conditions_ranges_and_head(self, site: Site) -> None:
        url = f"{site.url(width=512)}?size=160&format=jpeg"
        made = site.get(url, Range="bytes=2-5")
        whole = site.get(url)
        etag, modified = whole.headers["ETag"], whole.headers["Last-Modified"]
        assert (made.status_code, made.data, made.headers["ETag"]) == (206, whole.data[2:6], etag)
        assert etag.startswith('"')
        for condition in ({"If-None-Match": etag}, {"If-None-Match": f"W/{etag}"}, {"If-Modified-Since": modified}):
            answer = site.get(url, **condition)
            assert (answer.status_code, answer.data) == (304, b"")
        assert site.get(url, **{"If-Match": '"other"'}).status_code == 412
        assert site.get(url, Range="bytes=99999999-").status_code == 416
        ranged = site.get(url, Range="bytes=-3", **{"If-Range": etag})
        assert (ranged.status_code, ranged.data) == (206, whole.data[-3:])
        with site.client.head(url) as head:
            assert (head.status_code, head.data, dict(head.headers)) == (200, b"", dict(whole.headers))

    def test_each_variant_has_its_own_etag(self, site: Site) -> None:
        url = site.url(width=512)
        queries = ["", "?size=160", "?size=320", "?format=webp", "?format=jpeg", "?format=png", "?size=160&format=webp"]
        assert len({site.get(url + query).headers["ETag"] for query in queries}) == len(queries)

    def test_a_head_makes_it(self, site: Site) -> None:
        url = f"{site.url(width=512)}?size=160"
        with site.client.head(url) as head:
            assert head.status_code == 200
        assert dict(head.headers) == dict(site.get(url).headers)

    @pytest.mark.parametrize("query", ["size=160", "format=webp", "size=320&format=png&download=true"])
    def test_what_is_no_picture_has_no_variant(self, site: Site, query: str) -> None:
        job = site.job()
        url, name = job["images"][0]["url"], job["name"]
        before = site.variants()
        others = (url.replace("-1-0.png", end) for end in ("-1-1.png", "", "-1.json"))
        for path in (url.replace(f"/{USER}/", "/nobody/"), *others):
            assert site.get(f"{path}?{query}").json["type"] == "job-not-found"
        assert site.get(f"/get_images/{USER}/extras/{name}-1-0.png?{query}").json["type"] == "unknown-type"
        assert site.variants() == before


def grey16() -> Image.Image:
    return Image.frombytes("I;16", (400, 200), struct.pack("<H", 0x8000) * (400 * 200))


def palette() -> Image.Image:
    image = Image.new("P", (400, 200), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


#: Sources, and the colour that they show.
SOURCES: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "16-bit grey": (lambda: png(grey16()), (128, 128, 128)),
    "grey": (lambda: png(Image.new("L", (400, 200), 90)), (90, 90, 90)),
    "black and white": (lambda: png(Image.new("1", (400, 200), 1)), (255, 255, 255)),
    "palette": (lambda: png(palette()), (200, 100, 50)),
    "colour": (lambda: png(Image.new("RGB", (400, 200), (10, 200, 30))), (10, 200, 30)),
    "turned by its EXIF": (lambda: png(Image.new("RGB", (200, 400), (10, 200, 30)), exif=turned()), (10, 200, 30)),
}


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


class TestSources:
    @pytest.mark.parametrize("format_", MEDIA_TYPES)
    @pytest.mark.parametrize("kind", SOURCES)
    def test_every_kind_of_png(self, site: Site, kind: str, format_: str) -> None:
        data, colour = SOURCES[kind]
        image = opened(site.get(f"{site.picture_of(data())}?size=160&format={format_}"))
        assert image.size == (160, 80)
        assert image.mode in ("RGB", "RGBA")
        assert near(image.convert("RGB").getpixel((80, 40)), colour)

    @pytest.mark.parametrize("kind", ["rgba", "grey with alpha", "palette", "one colour"])
    def test_transparency_is_kept_or_shown_on_white(self, site: Site, kind: str) -> None:
        source = {
            "rgba": lambda: png(Image.new("RGBA", (400, 200), (200, 0, 0, 0))),
            "grey with alpha": lambda: png(Image.new("LA", (400, 200), (9, 0))),
            "palette": lambda: png(palette(), transparency=1),
            "one colour": lambda: png(Image.new("RGB", (400, 200), (1, 2, 3)), transparency=(1, 2, 3)),
        }[kind]()
        url = site.picture_of(source)
        for query in ("size=160&format=", "format="):
            for format_ in ("png", "webp"):
                assert opened(site.get(f"{url}?{query}{format_}")).convert("RGBA").getpixel((80, 40))[3] == 0
            opaque = opened(site.get(f"{url}?{query}jpeg"))
            assert (opaque.mode, opaque.getpixel((80, 40))) == ("RGB", (255, 255, 255))

    @pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
    def test_a_jpeg_stays_one_unless_asked_otherwise(self, site: Site, mode: str) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (400, 200), (90, 90, 90)).convert(mode).save(buffer, "JPEG", quality=95, comment=b"a secret")
        url = site.picture_of(buffer.getvalue(), "jpg")
        assert site.get(url).data == buffer.getvalue()
        kept = site.get(f"{url}?size=320")
        assert kept.mimetype == "image/jpeg"
        assert b"a secret" not in kept.data
        for query in ("size=320", "size=320&format=png", "format=webp"):
            image = opened(site.get(f"{url}?{query}"))
            assert image.mode == "RGB"
            assert near(image.getpixel((80, 40)), (90, 90, 90))

    def test_a_webp_stays_one(self, site: Site) -> None:
        buffer = io.BytesIO()
        Image.new("RGBA", (400, 200), (10, 200, 30, 255)).save(buffer, "WEBP")
        answer = site.get(f"{site.picture_of(buffer.getvalue(), 'webp')}?size=160")
        assert (answer.mimetype, opened(answer).size) == ("image/webp", (160, 80))

    def test_colours_of_a_profile_become_srgb(self, site: Site) -> None:
        data = png(Image.new("RGB", (400, 200), (200, 100, 50)), icc_profile=profiles.rgb())
        image = opened(site.get(f"{site.picture_of(data)}?size=160"))
        assert "icc_profile" not in image.info
        # Display P3 (200, 100, 50) by the matrices of CSS Color 4.
        assert near(image.getpixel((80, 40)), (215, 93, 31), by=3)

    def test_a_long_thin_picture_keeps_a_pixel(self, site: Site) -> None:
        url = site.picture_of(png(Image.new("RGB", (3000, 2), "navy")))
        assert opened(site.get(f"{url}?size=160")).size == (160, 1)

    def test_a_side_that_a_format_cannot_have_is_refused_by_name(self, site: Site) -> None:
        url = site.picture_of(png(Image.new("1", (16384, 1))))
        refused = site.get(f"{url}?format=webp")
        assert (refused.status_code, list(refused.json["errors"])) == (422, ["format"])
        assert opened(site.get(f"{url}?format=png")).size == (16384, 1)
        assert opened(site.get(f"{url}?format=webp&size=160")).size == (160, 1)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"no picture",
            png(Image.new("RGB", (64, 64)))[:-30],
            png(Image.effect_noise((64, 64), 90)).replace(b"IDAT", b"IDAT\xff", 1),
            # A header that says 60000 × 60000.
            png(Image.new("L", (1, 1))).replace(
                struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
            ),
        ],
        ids=["empty", "text", "truncated", "changed", "huge"],
    )
    def test_a_damaged_picture_is_told_so(self, site: Site, data: bytes) -> None:
        fixed = bytearray(data)
        place = data.find(b"IHDR")
        if place > 0:
            fixed[place + 17 : place + 21] = struct.pack(">I", zlib.crc32(data[place : place + 17]))
        url = site.picture_of(bytes(fixed))
        before = site.variants()
        for _ in range(2):
            answer = site.get(f"{url}?size=160")
            assert (answer.status_code, answer.json["type"]) == (500, "file-damaged")
            assert "/" not in answer.json["detail"]
        assert site.variants() == before

    def test_a_picture_whose_file_is_gone_has_no_variant_even_if_there_was_one(self, site: Site) -> None:
        url = site.url()
        assert site.get(f"{url}?size=160").status_code == 200
        site.find(url.rpartition("/")[2]).unlink()
        for query in ("?size=160", "?size=320", ""):
            answer = site.get(url + query)
            assert (answer.status_code, answer.json["type"]) == (404, "file-missing")


def at_once(count: int, call: Callable[[], Any]) -> list[Any]:
    """The results of that many threads that call at the same moment."""
    gate = threading.Barrier(count)

    def run() -> Any:
        gate.wait(30)
        return call()

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(count)]]


def blocked_on(file: int) -> bool:
    """Whether somebody waits for the lock on an open file (proc_locks(5))."""
    number = os.fstat(file).st_ino
    return any(
        f":{number} " in line and "-> FLOCK" in line for line in Path("/proc/locks").read_text("ascii").splitlines()
    )


class TestMadeOnce:
    def test_by_all_who_ask_at_the_same_moment(self, make: Callable[..., Site]) -> None:
        site = make()
        url = f"{site.url(width=512, height=512)}?size=160&format=webp"
        answers = at_once(16, lambda: site.get(url))
        assert {answer.status_code for answer in answers} == {200}
        # The tag holds the time of making, and the count goes up with each making.
        assert len({answer.headers["ETag"] for answer in answers}) == len({answer.data for answer in answers}) == 1
        [kept] = site.variants()
        assert kept.read_bytes() == answers[0].data
        assert site.room() == taken([kept])

    def test_whoever_waited_for_a_picture_that_is_deleted_meanwhile_finds_none(self, site: Site) -> None:
        url = site.url()
        with site.find(url.rpartition("/")[2]).open("rb") as source, ThreadPoolExecutor(1) as pool:
            fcntl.flock(source, fcntl.LOCK_EX)
            answer = pool.submit(site.get, f"{url}?size=160")
            until(lambda: blocked_on(source.fileno()), "the request waits for the lock")
            assert site.client.delete(url.replace("/get_images/", "/delete/")).status_code == 200
            fcntl.flock(source, fcntl.LOCK_UN)
            assert answer.result().json["type"] == "file-missing"
        assert not [path for path in site.variants() if url.rpartition("/")[2] in path.name]


class TestGoneWithThePicture:
    def variants_of(self, site: Site, url: str) -> list[str]:
        return [path.name for path in site.variants() if url.rpartition("/")[2] in path.name]

    def make_all(self, site: Site, url: str) -> None:
        for query in ("size=160", "size=160&format=webp", "size=320&format=jpeg", "format=jpeg", "format=png"):
            assert site.get(f"{url}?{query}").status_code == 200

    def test_a_deleted_record_leaves_nothing(self, make: Callable[..., Site]) -> None:
        site = make()
        job = site.job("img2img", batch_size=2)
        urls = [entry["url"] for entry in (*job["images"], job["init_image"])]
        for url in urls:
            self.make_all(site, url)
        assert (len(site.variants()), site.room()) == (15, taken(site.variants()))
        # Left by a process that was killed while it wrote.
        left = site.variants()[0]
        left.with_name(f".{left.name}.tmp").write_bytes(b"half")
        assert site.client.delete(f"/delete/{USER}/img2img/{job['name']}").status_code == 200
        assert (site.variants(), site.folders()) == ([], [])
        assert site.room() == 0
        assert {site.get(f"{url}?size=160").json["type"] for url in urls} == {"job-not-found"}

    def test_a_deleted_picture_leaves_those_of_the_others(self, site: Site) -> None:
        one, other = (image["url"] for image in site.job(batch_size=2)["images"])
        self.make_all(site, one)
        self.make_all(site, other)
        assert site.client.delete(one.replace("/get_images/", "/delete/")).status_code == 200
        assert self.variants_of(site, one) == []
        assert len(self.variants_of(site, other)) == 5

    def test_variants_in_sizes_of_earlier_settings_go_too(self, site: Site) -> None:
        url = site.url()
        assert site.get(f"{url}?size=160").status_code == 200
        [kept] = [path for path in site.variants() if url.rpartition("/")[2] in path.name]
        earlier = Path(str(kept).replace("/160/", "/96/"))
        earlier.parent.mkdir(parents=True)
        kept.rename(earlier)
        assert site.client.delete(url.replace("/get_images/", "/delete/")).status_code == 200
        assert not earlier.parents[2].exists()

    def test_a_removal_that_was_cut_short_is_finished(self, site: Site) -> None:
        """The process was killed when the picture was gone and its variants were not."""
        job = site.job()
        url = job["images"][0]["url"]
        self.make_all(site, url)
        site.services.table.deletion.delete(USER, "txt2img", job["name"])
        site.find(url.rpartition("/")[2]).unlink()
        assert site.services.archive.tidy() == 1
        assert self.variants_of(site, url) == []


class TestRoom:
    def used(self, site: Site, url: str, minutes_ago: float) -> Path:
        """The file of a thumbnail, as if it was used last so long ago."""
        assert site.get(f"{url}?size=160&format=webp").status_code == 200
        [path] = [path for path in site.variants() if url.rpartition("/")[2] in path.name]
        then = time.time() - minutes_ago * MINUTE
        os.utime(path, (then, path.stat().st_mtime))
        return path

    def test_those_used_longest_ago_go_first_and_the_bound_holds(self, make: Callable[..., Site]) -> None:
        site = make(SDG_VARIANT_CACHE_MB="1")
        noise = png(Image.effect_noise((900, 900), 90).convert("RGB"))
        old, oldest, fresh = (site.url(seed=str(seed)) for seed in range(3))
        paths = [self.used(site, url, ago) for url, ago in ((old, 30), (oldest, 60), (fresh, 0))]
        last: Path | None = None
        for _ in range(10):
            url = site.picture_of(noise)
            assert site.get(f"{url}?size=320&format=png").status_code == 200
            until(lambda: site.room() == taken(site.variants()) <= 2**20, "room is made")
            [newest] = [path for path in site.variants() if url.rpartition("/")[2] in path.name]
            if not paths[1].exists():
                break
            os.utime(newest, (time.time() - 10 * MINUTE,) * 2)
            last = newest
        assert [path.exists() for path in paths] == [False, False, True]
        assert last is not None
        # It is made anew.
        assert site.get(f"{oldest}?size=160&format=webp").status_code == 200

    def test_serving_notes_the_use(self, site: Site) -> None:
        url = site.url()
        path = self.used(site, url, minutes_ago=300)
        before = path.stat()
        first = site.get(f"{url}?size=160&format=webp")
        after = path.stat()
        assert time.time() - after.st_atime < MINUTE
        assert after.st_mtime_ns == before.st_mtime_ns
        assert site.get(f"{url}?size=160&format=webp").headers["ETag"] == first.headers["ETag"]

    def test_what_takes_most_of_the_room_is_sent_and_not_kept(self, make: Callable[..., Site]) -> None:
        site = make(SDG_VARIANT_CACHE_MB="1")
        url = site.picture_of(png(Image.effect_noise((900, 900), 90)))
        for _ in range(2):
            answer = site.get(f"{url}?format=png")
            assert opened(answer).size == (900, 900)
            assert site.get(f"{url}?format=png", Range="bytes=0-7").data == answer.data[:8]
        assert site.variants() == []

    def test_a_lost_count_is_put_right(self, site: Site) -> None:
        assert site.get(f"{site.url()}?size=160").status_code == 200
        (site.data / ".variants" / ".room").write_text("nonsense")
        assert site.get(f"{site.url()}?size=160").status_code == 200
        until(lambda: site.room() == taken(site.variants()), "the count is right")


class TestWhereNothingCanBeKept:
    def test_a_folder_that_cannot_be_made(self, make: Callable[..., Site], caplog: pytest.LogCaptureFixture) -> None:
        site = make()
        (site.data / ".variants").write_bytes(b"")
        url = f"{site.url(width=512)}?size=160&format=webp"
        first, second = site.get(url), site.get(url)
        assert opened(first).size == (160, 20)
        assert first.data == second.data
        with site.client.head(url) as head:
            assert head.headers["Content-Length"] == str(len(first.data))
        ranged = site.get(url, Range="bytes=3-9")
        assert (ranged.status_code, ranged.data) == (206, first.data[3:10])
        assert "a variant of a picture can't be kept" in caplog.text
        assert site.client.delete(url.partition("?")[0].replace("/get_images/", "/delete/")).status_code == 200

    def test_a_link_is_not_followed(self, make: Callable[..., Site], tmp_path: Path) -> None:
        site = make()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (site.data / ".variants").symlink_to(elsewhere)
        url = site.url()
        for _ in range(2):
            assert opened(site.get(f"{url}?size=160")).size == (64, 64)
        assert site.services.maintenance.sweep().problems == []
        assert site.client.delete(url.replace("/get_images/", "/delete/")).status_code == 200
        assert list(elsewhere.iterdir()) == []

    def test_a_full_disk(self, make: Callable[..., Site], disk: Path) -> None:
        site = make(disk / "data")
        url = site.url(width=512, height=512)
        kept = site.get(f"{url}?size=160")
        ballast = fill(disk)
        assert site.get(f"{url}?size=160").headers == kept.headers
        for query in ("size=320", "size=160&format=webp", "format=jpeg"):
            assert opened(site.get(f"{url}?{query}")).format
        assert len(site.variants()) == 1
        assert len(site.folders()) == 1
        assert site.client.delete(url.replace("/get_images/", "/delete/")).status_code == 200
        assert (site.variants(), site.folders()) == ([], [])
        ballast.unlink()
        assert site.get(f"{site.url()}?size=160").status_code == 200
        assert len(site.variants()) == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={2 * 2**20}", "tmpfs", folder)
    yield folder
    unmount(folder)


class TestMaintenance:
    def test_sweep_removes_the_variants_of_what_is_gone(self, make: Callable[..., Site]) -> None:
        site = make()
        kept, lost, other = site.url(), site.url(), site.url()
        for url in (kept, lost, other):
            assert site.get(f"{url}?size=160").status_code == 200
            assert site.get(f"{url}?format=webp").status_code == 200
        [of_kept, *_] = [path for path in site.variants() if kept.rpartition("/")[2] in path.name]
        on_its_way = of_kept.with_name(f".{of_kept.name}.tmp")
        left = of_kept.with_name(f".{of_kept.name}.0123abcd.tmp")
        foreign = of_kept.with_name("notes.txt")
        for path in (on_its_way, left, foreign):
            path.write_bytes(b"x")
        os.utime(left, (time.time() - LONG_AGO,) * 2)
        site.find(lost.rpartition("/")[2]).unlink()
        maintenance = site.services.maintenance
        assert maintenance.sweep(dry_run=True).count == 3
        assert len(site.variants()) == 9
        assert maintenance.sweep().count == 3
        assert maintenance.sweep().count == 0
        names = [path.name for path in site.variants()]
        assert len([name for name in names if lost.rpartition("/")[2] in name]) == 0
        assert {on_its_way.name, foreign.name} <= set(names)
        assert left.name not in names
        assert site.room() == taken([path for path in site.variants() if path != foreign])

    def test_verify_and_reindex_take_no_notice(self, make: Callable[..., Site]) -> None:
        site = make()
        for _ in range(2):
            assert site.get(f"{site.url()}?size=160").status_code == 200
        maintenance = site.services.maintenance
        found = maintenance.verify()
        assert (found.count, found.problems) == (2, [])
        found = maintenance.reindex()
        assert (found.count, found.problems) == (0, [])
        assert maintenance.sweep().count == 0
