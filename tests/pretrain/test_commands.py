from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

TINY = [
    *("--image_size", 16, "--patch_size", 4, "--model_args", "{embed_dim: 16, depth: 1, num_heads: 2}", "--head", 16),
    *("--epochs", 2, "--batch_size", 4, "--evaluations", 2),
]


@pytest.fixture
def folder(noise_folder):
    folder = noise_folder("noise", ("cat", "dog"), 4)
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    return folder


def test_a_training_ends_with_a_page_and_its_gradients_with_another(run, folder, tmp_path):
    """Command after command: pretrain, analyse, and again by the schedule that was found."""
    out, errors = tmp_path / "run", tmp_path / "errors"
    status, said, _ = run("pretrain", "contrastive", folder, "--test", folder, "--out", out, *TINY)
    assert status == 0
    assert "9 images in = 8 trained on + 1 skipped" in said
    assert "skipped cat/broken.png" in said
    results = json.loads((out / "results.json").read_text())
    assert [row["share"] for row in results["rows"]] == [0, 0.5, 1]
    keys = {"method", "arm", "seed", "budget", "seconds", "step", "knn", "linear_probe"}
    assert keys <= set(results["rows"][0])
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "k-NN accuracy" in page
    assert f"timm:local-dir:{out / 'model'}" in said

    few = ["--base_batches", 4, "--batches", 3, "--batch_size", 4, "--drops", 0, 0.5, "--groups", 2]
    status, said, _ = run("pretrain", "gradient-error", out, folder, "--out", errors, *few)
    assert status == 0
    assert said.count("of the budget: patches of") == 3
    assert "base against itself: bias" in said
    table = pq.read_table(errors / "errors.parquet")
    assert table.num_rows == len(json.loads((errors / "errors.json").read_text())["rows"]) == 3 * 4
    assert {"share", "patch_size", "drop", "cost", "bias2", "bias2_low", "error_high"} <= set(table.column_names)
    assert (errors / "report.html").read_text().count("<svg") == 9

    again = tmp_path / "again"
    schedule = errors / "schedule.yaml"
    status, said, _ = run("pretrain", "contrastive", folder, "--schedule", schedule, "--out", again, *TINY)
    assert status == 0
    assert "nothing measured" in said
    assert (again / "schedule.yaml").read_text() == schedule.read_text()


def test_mistakes_are_one_sentence(run, folder, tmp_path):
    schedule = tmp_path / "schedule.yaml"
    for text, said in (
        ("stages: [{start: 0, patch_size: 4}, {start: 0.5, patch_size: 8}]", "not monotone"),
        ("stages: [{start: 0, patch_size: 6}]", "patch size of 6 does not fit images of 16 x 16"),
    ):
        schedule.write_text(text)
        status, _, err = run("pretrain", "contrastive", folder, "--schedule", schedule, "--out", tmp_path / "o", *TINY)
        assert status == 2
        assert said in err
        assert err.count("\n") == 1
    for arguments, said in (
        (["contrastive", folder, "--method", "mae"], "--method takes one of moco, simclr, dino"),
        (["contrastive", folder, "--patch_size", "5", *TINY[4:]], "does not fit"),
        (["gradient-error", tmp_path, folder], "holds no weights of a pretraining"),
        (["contrastive"], "data"),
    ):
        status, _, err = run("pretrain", *arguments, "--out", tmp_path / "o")
        assert status == 2
        assert said in err
    assert "pretrain contrastive" in run("pretrain", "anything")[2]


def test_other_classes_cannot_be_measured_on(run, folder, noise_folder, tmp_path):
    other = noise_folder("other", ("cat", "bird"), 2)
    status, _, err = run("pretrain", "contrastive", folder, "--test", other, "--out", tmp_path / "o", *TINY)
    assert status == 2
    assert "has other classes than" in err


def test_the_demo_is_small_where_nothing_is_asked_for(run, tmp_path):
    few = ["--limit", 8, "--epochs", 1, "--batch_size", 8, "--workers", 0, "--evaluations", 1, "--fine_tune", 2]
    status, said, _ = run("pretrain", "contrastive", "demo:train", "--out", tmp_path / "o", "--probe_images", 8, *few)
    assert status == 0
    config = json.loads((tmp_path / "o" / "model" / "config.json").read_text())
    assert config["model_args"]["img_size"] == [48, 48]
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]
    assert "linear probe" in said
    assert "of the objects' colours" in said
    assert "after fine-tuning for 2 epochs" in said
    assert 0 <= json.loads((tmp_path / "o" / "results.json").read_text())["fine_tuned"] <= 100
