"""Published numbers: from a clean tree, by the command that is printed for them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import tables
from common import DEFAULTS

RESULTS = tables.ROOT / "benchmarks/results"
DOCS = [tables.ROOT / "README.md", *sorted((tables.ROOT / "docs").glob("*.md"))]
PRINTED = [*DOCS, *sorted((tables.ROOT / "benchmarks").glob("*.py"))]
FITTING = ("compare-", "few_shot-", "predictors-")
WAITING = {
    "demo_model-demo",
}
"""Files that were measured before this was checked; one that is measured anew leaves the list."""


def printed():
    """File of results -> the commands that README, docs and docstrings print for it."""
    found = {}
    for page in PRINTED:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for line in re.findall(r"^\s*python benchmarks/(\w+\.py .*--out benchmarks/results/.*)$", text, re.MULTILINE):
            words = shlex.split(line)
            found.setdefault(Path(words[words.index("--out") + 1]).name, set()).add(shlex.join(words))
    return found


def outdated(name, results):
    """What shows that a benchmark that fits was run with other defaults than today's."""
    stored = results.get("defaults")
    if stored is None:
        return [f"{name}: does not say by which defaults"] * name.startswith(FITTING)
    return [] if stored == json.loads(json.dumps(DEFAULTS)) else [f"{name}: measured with other defaults"]


def mistakes(name, results, commands):
    """What is wrong with where a file of results comes from."""
    environments = results["environment"]
    environments = [environments] if "device" in environments else list(environments.values())
    dirty = [own for own in environments if not own.get("git_commit") or own["git_commit"].endswith("-dirty")]
    others = [own.get("command") for own in environments if own.get("command") not in commands]
    return [f"{name}: not from a clean tree"] * bool(dirty) + [f"{name}: printed nowhere: {one}" for one in others]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_published_file_is_from_a_clean_tree_by_the_command_printed(path):
    results = json.loads(path.read_text())
    found = mistakes(path.name, results, printed().get(path.name, set())) + outdated(path.name, results)
    if path.stem in WAITING:
        assert found, f"{path.stem} is measured anew: take it off the list of those that wait"
    else:
        assert not found


def test_only_files_that_are_there_wait():
    assert {path.stem for path in RESULTS.glob("*.json")} >= WAITING


@pytest.mark.parametrize(
    ("environment", "wrong"),
    [
        ({"git_commit": "abc", "command": "some.py --out a"}, 0),
        ({"git_commit": "abc-dirty", "command": "some.py --out a"}, 1),
        ({"git_commit": None, "command": "some.py --out a"}, 1),
        ({"git_commit": "abc", "command": "some.py --steps 3 --out a"}, 1),
        ({"git_commit": "abc-dirty", "command": "other.py"}, 2),
    ],
)
def test_a_dirty_tree_and_another_command_are_found(environment, wrong):
    one = {"device": "CPU", **environment}
    assert len(mistakes("a.json", {"environment": one}, {"some.py --out a"})) == wrong
    assert len(mistakes("a.json", {"environment": {"part": one}}, {"some.py --out a"})) == wrong


def test_defaults_that_are_no_longer_those_are_found():
    defaults = json.loads(json.dumps(DEFAULTS))
    assert not outdated("compare-a.json", {"defaults": defaults})
    assert not outdated("kill-a.json", {})
    assert outdated("compare-a.json", {})
    assert outdated("compare-a.json", {"defaults": defaults | {"schedule": {"3": 0.5}}})


def test_one_command_is_printed_for_a_file_wherever_it_is_printed():
    commands = printed()
    assert "compare-photos.json" in commands
    assert {name: own for name, own in commands.items() if len(own) > 1} == {}


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_tables_in_the_docs_have_a_file_and_are_filled(page):
    markers = re.findall(r"<!-- table (.*?) -->", page.read_text())
    for marker in markers:
        name, _, part = marker.partition(" ")
        assert (RESULTS / f"{name}.json").is_file(), marker
        assert part in ("", "mean", "differences", "speed", "gradients"), marker
    assert not markers or page in tables.PAGES
