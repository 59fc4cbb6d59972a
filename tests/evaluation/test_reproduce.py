from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from patchranking import Pruner, load_data, load_model
from patchranking.data import of_classes
from patchranking.errors import UserError
from patchranking.evaluation.reproduce import Job, reproduce
from patchranking.fitting.fit import FitSettings
from patchranking.methods.a_vit import a_vit
from patchranking.methods.evit import fuse
from patchranking.pruning.attach import Reduced, attach_reductions
from patchranking.pruning.schedule import Schedule
from patchranking.tuning.tune import TuneSettings


@pytest.fixture(scope="module")
def model():
    return load_model("demo")


def scenes(split, limit):
    found = load_data(f"demo:{split}", limit)
    for _ in range(4):
        found = of_classes(found, "base")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture
def job(model, folder):
    tuning = TuneSettings(shots=1, epochs=1, num_tokens=2, batch_size=8, augment=False)
    return Job(
        model, scenes("test", 200), scenes("train", 200), None, folder, FitSettings(ranked=6, steps=2), tuning, 0
    )


def cells(rows):
    return {(row["row"], row["column"]): row["measured"] for row in rows}


def accuracy(job, encode):
    pixels = torch.stack([job.model.preprocess(job.test.image(index)) for index in range(len(job.test))])
    texts = job.model.text([job.test.templates[0].format(name) for name in job.test.class_names])
    with torch.inference_mode():
        found = (encode(pixels) @ texts.T).argmax(1).eq(torch.tensor(job.test.labels))
    return 100 * found.float().mean().item()


def test_table4_prunes_in_four_stages(job):
    rows = reproduce("table4", job)
    found = cells(rows)
    tower = job.model.tower
    schedule = Schedule({tower.depth * b // 12: 1 - 20 / 196 * stage for stage, b in enumerate((3, 5, 7, 9), 1)})
    assert found["dense", "progressive"] == pytest.approx(accuracy(job, tower))
    assert found["a-vit", "progressive"] == pytest.approx(
        accuracy(job, lambda x: a_vit(tower, tower.embed(x), schedule).features)
    )

    def evit(block, kept):
        return lambda tokens: Reduced(fuse(tokens, tower.class_attention(tokens, block), kept, 1))

    steps = {block: evit(block, kept) for block, kept in schedule.kept(tower.num_patches).items()}
    with attach_reductions(tower, steps):
        assert found["evit", "progressive"] == pytest.approx(accuracy(job, tower))
    fitted = Pruner.from_pretrained(job.out / f"pruner-{schedule.block}").scheduled(schedule)
    with fitted.attached(job.model.model):
        assert found["patchranking", "progressive"] == pytest.approx(accuracy(job, tower))
    assert {row["published"] for row in rows} == {None}
    job.test.name = "oxford_flowers"
    assert {row["row"]: row["published"] for row in reproduce("table4", job)}["evit"] == 67.1


def test_figure5_prunes_before_the_first_layer(job):
    found = cells(reproduce("figure5", job))
    assert list(found)[:2] == [("cls-attention", "90%"), ("patchranking", "90%")]
    assert len(found) == 10
    pruner = Pruner.from_pretrained(job.out / "pruner-0")
    pruner.keep = 0.5
    with pruner.attached(job.model.model):
        assert found["patchranking", "50%"] == pytest.approx(accuracy(job, job.model.tower))


def test_table1_has_oracles_and_matching_rates(job):
    job.test.name = "FGVCAircraft"
    rows = reproduce("table1", replace(job, fitting=replace(job.fitting, ranked=4)))
    found, published = cells(rows), {(row["row"], row["column"]): row["published"] for row in rows}
    assert {row["row"] for row in rows if row["oracle"]} >= {"golden, preservation", "golden, label"}
    assert not any(row["oracle"] for row in rows if row["row"] in ("dense", "predicted, preservation"))
    assert published["golden, label", "60%"] == 44.2
    assert published["matching rate, preservation", "80%"] == 89.3
    assert 30 < found["matching rate, preservation", "80%"] <= 100
    assert len([key for key in found if key[0].startswith("predicted")]) == 12


def test_table5_and_figure1_tune_tokens(job):
    found = cells(reproduce("table5", job))
    assert [row for row, _ in found] == [
        "dense",
        "pruned",
        "dense + text",
        "pruned + text",
        "dense + both",
        "pruned + both",
    ]
    assert len(list(job.out.glob("tuned-*/tuning.safetensors"))) == 4


def test_what_is_missing_is_named(job, model, tmp_path):
    bare = Job(model, job.test, None, None, tmp_path, job.fitting, job.tuning, 0)
    with pytest.raises(UserError, match="--train"):
        reproduce("figure5", bare)
    job.test.labels = None
    with pytest.raises(UserError, match="need classes"):
        reproduce("table4", job)
