"""No function, class or signature of the gateway is larger than a reader can keep in mind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

APP = Path(__file__).resolve().parent.parent / "app"
#: Without the docstring.
MOST_LINES_OF_A_FUNCTION = 40
MOST_LINES_OF_A_CLASS = 250
#: Besides ``self`` or ``cls``; a command of the command line has as many as its options.
MOST_PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


def definitions(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[str, ast.AST]]:
    """Every definition of a kind under app/, migrations apart, with where it stands."""
    for path in sorted(APP.rglob("*.py")):
        if "migrations" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield f"{path.relative_to(APP.parent)}:{node.lineno} {node.name}", node


def lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1


def lines_of_docstring(function: Function) -> int:
    first = function.body[0]
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return lines(first) if documented else 0


def parameters(function: Function) -> int:
    given = function.args
    named = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(given.vararg) + bool(given.kwarg)


def is_command(function: Function) -> bool:
    return any("command" in ast.unparse(decorator) for decorator in function.decorator_list)


def test_no_function_is_too_long() -> None:
    found = [
        (where, lines(node) - lines_of_docstring(node))
        for where, node in definitions((ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    assert len(found) > 1000
    assert [each for each in found if each[1] > MOST_LINES_OF_A_FUNCTION] == []


def test_no_class_is_too_long() -> None:
    found = [(where, lines(node)) for where, node in definitions(ast.ClassDef)]
    assert len(found) > 100
    assert [each for each in found if each[1] > MOST_LINES_OF_A_CLASS] == []


def test_no_function_takes_too_much() -> None:
    functions = [
        (where, node) for where, node in definitions((ast.FunctionDef, ast.AsyncFunctionDef)) if not is_command(node)
    ]
    assert [where for where, node in functions if parameters(node) > MOST_PARAMETERS] == []
