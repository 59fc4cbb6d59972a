from __future__ import annotations

import pytest
import torch

from patchranking.data import load_data
from patchranking.demo import MODEL_DIR
from patchranking.evaluation.evaluate import EvaluationSettings, evaluate
from patchranking.towers.load import load_model


def test_it_ships_within_8_megabytes_without_pickle():
    files = [path for path in MODEL_DIR.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= names
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt"}


@pytest.fixture(scope="module")
def rows():
    settings = EvaluationSettings(["random", "golden"], [0.5], golden_images=12, timing_batch=0, examples=0)
    results, _ = evaluate(load_model("demo"), load_data("demo:val", 200), [], settings)
    return {row["method"]: row for row in results["rows"]}


def test_dense_zero_shot_top1_is_at_least_95_percent(rows):
    assert rows["dense"]["top1"] >= 95


def test_golden_is_above_random_on_the_same_images(rows):
    golden = rows["golden"]
    assert golden["feature_cosine"] > golden["same_images"]["random"]["feature_cosine"] + 0.01


def test_features_follow_captions_not_only_classes():
    from patchranking.demo import scene

    model = load_model("demo")
    drawn = [scene("val", index) for index in range(40)]
    with torch.inference_mode():
        images = torch.nn.functional.normalize(
            model.tower(torch.stack([model.preprocess(s.image) for s in drawn])), dim=-1
        )
        texts = model.text([s.caption for s in drawn])
    assert ((images @ texts.T).argmax(1) == torch.arange(40)).float().mean() > 0.8
