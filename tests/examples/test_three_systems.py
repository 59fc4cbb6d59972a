from __future__ import annotations

import re
import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/three_systems.py"


def test_a_tower_is_pretrained_twice_becomes_a_clip_and_is_pruned(tmp_path, capsys):
    runpy.run_path(str(EXAMPLE))["main"](tmp_path / "run", images=16, epochs=1, steps=1)
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+), (?:typical|few)", out, re.MULTILINE) == ["masked", "contrastive", "captions"]
    shares = re.findall(r"^(\w+): (\d+)% of the MACs, zero-shot [\d.]+ %$", out, re.MULTILINE)
    assert [name for name, _ in shares] == ["dense", *["patchranking", "random"] * 3]
    assert [int(share) for name, share in shares if name != "random"] == sorted(
        (int(share) for name, share in shares if name != "random"), reverse=True
    )
    assert (tmp_path / "run/clip/model/open_clip_config.json").is_file()
    assert (tmp_path / "run/pruner/config.json").is_file()
