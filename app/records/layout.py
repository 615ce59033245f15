r"""Names of records and their files, and the folders they lie in. Pure text: nothing here touches a disk.

::

    <data>/.sd-gateway-id                                                              the id that the database carries too
    <data>/<user folder>/<type>/<YYYY-MM-DD>/<name>-<attempt>-<index>.(png|jpg|webp)   an image
                                             <name>-<attempt>.json                     the parameter document
                                             <name>-init.png                           the reference image
                                             .<any of these>.tmp                       one of these while it is written
    <data>/.variants/<size>|whole/<user folder>/<type>/<YYYY-MM-DD>/<file name of an image>.(png|jpg|webp)   a variant of that image

A name is the UTC time of acceptance to the millisecond and 8 random hex digits, ``20261122T061530123-9f2c4e7a``: names sort by
time, and each says its own day folder. Every file has exactly one spelling (no leading zeros, ASCII only), so that comparing
names compares files. So has its temporary file, so that what a crash left of a record is found without listing its folder. Versions
before put 8 hex digits before ``.tmp``; so does a writer that finds the usual name taken.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from random import Random
from types import MappingProxyType
from typing import Literal, NamedTuple

#: The file of the data folder's id; like every hidden file beside the user folders it is no file of a record.
ID_FILE = ".sd-gateway-id"
#: Of pictures, by the extensions of their file names.
MEDIA_TYPES: Mapping[str, str] = MappingProxyType({"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"})
EXTENSIONS = tuple(MEDIA_TYPES)
#: The folder of variants; like every hidden one it holds no file of a record.
VARIANTS = ".variants"
#: The member ``format`` of a parameter document.
DOCUMENT_FORMAT = 1

#: What follows a record's name in the name of its reference image.
INIT_SUFFIX = "-init.png"

#: Regular expressions of the names, which JSON Schema and JavaScript read as Python does.
NAME_PATTERN = (
    r"[0-9]{4}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
    r"T(?:[01][0-9]|2[0-3])[0-5][0-9][0-5][0-9][0-9]{3}-[0-9a-f]{8}"
)
_ATTEMPT = r"[1-9][0-9]{0,8}"
_INDEX = r"0|[1-9][0-9]{0,4}"
_IMAGE = "|".join(EXTENSIONS)
_INIT = INIT_SUFFIX.replace(".", r"\.")
#: A record's name, or the name of one of its files.
FILENAME_PATTERN = rf"{NAME_PATTERN}(?:-{_ATTEMPT}(?:-(?:{_INDEX})\.(?:{_IMAGE})|\.json)|{_INIT})?"
_FILE = re.compile(
    rf"(?P<name>{NAME_PATTERN})"
    rf"(?:-(?:(?P<attempt>{_ATTEMPT})(?:-(?P<index>{_INDEX})\.(?P<image>{_IMAGE})|\.(?P<document>json))"
    r"|init\.(?P<init>png)))?\Z"
)
_TEMPORARY = re.compile(r"\.(?P<filename>.+?)(?:\.[0-9a-f]{8})?\.tmp\Z")
_USER_FOLDER = re.compile(r"[a-z0-9_]{0,24}-[0-9a-f]{16}\Z")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_SIZE_FOLDER = re.compile(r"(?:[1-9][0-9]{0,4}|whole)\Z")
_NOT_READABLE = re.compile(r"[^A-Za-z0-9_]+")

Kind = Literal["record", "image", "document", "init"]


@dataclass(frozen=True, slots=True)
class FileName:
    """A file name taken apart. ``record`` is a bare name, which stands for a whole record and is no file.

    ``attempt`` is set for images and documents, ``index`` (from 0) for images, ``extension`` (no dot) for every file.
    """

    name: str
    kind: Kind
    attempt: int | None = None
    index: int | None = None
    extension: str | None = None


class Variant(NamedTuple):
    """What an image is asked for as: its longest side in pixels, None for its own size; and one of :data:`EXTENSIONS`."""

    size: int | None
    extension: str

    @property
    def folder(self) -> str:
        """The folder of all variants of this size."""
        return "whole" if self.size is None else str(self.size)

    def filename(self, image: str) -> str:
        """The file name of this variant of an image; it keeps the whole name of that, so that it tells whose variant it is."""
        return f"{image}.{self.extension}"

    def shown_filename(self, image: str) -> str:
        """The file name under which a client saves it."""
        stem = image.rpartition(".")[0]
        return f"{stem}.{self.extension}" if self.size is None else f"{stem}-{self.size}.{self.extension}"


def new_name(now_ms: int, random: Random) -> str:
    """Draw the name of a record.

    :param now_ms: milliseconds since the epoch.
    :param random: ``secrets.SystemRandom()`` in production, a seeded one in tests.
    """
    seconds, milliseconds = divmod(now_ms, 1000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{milliseconds:03d}-{random.getrandbits(32):08x}"


def parse_filename(text: str) -> FileName | None:
    """Take a file name or a bare record name apart; ``None`` for everything that the gateway does not name so."""
    match = _FILE.match(text)
    if match is None:
        return None
    name, attempt, index, image, document, init = match.group("name", "attempt", "index", "image", "document", "init")
    if image:
        return FileName(name, "image", int(attempt), int(index), image)
    if document:
        return FileName(name, "document", int(attempt), None, document)
    return FileName(name, "init", extension=init) if init else FileName(name, "record")


def image_filename(name: str, attempt: int, index: int, extension: str) -> str:
    """The file name of an image; raises ``ValueError`` when the parts make none."""
    return _checked(f"{name}-{attempt}-{index}.{extension}", "image")


def document_filename(name: str, attempt: int) -> str:
    """The file name of a parameter document; raises ``ValueError`` when the parts make none."""
    return _checked(f"{name}-{attempt}.json", "document")


def init_filename(name: str) -> str:
    """The file name of a reference image; raises ``ValueError`` when ``name`` is no record name."""
    return _checked(name + INIT_SUFFIX, "init")


def filenames_of(name: str, attempts: Iterable[int], images: int) -> list[str]:
    """Every file name that these attempts can have given, the documents first.

    :param images: how many pictures an attempt makes at most.
    """
    tried = list(attempts)
    documents = [f"{name}-{attempt}.json" for attempt in tried]
    return documents + [image for attempt in tried for image in image_filenames(name, attempt, images)]


def image_filenames(name: str, attempt: int, images: int) -> list[str]:
    """Every name that the pictures of one attempt can have, in each format."""
    return [f"{name}-{attempt}-{index}.{extension}" for index in range(images) for extension in EXTENSIONS]


def variant_filenames(image: str) -> list[str]:
    """Every file name that the variants of one size of an image can have, temporary ones included."""
    finished = [f"{image}.{extension}" for extension in EXTENSIONS]
    return [*finished, *map(temporary_filename, finished)]


def is_image(text: str) -> bool:
    """Whether a text is the file name of an image of a record, or of a reference image."""
    parsed = parse_filename(text)
    return parsed is not None and parsed.kind in ("image", "init")


def image_of_variant(text: str) -> str | None:
    """The image whose variant a file is, or is about to become; ``None`` for what is no such file of ours."""
    match = _TEMPORARY.match(text)
    image, _, extension = (match["filename"] if match else text).rpartition(".")
    return image if extension in EXTENSIONS and is_image(image) else None


def _checked(filename: str, kind: Kind) -> str:
    parsed = parse_filename(filename)
    if parsed is None or parsed.kind != kind:
        raise ValueError(f"{filename!r} is no file name of the kind {kind}")
    return filename


def temporary_filename(filename: str) -> str:
    """The hidden name of a file on its way to ``filename``."""
    return f".{filename}.tmp"


def fresh_temporary_filename(filename: str) -> str:
    """Another one, which no other writer uses, for the case that the usual one is taken."""
    return f".{filename}.{secrets.token_hex(4)}.tmp"


def parse_temporary(text: str) -> FileName | None:
    """The file that a temporary one was about to become; ``None`` for what is no temporary name of ours."""
    match = _TEMPORARY.match(text)
    target = parse_filename(match["filename"]) if match else None
    return None if target is None or target.kind == "record" else target


@lru_cache(4096)
def user_folder(user_id: str) -> str:
    """The folder of a user: what is readable of the id for people, and a hash that tells ids apart.

    Raises ``UnicodeEncodeError`` (a ``ValueError``) for an unpaired surrogate, which no accepted id contains.
    """
    readable = _NOT_READABLE.sub("", user_id).lower()[:24]
    return f"{readable}-{hashlib.sha256(user_id.encode('utf-8')).hexdigest()[:16]}"


def day_of(name: str) -> str:
    """The day folder of a record name, ``YYYY-MM-DD``."""
    return f"{name[:4]}-{name[4:6]}-{name[6:8]}"


def is_user_folder(text: str) -> bool:
    """Whether a folder's name could have come from :func:`user_folder`."""
    return _USER_FOLDER.match(text) is not None


def is_size_folder(text: str) -> bool:
    """Whether a folder's name could have come from :attr:`Variant.folder`."""
    return _SIZE_FOLDER.match(text) is not None


def is_day(text: str) -> bool:
    """Whether a folder's name could have come from :func:`day_of`."""
    return _DAY.match(text) is not None
