from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from patchranking.commands.arguments import run

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(script.stem for script in FOLDER.glob("*.py") if "__main__" in script.read_text())
FUNCTIONS = {"demo_model": "train", "tables": "main"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_command_in_the_docstring_runs_the_script(name, capsys):
    module = importlib.import_module(name)
    found = re.findall(rf"^    python benchmarks/{name}\.py((?:[^\n\\]|\\\n)*)$", module.__doc__, re.MULTILINE)
    assert len(found) == 1
    arguments = shlex.split(found[0].replace("\\\n", " "))
    with pytest.raises(SystemExit) as ended:
        run(getattr(module, FUNCTIONS.get(name, name)), [*arguments, "--print_config"], name)
    assert ended.value.code == 0
    if "--out" in arguments:
        assert re.search(rf"out: \S*{name}", capsys.readouterr().out)
