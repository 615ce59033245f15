"""The options of a WebUI that the gateway overrides beside the model, and how they are put back.

``override_settings`` with ``restore_afterwards: false`` stays in the WebUI's memory, and whoever saves its settings there
writes it to config.json. So ``enable_prompt_comments``, with which a WebUI cuts a prompt at each ``#``, is overridden only for
prompts that hold one, and the next generation without one puts it back. ``samples_format`` has to stay: WebUIs encode the
pictures after restoring the options.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from app.webui.failures import says_nothing, unknown_option

#: The format that WebUIs send in: every one can, none of its quality settings matters, and all metadata has its place.
SAMPLES_FORMAT: Final = "samples_format"
PROMPT_COMMENTS: Final = "enable_prompt_comments"
#: From here to the end of its line a WebUI cuts a prompt.
COMMENT: Final = "#"
_DEFAULTS: Final = {PROMPT_COMMENTS: True}


class OptionOverrides:
    """The options that are overridden in one WebUI, and those to be put back there. Safe under threads.

    :param stored: the JSON that ``keep`` was called with last, by this process or an earlier one; None for nothing.
    :param keep: called with what is to be put back, as JSON, before an override is sent, and with None when nothing is left to
        put back.
    """

    def __init__(self, stored: str | None, keep: Callable[[str | None], None]) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        #: The values that overridden options had.
        self._before: dict[str, Any] = json.loads(stored) if stored else {}
        #: The values that were put back, until the WebUI's options are seen to show them.
        self._put_back: dict[str, Any] = {}
        self._unknown: set[str] = set()
        #: Options without which a generation worked after it had failed with them, for reasons that were not told.
        self._suspected: set[str] = set()

    def learn(self, stored: str | None) -> None:
        """Take over what another worker of this WebUI overrode and has not put back."""
        with self._lock:
            if stored and not self._before:
                self._before = json.loads(stored)

    def own_value(self, shown: bool | None) -> bool | None:
        """The WebUI's own ``enable_prompt_comments``, where its options show ``shown``: they may show an override."""
        with self._lock:
            value: bool | None = self._before.get(PROMPT_COMMENTS, shown)
            return value

    def of(self, prompts: Iterable[str], shown: bool | None) -> dict[str, Any]:
        """The options for a generation with these prompts.

        :param shown: the value of ``enable_prompt_comments`` that the WebUI's options showed last; None where they show none.
        """
        with self._lock:
            shown = self._true_value(shown)
            options: dict[str, Any] = {SAMPLES_FORMAT: "png"}
            if any(COMMENT in prompt for prompt in prompts):
                options[PROMPT_COMMENTS] = False
                self._note(shown)
            elif PROMPT_COMMENTS in self._before:
                options[PROMPT_COMMENTS] = self._before[PROMPT_COMMENTS]
            return {option: value for option, value in options.items() if option not in self._unknown}

    def _true_value(self, shown: bool | None) -> bool | None:
        """The values that the WebUI's options would show now: they may have been read last while our own override stood."""
        if shown is not False:
            self._put_back.clear()
        return self._put_back.get(PROMPT_COMMENTS, shown)

    def _note(self, shown: bool | None) -> None:
        if PROMPT_COMMENTS not in self._before and PROMPT_COMMENTS not in self._unknown:
            before = {**self._before, PROMPT_COMMENTS: _DEFAULTS[PROMPT_COMMENTS] if shown is None else shown}
            self._keep(json.dumps(before))
            self._before = before

    def answered(self, options: Mapping[str, Any], *, ok: bool) -> None:
        """A generation with these options was answered; ``ok`` means with a 200."""
        with self._lock:
            if ok:
                self._suspected -= options.keys()
            if ok and options.get(PROMPT_COMMENTS) == self._before.get(PROMPT_COMMENTS, ...):
                self._put_back[PROMPT_COMMENTS] = self._before.pop(PROMPT_COMMENTS)
                self._keep(None)

    def refused(self, options: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, Any] | None:
        """The options to send instead, where a generation with these options failed because the WebUI does not know one of them.

        Where the error says nothing at all, the prompts' option is left out once; see :meth:`seems_unknown`.

        :param error: the JSON object of a 500.
        """
        option = unknown_option(error, options)
        if option is not None:
            self.is_unknown(option)
        elif PROMPT_COMMENTS in options and says_nothing(error):
            option = PROMPT_COMMENTS
        return None if option is None else {name: value for name, value in options.items() if name != option}

    def is_unknown(self, option: str) -> None:
        """The WebUI does not know this option: it is not sent there again until the WebUI was down."""
        with self._lock:
            self._unknown.add(option)
            if self._before.pop(option, None) is not None:
                self._keep(None)

    def seems_unknown(self, option: str) -> None:
        """A generation worked without this option after one with it had failed for a reason that was not told.

        Once may be chance; and an override that was applied before the failure would keep the prompt whole, too.
        """
        with self._lock:
            chance = option not in self._suspected
            self._suspected.add(option)
        if not chance:
            self.is_unknown(option)

    def is_known(self, option: str) -> None:
        """The WebUI does heed this option."""
        with self._lock:
            self._unknown.discard(option)

    def forget(self) -> None:
        """The WebUI was down: it comes back with its own options, and perhaps as another version."""
        with self._lock:
            self._unknown.clear()
            self._suspected.clear()
            self._put_back.clear()
            if self._before:
                self._before.clear()
                self._keep(None)
