"""The JSON of a body, read strictly and within bounds.

The bounds are checked on the bytes, before anything is made of them: ``[],[],…`` takes a hundred times its length as Python's
lists, and building them would keep every other thread of the process waiting. A search for a byte costs some 0.1 ms a megabyte.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Final, NoReturn

from app.api.http.refusals import InvalidJson
from app.problems import shown

#: The most members of objects and items of lists, counted together and at any depth, in a body. A request has some twenty.
MOST_VALUES: Final = 10_000
#: Objects and lists inside each other. A request has two; Python's own parser gives up at about 900.
MOST_DEPTH: Final = 500
#: Characters of a number. The largest number that a float holds has 309 digits before the point.
LONGEST_NUMBER: Final = 1_000

_OPENING: Final = b"[{"
_BRACKETS: Final = b"[]{}"
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(_BRACKETS))


def parse(body: bytes) -> Any:
    """Read JSON strictly.

    :raises InvalidJson: saying what is wrong and where.
    """
    if not body.strip(b" \t\r\n"):
        raise InvalidJson("The body is empty.")
    _check_bounds(body)
    try:
        text = body.decode("utf-8")
        # A caller that keeps no reference either has it freed here.
        del body
        return json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_int=_integer,
            parse_float=_float,
            object_pairs_hook=_object,
        )
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: see byte {error.start}.") from error
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg}: line {error.lineno} column {error.colno}.") from error
    except RecursionError as error:
        raise InvalidJson("The body is nested too deeply.") from error


def is_finite(number: float) -> bool:
    """Whether a parsed JSON number is one: ``1e999`` is valid JSON that Python reads as infinity."""
    return isinstance(number, int) or math.isfinite(number)


def _check_bounds(body: bytes) -> None:
    """Refuse what holds too many values or is nested too deeply; only the marks outside of strings count.

    A prompt may be full of commas, so a body with many marks is looked at again without its strings.
    """
    if not _holds_more(body, b",[{", MOST_VALUES) and not _holds_more(body, _OPENING, MOST_DEPTH):
        return
    bare = _without_strings(body)
    if _holds_more(bare, b",[{", MOST_VALUES):
        raise _too_many_values()
    if _is_too_deep(bare):
        raise InvalidJson(f"The body is nested more than {MOST_DEPTH} levels deep.")


def _holds_more(text: bytes, marks: bytes, most: int) -> bool:
    """Whether these bytes occur more than ``most`` times; a search stops there, and skips what is between in C."""
    for mark in marks:
        place = text.find(mark)
        while place >= 0:
            most -= 1
            if most < 0:
                return True
            place = text.find(mark, place + 1)
    return False


def _without_strings(body: bytes) -> bytes:
    """The parts of a JSON text outside of its strings.

    :raises InvalidJson: there are more strings than a body may hold values and names.
    """
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    most_quotes = 4 * MOST_VALUES  # two for the value of each member, two for its name
    if _holds_more(unescaped, b'"', most_quotes):
        raise _too_many_values()
    return b"".join(unescaped.split(b'"')[::2])


def _is_too_deep(bare: bytes) -> bool:
    depth = 0
    for bracket in bare.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in _OPENING else -1
        if depth > MOST_DEPTH:
            return True
        if depth <= 0:
            # The end of the text, or a bracket too many, which the parser will find.
            return False
    return False


def _too_many_values() -> InvalidJson:
    return InvalidJson(f"The body holds more than {MOST_VALUES} values.")


def _integer(digits: str) -> int:
    _check_number(digits)
    return int(digits)


def _float(digits: str) -> float:
    _check_number(digits)
    return float(digits)


def _check_number(digits: str) -> None:
    if len(digits) > LONGEST_NUMBER:
        raise InvalidJson("The body holds a number of too many digits.")


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is no JSON value.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose members are all different; of two with one name nobody knows which was meant."""
    members = dict(pairs)
    if len(members) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidJson(f"The member {shown(twice)} occurs twice in one object.")
    return members
