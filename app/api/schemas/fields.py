"""Strict marshmallow fields: JSON's own types, nothing converted, nothing guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from marshmallow import ValidationError, fields, validate

from app.api.http import cursor, sign_query
from app.api.http.refusals import ValidationFailed
from app.api.http.strictjson import is_finite
from app.parameters import LARGEST_SEED, LONGEST_USER_ID, USER_ID_PATTERN, user_id_fault

#: How a seed is written, as a string.
SEED_PATTERN = r"^(|-1|0|[1-9][0-9]{0,9})$"
_SEED = re.compile(SEED_PATTERN)
#: Any text without NUL, as JSON Schema says it.
_TEXT_PATTERN = r"^[^\x00]*$"

DEFAULT_PAGE = 50
LARGEST_PAGE = 500

MESSAGES: Mapping[str, str] = MappingProxyType({"required": "This field is required.", "null": "null is not accepted."})


def checked_text(value: object) -> str:
    """A JSON string that can be kept: no database, PNG or UTF-8 text holds NUL or half a surrogate pair.

    :raises ValidationError: it is no string, or holds one of them.
    """
    if not isinstance(value, str):
        raise ValidationError("Must be a string.")
    if "\0" in value:
        raise ValidationError("Must not contain the character NUL.")
    try:
        # ASCII holds none, and encoding a reference image would copy it.
        value.isascii() or value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValidationError("Must not contain an unpaired surrogate.") from error
    return value


def _integer(value: object) -> int | None:
    """A JSON integer, which ``512.0`` is as well (RFC 8259 knows only numbers), or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value) or value != int(value):
        return None
    return int(value)


