from __future__ import annotations

import json

import few_shot
import pytest

from patchranking.data import of_classes
from patchranking.errors import UserError


@pytest.fixture
def few_classes(monkeypatch):
    """Leaves a sixteenth of the demo's classes, since every step encodes all class names."""
    load = few_shot.load_data

    def loaded(*arguments, **options):
        found = load(*arguments, **options)
        for _ in range(4):
            found = of_classes(found, "base")
        return found

    monkeypatch.setattr(few_shot, "load_data", loaded)


def test_untuned_and_tuned_rows(few_classes, pruner, tmp_path):
    out = tmp_path / "few_shot.json"
    few_shot.few_shot(
        "demo",
        ["demo:test"],
        ["demo:train"],
        pruner,
        out,
        tokens=["both"],
        keep=[1.0, 0.5],
        shots=1,
        num_tokens=2,
        epochs=1,
        augment=False,
        seeds=1,
        limit=60,
        train_limit=120,
        work=tmp_path / "work",
    )
    rows = json.loads(out.read_text())["rows"]
    assert [(row["tuned"], row["keep_rate"], row["seed"]) for row in rows] == [
        ("none", 1.0, None),
        ("none", 0.5, None),
        ("both", 1.0, 0),
        ("both", 0.5, 0),
    ]
    assert {row["dataset"] for row in rows} == {"demo/test"}
    assert all(row["n_images"] > 1 and 0 <= row["top1"] <= 100 for row in rows)
    assert rows[0]["top1"] >= rows[1]["top1"]


def test_every_test_set_needs_training_images(tmp_path):
    with pytest.raises(UserError, match="one --train for each DATA, in the same order: 1, not 0"):
        few_shot.few_shot("demo", ["demo:test"], out=tmp_path / "few_shot.json")
