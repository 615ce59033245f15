"""The README's own commands, run against a gateway as ``make run`` starts it, give the answers that it prints.

A ``sh`` block is a command, and a ``json`` or ``text`` block right below it is its answer. In a ``console`` block a line that
begins with ``$ `` is a command, lines that begin with ``> `` continue it, and the lines below are its answer. A block under the
comment ``<!-- not run by the tests -->`` is left out. All commands run in one shell, so that a later one may use what an
earlier one set.

An answer may differ in what no two runs share: names of records, times, random seeds, sizes in bytes, and ``…`` stands for any
text.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.system.harness import CHECKOUT, Stage

README = CHECKOUT / "README.md"
CHINESE = CHECKOUT / "README.zh.md"
PRINTED = "127.0.0.1:8000"
_NOT_RUN = "<!-- not run by the tests -->"
_BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = "--- end of command"
_VARIES = (
    (re.compile(r"\d{8}T\d{9}-[0-9a-f]{8}"), "NAME"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z"), "TIME"),
    (re.compile(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"), "DATE"),
    (re.compile(r"\bSeed: \d+"), "Seed: NUMBER"),
    (re.compile(r"127\.0\.0\.1:\d+"), "HOST"),
)
#: Members that hold a number, or a number in a string, that depends on the run; null where there is none.
_NUMBERS = frozenset({"bytes", "eta", "progress", "position", "seed", "seconds_per_cost"})


@dataclass
class Command:
    """One command of the README and the answer printed below it."""

    text: str
    answer: list[str] = field(default_factory=list)


def commands(text: str) -> list[Command]:
    """The commands of all blocks, in order."""
    found: list[Command] = []
    asked, end = False, 0
    for block in _BLOCK.finditer(text):
        between, end = text[end : block.start()].strip(), block.end()
        runs = not between.endswith(_NOT_RUN)
        if block["kind"] in ("json", "text") and asked and not between:
            found[-1].answer = block["body"].splitlines()
        asked = runs and block["kind"] == "sh"
        if asked:
            found.append(Command(block["body"].rstrip("\n")))
        elif runs and block["kind"] == "console":
            found += _dialogue(block["body"])
    return found


def _dialogue(body: str) -> list[Command]:
    """The commands of a console block."""
    found: list[Command] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append(Command(line[2:]))
        elif line.startswith("> ") and not found[-1].answer:
            found[-1].text += "\n" + line[2:]
        else:
            found[-1].answer.append(line)
    return found


def plain(text: str) -> str:
    """A text with what varies from run to run replaced."""
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text


def fits(expected: str, actual: str) -> bool:
    """Whether a text is the printed one; ``…`` stands for anything."""
    parts = [re.escape(part) for part in plain(expected).strip().split("…")]
    return re.fullmatch(".*".join(parts), plain(actual).strip(), re.DOTALL) is not None


def differences(expected: Any, actual: Any, at: str = "answer") -> list[str]:
    """The differences between two JSON values, but for members that vary from run to run."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        odd = [f"{at}.{name}: only in one of them" for name in expected.keys() ^ actual.keys()]
        common = [name for name in expected if name in actual]
        return odd + [found for name in common for found in _member(name, expected[name], actual[name], at)]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [found for index, (one, other) in pairs for found in differences(one, other, f"{at}[{index}]")]
    if isinstance(expected, list) and isinstance(actual, list):
        return [f"{at}: {len(expected)} entries are printed, {len(actual)} came"]
    same = fits(expected, actual) if isinstance(expected, str) and isinstance(actual, str) else expected == actual
    return [] if same else [f"{at}: {expected!r} is printed, {actual!r} came"]


def _member(name: str, expected: Any, actual: Any, at: str) -> list[str]:
    if name in _NUMBERS and _is_number(expected) and _is_number(actual):
        return []
    return differences(expected, actual, f"{at}.{name}")


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and value.isdigit())


