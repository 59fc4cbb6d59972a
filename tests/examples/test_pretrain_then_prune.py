from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/pretrain_then_prune.py"


def test_it_walks_from_pretraining_to_pruning(tmp_path, capsys):
    runpy.run_path(str(EXAMPLE))["main"](tmp_path / "run", images=8, epochs=1, steps=1)
    out = capsys.readouterr().out
    assert "100% of the budget" in out
    assert "features of a pruned model: (1, 96)" in out
    assert (tmp_path / "run" / "pruner" / "config.json").is_file()
