"""The page of promises names tests that exist, and every fault case."""

import ast
import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = (HERE / "PROMISES.rst").read_text()
CASES = re.findall(r"^(\d+)\. (.+)$", PAGE.partition("Fault cases\n---")[2], re.M)
BROKEN = re.findall(r"^- \*\*.+$", PAGE.partition("What broke others\n---")[2].partition("Fault cases\n---")[0], re.M)
HELD = re.compile(r"``(test_\w+\.py::test_\w+|transcripts/\w+\.txt|bin/\w+|test_\w+\.py)``")


@cache
def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def is_there(reference):
    """True for a test, a transcript or a command that exists."""
    file, _, name = reference.partition("::")
    path = HERE.parent / file if file.startswith("bin/") else HERE / file
    return path.exists() and (not name or name in functions_of(path))


def test_what_the_page_names_is_there():
    references = HELD.findall(PAGE)
    assert len(references) > 100
    assert [reference for reference in references if not is_there(reference)] == []


def test_every_case_is_held_or_says_why_not():
    assert [int(number) for number, _ in CASES] == list(range(1, 67))
    assert len(BROKEN) == 25
    assert [text for text in [*BROKEN, *(text for _, text in CASES)] if not HELD.search(text) and "not held:" not in text] == []
