"""The query of a picture: ``?size=``, ``?format=`` and ``?download=``.

Read by hand, for a schema would cost more than everything else that a small picture needs. What it does not know it ignores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from flask import Request
from werkzeug.datastructures import MultiDict

from app.api.http.refusals import ValidationFailed

#: The words of ``format``, each with the extension of its files.
_EXTENSIONS: Final[Mapping[str, str]] = MappingProxyType({"webp": "webp", "jpeg": "jpg", "png": "png"})
_SWITCH: Final[Mapping[str, bool]] = MappingProxyType({"true": True, "false": False})
_NAMES: Final = frozenset(("size", "format", "download"))
#: Characters of a query that comes again and again, and is remembered: one without a signature.
_SHORT: Final = 64


class Asked(NamedTuple):
    """The picture that is wanted: its longest side in pixels, its format by the extension of its files; None for what it has."""

    size: int | None = None
    extension: str | None = None
    download: bool = False

    @property
    def is_variant(self) -> bool:
        """Whether it is another file than the stored one."""
        return self.size is not None or self.extension is not None


_AS_STORED: Final = Asked()


class PictureQuery:
    """Reads the query of a picture.

    :param sizes: the longest sides that may be asked for.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = tuple(sizes)

    def read(self, request: Request) -> Asked:
        """The query of a request.

        :raises ValidationFailed: a value is none that may be asked for, or stands there twice.
        """
        query: str = request.environ.get("QUERY_STRING", "")
        if not query:
            return _AS_STORED
        return _read_again(self._sizes, query) if len(query) <= _SHORT else self.parse(request.args)

    def parse(self, query: MultiDict[str, str]) -> Asked:
        """The same of a query that is no request's."""
        return _read(self._sizes, query)

    def documented(self) -> tuple[Mapping[str, Any], ...]:
        """The parameters for the OpenAPI document."""
        schemas: Mapping[str, tuple[Mapping[str, Any], str]] = {
            "size": (
                {"type": "integer", "enum": list(self._sizes)},
                "The longest side in pixels. A picture is never enlarged.",
            ),
            "format": (
                {"type": "string", "enum": list(_EXTENSIONS)},
                "The format; by default that of the stored file. With `size` or `format` the picture has no metadata.",
            ),
            "download": (
                {"type": "boolean"},
                "`true`: a browser saves the picture instead of showing it.",
            ),
        }
        return tuple(
            {"in": "query", "name": name, "schema": schema, "description": description}
            for name, (schema, description) in schemas.items()
        )


@lru_cache(1024)
def _read_again(sizes: tuple[int, ...], query: str) -> Asked:
    return _read(sizes, MultiDict(parse_qsl(query, keep_blank_values=True)))


def _read(sizes: tuple[int, ...], query: MultiDict[str, str]) -> Asked:
    if _NAMES.isdisjoint(query):
        return _AS_STORED
    accepted: Mapping[str, Mapping[str, Any]] = {
        # Each by its one spelling, so that a signature and a cache see one URL for one picture.
        "size": {str(size): size for size in sizes},
        "format": _EXTENSIONS,
        "download": _SWITCH,
    }
    found: dict[str, Any] = {}
    errors: dict[str, list[str]] = {}
    for name, values in accepted.items():
        given = query.getlist(name)
        if len(given) > 1:
            errors[name] = ["Must be given only once."]
        elif given and given[0] not in values:
            errors[name] = [f"Must be one of {', '.join(values)}."]
        elif given:
            found[name] = values[given[0]]
    if errors:
        raise ValidationFailed(errors)
    return Asked(found.get("size"), found.get("format"), found.get("download", False))
