"""The size that an honest answer of a WebUI can have, so that a broken or hostile one costs neither memory nor time.

A generation's answer is JSON: the pictures in base64, and the same texts several times over (``modules/api/models.py`` and
``Processed.js`` of the WebUI). Both are bounded by what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.runtime import jsontext
from app.webui.errors import BadAnswer

#: Characters that a WebUI may add to the prompts in an infotext: styles, parameters, what extensions write.
TEXT_SLACK: Final = 64 * 1024
#: Values in the JSON of any answer besides its texts: numbers, seeds, parameters.
_MOST_VALUES: Final = 100_000
#: An incompressible PNG with transparency, in base64; twice, for extensions may put their own pictures behind.
_BYTES_PER_PIXEL: Final = 2 * 4 * 4 / 3
#: A character outside of Unicode's first plane as two escapes inside a JSON string inside a JSON string.
_BYTES_PER_CHARACTER: Final = 14
_HEADROOM: Final = 2**20
_LONGEST_NAME: Final = 255
#: Of a name on a list; those of models are paths.
_LONGEST_LISTED: Final = 4096
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class AnswerBounds:
    """The bounds of the answer to one generation.

    ``size`` is in bytes of the body; ``values`` counts what JSON brackets and commas can make of it; ``infotext`` is in bytes
    of UTF-8.
    """

    size: int
    values: int
    infotext: int

    def parse(self, text: str | bytes) -> Any:
        """Read JSON that came from a WebUI.

        :raises BadAnswer: it is none, or would unpack into more values than the answer can have.
        """
        return parse(text, self.values)

    def cut(self, infotext: str) -> str:
        """The infotext, cut at the bound."""
        # Most are far shorter: no character takes more than four bytes.
        if len(infotext) * 4 <= self.infotext:
            return infotext
        data = infotext.encode("utf-8", "surrogatepass")
        return infotext if len(data) <= self.infotext else data[: self.infotext].decode("utf-8", "ignore")


def of_generation(args: Mapping[str, Any], *, scale: float = 1.0) -> AnswerBounds:
    """The bounds of the answer to a job with these ``args``; ``scale`` is the factor by which its pictures are enlarged."""
    pictures = args["batch_size"]
    pixels = args["width"] * args["height"] * scale**2 * pictures
    texts = args["prompt"] + args["negative_prompt"]
    characters = len(texts) + TEXT_SLACK
    # Per picture its prompts and its infotext, which its file holds again; and both in the echo of the request.
    copies = 3 * pictures + 4
    return AnswerBounds(
        size=int(pixels * _BYTES_PER_PIXEL) + copies * characters * _BYTES_PER_CHARACTER + _HEADROOM,
        values=_MOST_VALUES + copies * characters,
        infotext=len(texts.encode("utf-8", "surrogatepass")) + TEXT_SLACK,
    )


#: Of the picture that only has a model loaded; it is not sent.
OF_PROBE: Final = AnswerBounds(size=_HEADROOM, values=_MOST_VALUES, infotext=TEXT_SLACK)


def parse(text: str | bytes, most_values: int = _MOST_VALUES) -> Any:
    """Read JSON that came from a WebUI; ``[],[],…`` would take a hundred times its length as Python's lists.

    :raises BadAnswer: it is none, or would unpack into more than ``most_values`` values.
    """
    if _values(text) > most_values:
        raise BadAnswer
    try:
        return jsontext.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadAnswer from error


def _values(text: str | bytes) -> int:
    """At least as many as the values that this JSON holds; texts inside it may hold marks too."""
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{") + text.count(b",")
    return text.count("[") + text.count("{") + text.count(",")


def is_name(value: object) -> bool:
    """Whether a WebUI's text can be a name: no client can ask for one with unpaired surrogates, nor any database hold it."""
    return isinstance(value, str) and len(value) <= _LONGEST_LISTED and _SURROGATE.search(value) is None


def name(value: object) -> str | None:
    """A name that a WebUI tells of itself, cut where it is too long to be one; None for what is no text."""
    return value[:_LONGEST_NAME] if isinstance(value, str) else None
