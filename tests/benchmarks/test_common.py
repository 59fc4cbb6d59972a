from __future__ import annotations

import json
import sys

import pytest
from common import Results, main, training_data

from patchranking.errors import UserError


@pytest.fixture
def computed():
    """Names of the units that were computed, and a function that computes one."""
    names = []

    def compute(name):
        names.append(name)
        return [{"name": name}]

    return names, compute


def run(out, compute, units, killed_at=None):
    results = Results(out)
    rows = []
    for unit in units:
        if unit == killed_at:
            raise KeyboardInterrupt
        rows += results.once(unit, lambda unit=unit: compute(unit))
    results.write({"threads": 1}, rows, more=2)


def test_a_killed_run_goes_on_after_the_last_finished_unit(tmp_path, computed):
    names, compute = computed
    out = tmp_path / "results" / "some.json"
    with pytest.raises(KeyboardInterrupt):
        run(out, compute, "abc", killed_at="c")
    assert not out.exists()
    run(out, compute, "abc")
    assert names == ["a", "b", "c"]
    rows = [{"name": name} for name in "abc"]
    assert json.loads(out.read_text()) == {"environment": {"threads": 1}, "more": 2, "rows": rows}
    assert [file.name for file in out.parent.iterdir()] == ["some.json"]


def test_a_finished_run_starts_anew(tmp_path, computed):
    names, compute = computed
    for _ in range(2):
        run(tmp_path / "some.json", compute, "a")
    assert names == ["a", "a"]


def test_what_cannot_be_written_leaves_what_was_finished(tmp_path, computed):
    names, compute = computed
    out = tmp_path / "some.json"
    results = Results(out)
    results.once("a", lambda: compute("a"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        results.once("b", lambda: {"set": {1}})
    run(out, compute, "ab")
    assert names == ["a", "b"]


def test_other_arguments_are_refused(tmp_path, computed, monkeypatch):
    out = tmp_path / "some.json"
    Results(out).once("a", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["some.py", "--limit", "3"])
    with pytest.raises(UserError, match=r"some\.partial' is of a run with other arguments"):
        Results(out)


def test_main_gives_the_arguments_and_ends_a_mistake_with_one_sentence(monkeypatch, capsys):
    given = []

    def some(model: str, data: list[str], keep: list[float] = [0.5]) -> None:  # noqa: B006
        """Does something."""
        given.append((model, data, keep))
        training_data(None, None)

    monkeypatch.setattr(sys, "argv", ["benchmarks/some.py", "demo", "a", "b", "--keep", "0.6", "0.5"])
    with pytest.raises(SystemExit):
        main(some)
    assert given == [("demo", ["a", "b"], [0.6, 0.5])]
    assert capsys.readouterr().err == (
        "some.py: A predictor has to be fitted: give its training images with --train DATA.\n"
    )
