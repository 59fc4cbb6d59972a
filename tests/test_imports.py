"""The rooms of the house stand in one order, and every import runs downwards."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/patchranking"


def layers():
    """The order as CONTRIBUTING.md has it: room -> its layer, 0 at the bottom."""
    (block,) = re.findall(r"<!-- rooms -->\n+((?:    .+\n)+)", (ROOT / "CONTRIBUTING.md").read_text())
    rows = [re.split(r"[\s,]+", line.partition("  #")[0].strip()) for line in block.strip("\n").split("\n")]
    return {room: layer for layer, rooms in enumerate(rows) for room in rooms}


def imported(path):
    """The rooms that a file imports anywhere, inside functions and type checks too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"patchranking(\.\w+)+", node.value) else []
        for name in names:
            if name.split(".")[0] == "patchranking":
                yield name.split(".")[1]


def upwards(path, order):
    """Rooms that a file imports but may not: those of its own layer or above."""
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return [other for other in imported(path) if other != room and order[other] >= order[room]]


def test_every_room_has_its_place():
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    rooms |= {path.parent.name for path in SOURCE.glob("*/*.py")}
    assert rooms - {"__init__"} == set(layers())


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downwards(path):
    if path != SOURCE / "__init__.py":
        assert upwards(path, layers()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from patchranking.report.page import write_report",
        "import patchranking.commands.fit",
        "def f():\n    from patchranking import evaluation",
        "importlib.import_module('patchranking.methods.tome')",
    ],
)
def test_an_arrow_upwards_is_found(line):
    path = SOURCE / "ranking/sketched.py"
    order = layers()

    class Changed(type(path)):
        def read_text(self):
            return path.read_text() + f"\n{line}\n"

    assert upwards(Changed(path), order)
