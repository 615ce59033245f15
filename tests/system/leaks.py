"""Secrets and prompts in the logs of a test run: what the harness has started, sent and been given is remembered here.

At the end of a session every log of every process is searched (:func:`tests.conftest.no_secret_is_logged`). Tokens, signatures,
sessions and credentials of URLs are found by their form, whoever made them; prompts, and secrets without a form, because the
harness has noted them when it sent or set them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

#: Not what redaction leaves, which ends with "…" (or its escape in JSON).
FORMS = {
    "a token": re.compile(r"sdg_[0-9A-Za-z]{8}_[0-9A-Za-z]{8,}"),
    "a signature": re.compile(r"\bsig=(?!…|\\u2026|%E2%80%A6)[^&\s\"']{4,}"),
    "a session": re.compile(r"\bsdg_session=(?!…|\\u2026)[^;\s\"']{4,}"),
    "credentials of a URL": re.compile(r"://(?!…|\\u2026)[^/\s\"'<>@]+@"),
    "an Authorization": re.compile(r"(?i)\bauthorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+(?!…|\\u2026)\w{4,}"),
}
#: Shorter ones stand in logs by chance.
_SHORTEST = 8
_PROMPTS = ("prompt", "negative_prompt")


class Watch:
    """The logs of one session, and what must not stand in them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: set[Path] = set()
        self._texts: list[tuple[str, str]] = []
        self._secrets: set[str] = set()

    def log(self, path: Path) -> None:
        """Search this file at the end."""
        with self._lock:
            self._logs.add(path)

    def output(self, name: str, text: str) -> None:
        """Search this text now, which a program has written to standard error."""
        with self._lock:
            self._texts.append((name, text))

    def sent(self, body: Any) -> None:
        """Note the prompts of a body."""
        if isinstance(body, dict):
            self._note(body[name] for name in _PROMPTS if isinstance(body.get(name), str))

    def settings(self, environ: Mapping[str, str]) -> None:
        """Note the passwords and keys of a program's settings."""
        for url in (*environ.get("SDG_WEBUI_URLS", "").split(","), environ.get("SDG_DATABASE_URL", "")):
            password = _password(url)
            self._note((password, unquote(password), quote(password, safe="")))
        self._note(part.partition(":")[2] for part in environ.get("SDG_SECRET_KEYS", "").split(","))

    def _note(self, secrets: Iterable[str]) -> None:
        with self._lock:
            self._secrets |= {secret for secret in secrets if len(secret) >= _SHORTEST and not secret.isspace()}

    def leaks(self) -> list[str]:
        """Each line with something that must not stand there, with the place."""
        with self._lock:
            texts = [(str(path), path.read_text("utf-8", "replace")) for path in sorted(self._logs) if path.exists()]
            texts += self._texts
            secrets = sorted(self._secrets)
        return [f"{name}: {what}: {line[:500]}" for name, text in texts for what, line in _found(text, secrets)]

    def check(self) -> None:
        """Fail where something was found."""
        found = self.leaks()
        assert not found, "secrets or prompts in logs:\n" + "\n".join(found[:20])


def _found(text: str, secrets: Iterable[str]) -> Iterator[tuple[str, str]]:
    present = [secret for secret in secrets if secret in text or ascii(secret)[1:-1] in text]
    for line in text.splitlines():
        for what, form in FORMS.items():
            if form.search(line):
                yield what, line
        for secret in present:
            if secret in line or ascii(secret)[1:-1] in line:
                yield f"what was sent or set, {secret[:40]!r}", line


def _password(url: str) -> str:
    try:
        return urlsplit(url.rpartition("=")[2] if "://" in url.rpartition("=")[2] else url).password or ""
    except ValueError:
        return ""


#: Of the session that runs in this process.
WATCH = Watch()
