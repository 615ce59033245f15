"""Print the requirements of setup.cfg with each lower bound as the only version: what ``make test-oldest`` installs."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def requirements() -> Iterator[Requirement]:
    """The requirements of the package, of its extras and of its build."""
    parser = configparser.ConfigParser()
    parser.read(SETUP, encoding="utf-8")
    lists = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    for line in "\n".join(lists).split("\n"):
        if line.strip():
            yield Requirement(line)


def oldest(requirement: Requirement) -> str:
    """A requirement with its lower bound as the only version."""
    [bound] = [specifier.version for specifier in requirement.specifier if specifier.operator == ">="]
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}=={bound}"


for found in requirements():
    print(oldest(found))