class _Judged:
    """A field that is loaded by :meth:`judge` alone, which takes the posted value and raises ``ValidationError``."""

    def judge(self, value: Any) -> Any:
        """Load the value."""
        raise NotImplementedError

    def _deserialize(self, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        return self.judge(value)


class Text(_Judged, fields.String):
    """A string of ``shortest`` to ``longest`` characters."""

    def __init__(self, *, longest: int, shortest: int = 0, **kwargs: Any) -> None:
        span = f"{shortest} to {longest}" if shortest else f"at most {longest}"
        self._length = validate.Length(shortest or None, longest, error=f"Must be {span} characters long.")
        metadata = {"pattern": _TEXT_PATTERN} | kwargs.pop("metadata", {})
        super().__init__(validate=self._length, error_messages=dict(MESSAGES), metadata=metadata, **kwargs)

    def judge(self, value: Any) -> str:
        """Load the value."""
        if isinstance(value, str):
            # Before it is looked through, which takes time with megabytes.
            self._length(value)
        return checked_text(value)


class UserId(Text):
    """The id of a user, judged as in a path."""

    def __init__(self, **kwargs: Any) -> None:
        metadata = {"pattern": USER_ID_PATTERN} | kwargs.pop("metadata", {})
        super().__init__(shortest=1, longest=LONGEST_USER_ID, metadata=metadata, **kwargs)

    def judge(self, value: Any) -> str:
        """Load the value."""
        text = super().judge(value)
        fault = user_id_fault(text)
        if fault:
            raise ValidationError(fault)
        return text


class JsonInteger(_Judged, fields.Integer):
    """A JSON integer between two bounds, and a multiple of ``step``; neither a string nor a boolean."""

    def __init__(self, *, lowest: int, highest: int, step: int = 1, **kwargs: Any) -> None:
        self.step = step
        multiple = f"a multiple of {step}" if step > 1 else "an integer"
        self.sentence = f"Must be {multiple} from {lowest} to {highest}."
        bounds = validate.Range(lowest, highest, error=self.sentence)
        metadata = kwargs.pop("metadata", {}) | ({"multipleOf": step} if step > 1 else {})
        super().__init__(validate=bounds, error_messages=dict(MESSAGES), metadata=metadata, **kwargs)

    def judge(self, value: Any) -> int:
        """Load the value."""
        number = _integer(value)
        if number is None or number % self.step:
            raise ValidationError(self.sentence)
        return number


class JsonNumber(_Judged, fields.Float):
    """A JSON number between two bounds; neither a string nor a boolean."""

    def __init__(self, *, lowest: float, highest: float, **kwargs: Any) -> None:
        self.sentence = f"Must be a number from {lowest:g} to {highest:g}."
        bounds = validate.Range(lowest, highest, error=self.sentence)
        super().__init__(validate=bounds, error_messages=dict(MESSAGES), **kwargs)

    def judge(self, value: Any) -> float:
        """Load the value."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValidationError(self.sentence)
        return value


class JsonBoolean(_Judged, fields.Boolean):
    """``true`` or ``false``; neither a number nor a string."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(error_messages=dict(MESSAGES), **kwargs)

    def judge(self, value: Any) -> bool:
        """Load the value."""
        if not isinstance(value, bool):
            raise ValidationError("Must be true or false.")
        return value


class Seed(_Judged, fields.Raw):
    """A seed, kept as the text that was posted: ``""`` or ``"-1"`` for a random one, else its number; an integer too."""

    def __init__(self, **kwargs: Any) -> None:
        spellings = [
            {"type": "string", "pattern": SEED_PATTERN},
            {"type": "integer", "minimum": -1, "maximum": LARGEST_SEED},
        ]
        metadata = kwargs.pop("metadata", {}) | {"oneOf": spellings}
        super().__init__(error_messages=dict(MESSAGES), metadata=metadata, **kwargs)

    def judge(self, value: Any) -> str:
        """Load the value."""
        number = _integer(value)
        text = value if number is None else str(number)
        if isinstance(text, str) and _SEED.fullmatch(text) and int(text or 0) <= LARGEST_SEED:
            return text
        raise ValidationError(
            f'Must be "", "-1" or an integer from 0 to {LARGEST_SEED}, without leading zeros or signs.'
        )


class OneImage(_Judged, fields.Raw):
    """One base64 text, or a list of exactly one; what it holds is judged when it is decoded."""

    def __init__(self, **kwargs: Any) -> None:
        text = {"type": "string", "minLength": 1}
        spellings = [text, {"type": "array", "items": text, "minItems": 1, "maxItems": 1}]
        metadata = kwargs.pop("metadata", {}) | {"oneOf": spellings}
        super().__init__(error_messages=dict(MESSAGES), metadata=metadata, **kwargs)

    def judge(self, value: Any) -> str:
        """Load the value."""
        if isinstance(value, list):
            if len(value) != 1:
                raise ValidationError(f"Must be exactly one image, not {len(value)}.")
            value = value[0]
        text = checked_text(value)
        if not text:
            raise ValidationError("Must not be empty.")
        return text


class Choice(_Judged, fields.String):
    """One of a few words."""

    def __init__(self, words: Sequence[str], **kwargs: Any) -> None:
        one_of = validate.OneOf(words, error=f"Must be one of {', '.join(words)}.")
        super().__init__(validate=one_of, error_messages=dict(MESSAGES), **kwargs)

    def judge(self, value: Any) -> str:
        """Load the value."""
        return checked_text(value)


class PageLimit(_Judged, fields.Integer):
    """The number of jobs on a page, from the query."""

    def judge(self, value: Any) -> int:
        """Load the value."""
        if not re.fullmatch(r"[0-9]{1,9}", value) or not 1 <= int(value) <= LARGEST_PAGE:
            raise ValidationError(f"Must be an integer from 1 to {LARGEST_PAGE}.")
        return int(value)


class SignSeconds(_Judged, fields.Integer):
    """The lifetime of signed URLs, from the query; seconds."""

    def judge(self, value: Any) -> int:
        """Load the value."""
        try:
            return sign_query.parse(value)
        except ValidationFailed as error:
            raise ValidationError(error.errors[sign_query.NAME]) from error


class Cursor(_Judged, fields.String):
    """The start of a page, from the query: the sequence number that the cursor stands for."""

    def judge(self, value: Any) -> Any:
        """Load the value."""
        try:
            return cursor.decode(value)
        except ValueError as error:
            raise ValidationError("Must be the cursor of a next URL, as it was given.") from error


class QueueCursor(_Judged, fields.String):
    """The start of a page of the queue, from the query: the place that the cursor stands for."""

    def judge(self, value: Any) -> Any:
        """Load the value."""
        try:
            return cursor.decode_place(value)
        except ValueError as error:
            raise ValidationError("Must be the cursor of a next URL, as it was given.") from error
