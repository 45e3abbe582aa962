"""The page of guarantees names every known bug once, and tests that are there and speak of it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "guarantees.md"
FAMILIES = {"R": 12, "L": 11, "C": 3, "K": 8, "P": 6, "B": 4, "M": 6, "X": 4}
NUMBERS = [f"{family}{number}" for family, count in FAMILIES.items() for number in range(1, count + 1)]


@dataclass(frozen=True)
class Entry:
    number: str
    promised: bool
    tests: tuple[str, ...]


@cache
def entries() -> tuple[Entry, ...]:
    promised, _, rest = PAGE.read_text().partition("\n## Not promised yet\n")
    return tuple(
        Entry(number, part is promised, tuple(re.findall(r"`(\S+\.py::\S+)`", text)))
        for part in (promised, rest)
        for number, text in re.findall(r"^- \*\*(\w+)\*\* (.+?)(?=^- |^## |^$|\Z)", part, re.DOTALL | re.MULTILINE)
    )


def test_every_number_is_listed_once_and_no_other_is() -> None:
    assert Counter(entry.number for entry in entries()) == Counter(NUMBERS)


def test_what_is_promised_has_a_test() -> None:
    promised = [entry for entry in entries() if entry.promised]

    assert len(promised) > len(NUMBERS) / 2
    assert [entry.number for entry in promised if not entry.tests] == []


NAMED = [(entry.number, test) for entry in entries() for test in entry.tests]


@pytest.mark.parametrize(("number", "test"), NAMED)
def test_a_test_that_is_named_is_there_and_cites_the_number(number: str, test: str) -> None:
    path, *names = test.split("::")

    docstring = ast.get_docstring(found(ast.parse((ROOT / path).read_text()), names))

    assert re.search(rf"\b{number}\b", docstring or "")


def found(module: ast.Module, names: list[str]) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """The function of this name, in this class if any; StopIteration where there is none."""
    node: ast.stmt | ast.Module = module
    for name in names:
        assert isinstance(node, ast.Module | ast.ClassDef)
        defined = (each for each in node.body if isinstance(each, DEFINITIONS))
        node = next(each for each in defined if each.name == name)
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return node


DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def test_every_number_that_a_test_cites_is_known() -> None:
    """A mistyped number would vouch for nothing."""
    cited = re.compile(rf"\b[{''.join(FAMILIES)}]\d+\b")
    files = [*ROOT.glob("tests/test_*.py"), ROOT / "src/unstick/testing/conformance.py"]
    docstrings = [
        ast.get_docstring(node) or ""
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]

    assert {number for text in docstrings for number in cited.findall(text)} <= set(NUMBERS)
