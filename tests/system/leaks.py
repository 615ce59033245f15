"""Secrets and prompts in the logs of a test run: what the harness has started, sent and been given is remembered here.

At the end of a session every log of every process is searched (:func:`tests.conftest.no_secret_is_logged`), and the audit log of
every instance folder. Tokens, signatures, sessions and credentials of URLs are found by their form, whoever made them; prompts,
and secrets without a form, because the harness has noted them when it made a body, sent it, or set them.
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
        self._instances: set[Path] = set()
        self._texts: list[tuple[str, str]] = []
        self._secrets: set[str] = set()

    def log(self, path: Path) -> None:
        """Search this file at the end; it must be there then."""
        with self._lock:
            self._logs.add(path)

    def read_below(self, folder: Path) -> None:
        """Read what was to be searched at the end now: the folder is about to be removed."""
        with self._lock:
            logs = {path for path in self._logs if path.is_relative_to(folder)}
            instances = {path for path in self._instances if path.is_relative_to(folder)}
            self._texts += _texts(logs, instances)
            self._logs -= logs
            self._instances -= instances

    def output(self, name: str, text: str) -> None:
        """Search this text now, which a program has written to standard error."""
        with self._lock:
            self._texts.append((name, text))

    def sent(self, body: Any) -> None:
        """Note the prompts of a body."""
        if isinstance(body, dict):
            self._note(body[name] for name in _PROMPTS if isinstance(body.get(name), str))

    def settings(self, environ: Mapping[str, str]) -> None:
        """Note the passwords and keys of a program's settings, and the folder where its audit log will be, if it writes one."""
        if "SDG_INSTANCE" in environ:
            with self._lock:
                self._instances.add(Path(environ["SDG_INSTANCE"]))
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
            texts = [*_texts(self._logs, self._instances), *self._texts]
            secrets = sorted(self._secrets)
        return [f"{name}: {what}: {line[:500]}" for name, text in texts for what, line in _found(text, secrets)]

    def check(self) -> None:
        """Fail where something was found, or a log can't be searched."""
        with self._lock:
            missing = sorted(str(path) for path in self._logs if not path.exists())
            written = any(path.stat().st_size for path in self._logs if path.exists())
            logs = len(self._logs)
        assert not missing, f"logs were removed before they were searched: {missing[:20]}"
        assert written or not logs, f"none of {logs} logs holds anything"
        found = self.leaks()
        assert not found, "secrets or prompts in logs:\n" + "\n".join(found[:20])


def _texts(logs: Iterable[Path], instances: Iterable[Path]) -> list[tuple[str, str]]:
    """The contents of the logs that there are, and of the audit logs, with the rotated ones."""
    paths = [path for path in logs if path.exists()]
    # A process that changes nothing by a command writes no audit log.
    paths += [path for folder in instances for path in folder.glob("audit.log*") if path.is_file()]
    return [(str(path), path.read_text("utf-8", "replace")) for path in sorted(paths)]


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
