"""The documents say what the code does."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.cli import main
from app.config import SETTINGS
from app.parameters import PARAMETERS, TYPES, Parameter
from app.problems import PROBLEMS

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
ROW = re.compile(r"^\| `(?P<name>[A-Z_]+)` \| (?P<default>.*?) \| (?P<sentence>.*) \|$", re.MULTILINE)
PATH = re.compile(r"`((?:app|tests|docs|deploy|benchmarks)/[\w./]+)`")
#: What threads wait for, or are.
PRIMITIVES = {
    *("Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier"),
    *("Thread", "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor"),
}


def test_the_readmes_settings_are_the_codes() -> None:
    rows = [
        match.group("name", "default", "sentence") for match in ROW.finditer((ROOT / "README.md").read_text("utf-8"))
    ]
    shown = {
        setting.name: setting.shown or (f"`{setting.default}`" if setting.default else "empty") for setting in SETTINGS
    }
    assert rows == [(setting.name, shown[setting.name], setting.sentence) for setting in SETTINGS]


def commands(group: click.Group, name: str) -> Iterator[tuple[str, str]]:
    """Every command below a group, with the first paragraph of its help."""
    for short, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {short}")
        else:
            yield f"{name} {short}", " ".join((command.help or "").split("\n\n")[0].split())


def test_the_readmes_commands_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| `(sd-gateway [a-z ]+)` \| (.*) \|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert rows == list(commands(main, "sd-gateway"))


def test_the_readmes_targets_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text("utf-8")))
    assert named <= targets


def bound(value: float | str) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:.10g}"


def takes(parameter: Parameter) -> str:
    span = f"{bound(parameter.lowest)} to {bound(parameter.highest)}"
    length = span if parameter.lowest else f"at most {bound(parameter.highest)}"
    return {
        "user id": f"string, {length} characters",
        "text": f"string, {length} characters",
        "integer": f"integer, {span}" + (f", multiples of {parameter.step}" if parameter.step > 1 else ""),
        "number": f"number, {span}",
        "boolean": "`true` or `false`",
        "choice": " · ".join(f"`{word}`" for word in parameter.choices),
        "seed": f"string or integer, {span}",
        "image": "string, or a list of one",
    }[parameter.kind]


def default(parameter: Parameter) -> str:
    if parameter.required or parameter.shown_default:
        return parameter.shown_default or "required"
    values = {type_: parameter.default_of(type_) for type_ in parameter.types}
    if len(set(values.values())) > 1:
        return ", ".join(f"`{json.dumps(value)}` ({type_})" for type_, value in values.items())
    value = next(iter(values.values()))
    return "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def table_of_request_fields() -> str:
    rows = [
        (
            f"`{parameter.name}`" + ("" if parameter.types == TYPES else f" ({', '.join(parameter.types)} only)"),
            takes(parameter),
            default(parameter),
            f"`{parameter.payload}`" if parameter.payload else "",
            parameter.english,
        )
        for parameter in PARAMETERS
    ]
    head = ("field", "takes", "default", "WebUI's field", "meaning")
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ("---",) * len(head), *rows))


def test_the_table_of_request_fields_is_the_codes() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    [section] = re.findall(r"^## Asking for pictures\n(.*?)^#", text, re.MULTILINE | re.DOTALL)
    written = "".join(line for line in section.splitlines(keepends=True) if line.startswith("|"))
    assert written == table_of_request_fields(), f"docs/api.md must have this table:\n{table_of_request_fields()}"


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    named = set(PATH.findall(document.read_text("utf-8")))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_the_tests_that_the_document_on_security_names_exist() -> None:
    named = set(re.findall(r"\b(test_\w+)`", (ROOT / "docs" / "security.md").read_text("utf-8")))
    code = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert named
    assert [name for name in sorted(named) if f"def {name}(" not in code] == []


@pytest.mark.parametrize("document", [*DOCS, ROOT / "README.md", ROOT / "README.zh.md"], ids=lambda path: path.name)
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def tree() -> Iterator[str]:
    """The paths below ``app/`` that the tree in the architecture shows, folders with a slash at the end."""
    block = re.search(
        r"^app/$(.*?)^```$", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert block is not None
    folders: list[str] = []
    for line in block[1].splitlines():
        shown = re.match(r"^((?:  )+)([\w.]+(?:\.py|/))(?:$|  )", line)
        if shown is not None:
            depth = len(shown[1]) // 2 - 1
            folders[depth:] = [shown[2]]
            yield "".join(folders)


def test_the_tree_in_the_architecture_is_the_tree_of_the_package() -> None:
    shown = set(tree())
    assert shown
    assert [path for path in sorted(shown) if not (ROOT / "app" / path).exists()] == []
    folders = {
        f"{path.parent.relative_to(ROOT / 'app')}/"
        for path in (ROOT / "app").rglob("*.py")
        if path.parent.name != "app"
    }
    assert sorted(folders - shown - {"migrations/versions/"}) == []
    upper = {path.name for path in (ROOT / "app").glob("*.py")}
    assert sorted(upper - shown) == []


def test_every_module_stands_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    modules = [path for path in (ROOT / "app").rglob("*.py") if path.name != "__init__.py"]
    told_by_its_folder = {"migrations", "versions", "simulator", "routes"}
    told_itself = [path for path in modules if path.parent.name not in told_by_its_folder]
    assert sorted(str(path) for path in told_itself if path.stem not in words(text)) == []


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def primitives() -> Iterator[tuple[str, str, str]]:
    """Every lock, event, thread … that is created under ``app/``: the file, its kind, and its name (``Class.attribute``)."""
    for path in sorted((ROOT / "app").rglob("*.py")):
        yield from ((str(path), *found) for found in _created(ast.parse(path.read_text("utf-8")), "", ""))


def _created(node: ast.AST, owner: str, target: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.ClassDef):
        owner = node.name
    elif isinstance(node, ast.Assign):
        target = ast.unparse(node.targets[0])
    elif isinstance(node, ast.AnnAssign):
        target = ast.unparse(node.target)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in PRIMITIVES:
        yield ast.unparse(node.func).rpartition(".")[2], _name(node, owner, target)
    for child in ast.iter_child_nodes(node):
        yield from _created(child, owner, target)


def _name(call: ast.Call, owner: str, target: str) -> str:
    """A thread has a name of its own, of which the fixed part counts; everything else is named by where it is kept."""
    for keyword in call.keywords:
        if keyword.arg in ("name", "thread_name_prefix"):
            given = keyword.value.values[0] if isinstance(keyword.value, ast.JoinedStr) else keyword.value
            assert isinstance(given, ast.Constant)
            return str(given.value).strip()
    return f"{owner}.{target.removeprefix('self.')}" if target.startswith("self.") else target


#: Created among the arguments of something else, and kept under other names than the code shows here.
ELSEWHERE = {
    "Worker._context": ("WorkerContext.stopping", "WorkerContext.stopped"),
    "app.config[BODY_TURNS]": ("BODY_TURNS",),
}


def test_everything_that_threads_share_or_are_is_named_in_the_document_on_concurrency() -> None:
    text = without_blocks((ROOT / "docs" / "concurrency.md").read_text("utf-8"))
    named = {word for span in re.findall(r"`([^`]+)`", text) for word in (span, span.removesuffix(" KEY"))}
    found = list(primitives())
    assert len(found) > 40
    missing = [
        (path, kind, name)
        for path, kind, given in found
        for name in ELSEWHERE.get(given, (given,))
        if name not in named
    ]
    assert missing == []


def test_the_document_on_concurrency_names_no_lock_that_is_gone() -> None:
    text = (ROOT / "docs" / "concurrency.md").read_text("utf-8")
    classes: dict[str, str] = defaultdict(str)
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes[node.name] += ast.unparse(node)
    members = re.findall(r"`([A-Z_]\w+)\.(\w+)`", without_blocks(text))
    assert members
    gone = sorted(f"{owner}.{name}" for owner, name in members if not re.search(rf"\b{name}\b", classes[owner]))
    assert gone == []


def test_the_http_document_lists_every_problem() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert sorted(slug for slug in PROBLEMS if f"`{slug}`" not in text) == []
    for slug, problem in PROBLEMS.items():
        assert f"| `{slug}` | {problem.status} | {problem.title} |" in text


def test_the_table_of_the_audit_log_has_every_event() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    table = text.partition("**The audit log.**")[2].partition("**What is in no log:**")[0]
    called = re.compile(r'\b(?:audit|note_change|_note)\("([a-z-]+)"')
    events = {event for path in (ROOT / "app").rglob("*.py") for event in called.findall(path.read_text("utf-8"))}
    assert {"token-rotated", "files-deleted", "queue-paused"} <= events
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {word for row in rows for word in re.findall(r"`([a-z]+-[a-z-]+)`", row)} == events


#: The words of the glossary, with those that must not be used in their place.
NOT_THESE = {
    "backend": ("station",),
    "monitor": ("keeper",),
    "WorkerContext": ("desk",),
    "quiesce": ("settle", "settles", "settled", "settling"),
    "heartbeat": ("beat", "beats"),
    "poll": ("looks at progress",),
    "requirements": ("demand", "demands"),
    "failpoint": ("durable step", "durable steps"),
    "pending unlink": ("debris",),
    "notification": ("hint", "hints"),
}


def test_the_documents_use_one_word_for_one_thing() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    assert [word for word in NOT_THESE if word not in glossary] == []
    for document in (ROOT / "README.md", *DOCS):
        if document.name == "glossary.md":
            continue  # it says which words are not used
        # Not what is code: names may be older than the words.
        text = re.sub(r"`[^`]*`", "", without_blocks(document.read_text("utf-8")))
        found = [(good, bad) for good, words in NOT_THESE.items() for bad in words if re.search(rf"\b{bad}\b", text)]
        assert found == [], document.name
