"""The tests of this folder know the gateway from outside only: they import nothing of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCES = sorted(Path(__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_system_tests_import_nothing_of_the_gateway(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not [name for name in names if name.split(".")[0] == "app"]