def as_json(text: str) -> Any:
    """The JSON of a text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def compare(expected: str, actual: str) -> list[str]:
    """Compare an answer with the printed one: JSON as values, header fields as far as they are printed, else as text."""
    if expected.startswith("HTTP/"):
        head, _, expected = expected.partition("\n\n")
        actual_head, _, actual = actual.replace("\r\n", "\n").partition("\n\n")
        lines = actual_head.splitlines()
        missing = [line for line in head.splitlines() if not any(fits(line, other) for other in lines)]
        if missing:
            return [f"header fields {missing} are printed, {lines} came"]
    printed, came = as_json(expected), as_json(actual)
    if printed is not None and came is not None:
        return differences(printed, came)
    return [] if fits(expected, actual) else [f"{expected!r} is printed, {actual!r} came"]


def run(found: list[Command], environ: dict[str, str], folder: Path) -> list[tuple[int, str]]:
    """Run the commands in one shell; exit code and standard output of each."""
    script = folder / "readme.sh"
    script.write_text("".join(f"{command.text}\nprintf '\\n{_MARK} %d\\n' $?\n" for command in found), "utf-8")
    shell = subprocess.run(
        ["bash", script], cwd=folder, env=environ, capture_output=True, encoding="utf-8", timeout=100, check=False
    )
    pieces = re.split(rf"\n{re.escape(_MARK)} (\d+)\n", shell.stdout)
    assert len(pieces) == 2 * len(found) + 1, shell.stdout + shell.stderr
    return [(int(code), output) for output, code in zip(pieces[::2], pieces[1::2], strict=False)]


@pytest.mark.skipif(
    not shutil.which("bash") or not shutil.which("curl"), reason="the README's commands use bash and curl"
)
def test_the_commands_of_the_readme_give_the_printed_answers(stage: Stage) -> None:
    found = commands(README.read_text("utf-8"))
    assert found, "the README has no commands"
    # As it is without any setting: open to this machine.
    gateway = stage.gateway("simulator", SDG_AUTH=None)
    for command in found:
        command.text = command.text.replace(PRINTED, gateway.url.removeprefix("http://"))
    environ = gateway.environ | {"PATH": f"{Path(sys.executable).parent}:{gateway.environ['PATH']}"}
    folder = stage.folder / "reader"
    folder.mkdir()

    wrong = []
    for command, (code, output) in zip(found, run(found, environ, folder), strict=True):
        problems = compare("\n".join(command.answer), output)
        problems += [f"exit code {code}"] if code else []
        wrong += [f"$ {command.text}\n  " + "\n  ".join(problems)] if problems else []
    assert not wrong, "\n".join(wrong)


def blocks(text: str) -> list[tuple[str, str, bool]]:
    """The kind and body of each code block, and whether the tests leave it out."""
    return [
        (block["kind"], block["body"], text[: block.start()].rstrip().endswith(_NOT_RUN))
        for block in _BLOCK.finditer(text)
    ]


def named(text: str) -> dict[str, list[str]]:
    """The names in a README outside of its code blocks: endpoints, settings with their defaults, commands, links."""
    text = _BLOCK.sub("", text)
    return {
        "endpoints": re.findall(r"`((?:GET|POST|DELETE) /[^`]*)`", text),
        "settings": re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE),
        "defaults": re.findall(r"^\| `[A-Z_]+` \| (`[^`]+`) \|", text, re.MULTILINE),
        "commands": re.findall(r"^\| `((?:make|sd-gateway) [a-z -]+)` \|", text, re.MULTILINE),
        "headings": ["#" * len(level) for level in re.findall(r"^(#+) ", text, re.MULTILINE)],
        "links": [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("README")],
        "words": sorted(set(re.findall(r"`([^`]+)`", text))),
    }


def test_the_chinese_readme_has_the_same_commands_answers_and_names() -> None:
    """Its commands are those of README.md, which the test above runs."""
    english, chinese = README.read_text("utf-8"), CHINESE.read_text("utf-8")

    assert blocks(chinese) == blocks(english)
    assert named(chinese) == named(english)
    assert f"({CHINESE.name})" in english
    assert f"({README.name})" in chinese


SAMPLE = """
```console
$ name=$(printf '{"name": "x"}' |
>   tr -d ' ')
$ echo "$name"
{"name": "x"}
```
<!-- not run by the tests -->
```console
$ exit 1
```
```sh
echo "$name" |
  tr x y
```

```json
{"name": "y"}
```
```sh
true
```
Other text.
```json
{"no": "answer"}
```
"""


def test_commands_are_found_and_share_a_shell(tmp_path: Path) -> None:
    found = commands(SAMPLE)

    assert [command.text for command in found] == [
        "name=$(printf '{\"name\": \"x\"}' |\n  tr -d ' ')",
        'echo "$name"',
        'echo "$name" |\n  tr x y',
        "true",
    ]
    assert [command.answer for command in found] == [[], ['{"name": "x"}'], ['{"name": "y"}'], []]
    assert [(code, output.strip()) for code, output in run(found, {"PATH": "/usr/bin:/bin"}, tmp_path)] == [
        (0, ""),
        (0, '{"name":"x"}'),
        (0, '{"name":"y"}'),
        (0, ""),
    ]


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ('{"a": 1, "b": [true]}', '{"b":[true],"a":1.0}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ('{"a": 1, "b": 2}', '{"a": 1}', False),
        ('{"a": [1]}', '{"a": [1, 2]}', False),
        ('{"bytes": 5, "eta": null}', '{"bytes": 6, "eta": 1.5}', True),
        ('{"bytes": 5}', '{"bytes": "x"}', False),
        ('{"name": "20261122T061530123-9f2c4e7a"}', '{"name": "20271122T061530123-00000000"}', True),
        ('{"url": "/jobs/a/20261122T061530123-9f2c4e7a"}', '{"url": "/jobs/b/20261122T061530123-9f2c4e7a"}', False),
        ('{"at": "2026-11-22T06:15:30.123Z"}', '{"at": "2027-11-22T06:15:30.123Z"}', True),
        ('{"at": "2026-11-22T06:15:30.123Z"}', '{"at": null}', False),
        ('{"text": "a … z"}', '{"text": "a b z"}', True),
        ("done", "done\n", True),
        ("done", "dome\n", False),
        (
            "HTTP/1.1 202 ACCEPTED\nLocation: …\n\n{}",
            "HTTP/1.1 202 ACCEPTED\r\nDate: x\r\nLocation: /a\r\n\r\n{}",
            True,
        ),
        ("HTTP/1.1 202 ACCEPTED\nLocation: …\n\n{}", "HTTP/1.1 202 ACCEPTED\r\n\r\n{}", False),
        ("HTTP/1.1 200 OK\n\n{}", "HTTP/1.1 202 ACCEPTED\r\n\r\n{}", False),
    ],
)
def test_answers_are_compared_in_what_does_not_vary(expected: str, actual: str, same: bool) -> None:
    assert (compare(expected, actual) == []) is same
