from __future__ import annotations

import importlib
import io
import json
import sys
import tarfile

import pytest
import torch

from patchranking import Pruner, attach, load_data, load_model
from patchranking.clip_benchmark import accuracy, load_pruned, main
from patchranking.errors import UserError
from patchranking.prompts.tokens import Prompts
from patchranking.pruning.schedule import Schedule


@pytest.fixture(scope="module")
def model():
    return load_model("demo")


@pytest.fixture
def pruner(model, tmp_path):
    tower = model.tower
    made = Pruner.unfitted(tower, "demo", Schedule({3: 0.6}))
    made.save_pretrained(tmp_path / "pruner")
    return made


def test_the_model_prunes_at_the_rate_asked_for(model, pruner, tmp_path):
    pixels = torch.randn(2, 3, *model.tower.image_size)
    with torch.inference_mode():
        for name, rate in (("dense", 1.0), (f"{tmp_path}/pruner", 0.6), (f"{tmp_path}/pruner@0.3", 0.3)):
            loaded, transform, tokenizer = load_pruned("demo", name)
            pruner.keep = rate
            with pruner.attached(model.model):
                assert torch.equal(loaded.encode_image(pixels), model.tower(pixels))
            texts = loaded.encode_text(tokenizer(["a star.", "a sun."]))
            assert torch.equal(texts, model.text(["a star.", "a sun."]))
            assert transform is not None


def test_a_method_needs_no_fit(model):
    pixels = torch.randn(2, 3, *model.tower.image_size)
    with torch.inference_mode():
        for name, rate in (("cls-attention", 0.5), ("tome@0.3", 0.3)):
            loaded, *_ = load_pruned("demo", name)
            with attach(model.model, name.partition("@")[0], keep=rate):
                assert torch.equal(loaded.encode_image(pixels), model.tower(pixels))


def test_accuracy_counts_targets_among_the_first():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert accuracy(logits, torch.tensor([0, 1, 0, 2]), (1, 2, 3)) == [0.5, 0.75, 1.0]


def test_what_cannot_be_measured_there_is_refused(model, pruner, tmp_path):
    with pytest.raises(UserError, match=r"such as runs/fit@0\.5, not 'half'"):
        load_pruned("demo", f"{tmp_path}/pruner@half")
    with pytest.raises(UserError, match="keep rate"):
        load_pruned("demo", f"{tmp_path}/pruner@1.5")
    width = model.text.embedding.embedding_dim
    tokens = Prompts("text", width, model.tower.width, 2, class_names=["a"], features=8)
    pruner.tuned_by(tokens).save_pretrained(tmp_path / "tuned")
    with pytest.raises(UserError, match="tuned text tokens"):
        load_pruned("demo", f"{tmp_path}/tuned")


@pytest.fixture
def clip_benchmark(monkeypatch):
    """CLIP_benchmark, which gets back what its command line has replaced."""
    cli = pytest.importorskip("clip_benchmark.cli")
    models, metrics = (importlib.import_module(f"clip_benchmark.{name}") for name in ("models", "metrics"))
    types = [*models.MODEL_TYPES]
    for module in (cli, models):
        monkeypatch.setattr(module, "MODEL_TYPES", types)
    monkeypatch.setattr(models, "TYPE2FUNC", {**models.TYPE2FUNC})
    monkeypatch.setattr(metrics.zeroshot_classification, "accuracy", None)


@pytest.mark.usefixtures("clip_benchmark")
def test_its_own_command_line_gives_our_accuracy(model, pruner, tmp_path, monkeypatch):
    scenes = load_data("demo:test", 60)
    root = tmp_path / "wds"
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(scenes.class_names))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.")
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        for index in range(60):
            picture = io.BytesIO()
            scenes.image(index).save(picture, "PNG")
            for suffix, content in (("png", picture.getvalue()), ("cls", str(scenes.labels[index]).encode())):
                entry = tarfile.TarInfo(f"{index:04d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    options = ["--dataset", "wds/scenes", "--dataset_root", str(root), "--no_amp", "--num_workers", "0", "--quiet"]
    options += ["--pretrained", f"{tmp_path}/pruner@0.5", "--output", str(tmp_path / "result.json")]
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", "eval", "--model", "demo", *options])
    main()
    found = json.loads((tmp_path / "result.json").read_text())["metrics"]["acc1"]
    pruner.keep = 0.5
    pixels = torch.stack([model.preprocess(scenes.image(index)) for index in range(60)])
    texts = model.text([f"a photo of a {name}." for name in scenes.class_names])
    with torch.inference_mode(), pruner.attached(model.model):
        expected = (model.tower(pixels) @ texts.T).argmax(1).eq(torch.tensor(scenes.labels)).float().mean().item()
    assert found == pytest.approx(expected, abs=1e-6)
