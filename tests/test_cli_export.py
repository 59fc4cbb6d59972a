from __future__ import annotations

import json

import numpy as np
import pytest

from patchranking import Encoder, Pruner
from patchranking.exporting.check import pictures
from patchranking.pruning.schedule import Schedule


def test_export_writes_the_demo_pruned_to_a_share_of_the_macs(run, demo, tmp_path):
    pruner = Pruner.unfitted(demo.tower, "demo", Schedule({1: 0.5}))
    pruner.save_pretrained(tmp_path / "fit")
    arguments = ("--pruner", tmp_path / "fit", "--macs", 0.6, "--format", "torch", "--out", tmp_path / "out")
    status, out, error = run("export", "demo", *arguments)
    assert (status, error) == (0, "")
    assert "60% of the dense model's" in out
    encoder = Encoder.from_pretrained(tmp_path / "out")
    assert encoder.about.pruner == pruner.fingerprint
    texts = ["a red cat on a dotted background", "a sun."]
    np.testing.assert_allclose(encoder.encode_text(texts), demo.text(texts).cpu(), atol=1e-4)
    picture = next(pictures(1))
    with pruner.at_macs(demo.tower, 0.6).attached(demo.model):
        expected = demo.tower(demo.preprocess(picture)[None])
    found = encoder.encode_image([picture])
    assert np.sum(found * expected.numpy()) / np.linalg.norm(found) / expected.norm() > 0.999
    exported_folders_are_models(run, tmp_path / "out", tmp_path)


def exported_folders_are_models(run, folder, tmp_path):
    options = ("--limit", 24, "--timing_batch", 2, "--out", tmp_path / "evaluate")
    status, printed, _ = run("evaluate", folder, "demo:val", *options)
    assert status == 0
    rows = json.loads((tmp_path / "evaluate/results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["dense", "exported"]
    assert "exported" in printed
    options = ("--batches", 1, "--repeats", 1, "--seconds", 0, "--out", tmp_path / "benchmark")
    assert run("benchmark", folder, *options)[0] == 0
    rows = json.loads((tmp_path / "benchmark/throughput.json").read_text())["rows"]
    assert [row["backend"] for row in rows] == ["eager", "torch"]
    status, _, error = run("benchmark", folder, "--pruner", "tome")
    assert (status, len(error.splitlines())) == (2, 1)
    assert "holds its pruner" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pruner", "runs/fit", "--keep", 0), "above 0 and at most 1, not 0"),
        (("--pruner", "runs/fit", "--keep", 1.5), "above 0 and at most 1, not 1.5"),
        (("--keep", 0.5), "give --pruner"),
        (("--pruner", "runs/fit", "--keep", 0.5, "--macs", 0.5), "exclude each other"),
        (("--pruner", "cls-attention"), "needs no fit"),
        (("--pruner", "nowhere"), "There is no folder 'nowhere'"),
    ],
)
def test_export_says_what_is_wrong_in_one_sentence(run, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, error = run("export", "demo", *arguments)
    assert status == 2
    assert said in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
