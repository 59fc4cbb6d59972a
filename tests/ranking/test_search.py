from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchranking.data import load_data
from patchranking.errors import UserError
from patchranking.pruner import Pruner
from patchranking.pruning.schedule import Schedule
from patchranking.pruning.select import gather_tokens, top_patches
from patchranking.ranking.iterative import iterative
from patchranking.ranking.leave_out import leave_out
from patchranking.ranking.objectives import confidence, label
from patchranking.ranking.search import SCORES, SEARCHES, SearchSettings, prepare_search
from patchranking.ranking.sketched import sketched
from patchranking.towers import as_tower
from patchranking.towers.load import load_model
from patchranking.towers.zero_shot import class_features


@pytest.fixture(scope="module")
def demo():
    return load_model("demo"), load_data("demo:test", 3)


def pixels_of(model, data):
    return torch.stack([model.preprocess(data.image(index)) for index in range(len(data))])


@pytest.mark.parametrize(
    ("search", "score"), [*(("sketched", score) for score in SCORES), ("sketched-quality", "label")]
)
def test_every_search_takes_every_score(demo, search, score):
    model, data = demo
    settings = SearchSettings(search, score, block=6, stride=2)
    ranking = prepare_search(model, data, settings)(pixels_of(model, data), [0, 1, 2])
    assert ranking.importance.isfinite().all()
    assert torch.equal(ranking.removal_order.sort(dim=1).values, torch.arange(144).expand(3, -1))


def test_settings_reach_the_search(demo):
    model, data = demo
    pixels = pixels_of(model, data)
    found = prepare_search(model, data, SearchSettings("leave-out", block=6, window=3, stride=3))(pixels, [0, 1, 2])
    assert torch.equal(found.importance, leave_out(model.tower, pixels, 6, 3, 3).importance)
    found = prepare_search(model, data, SearchSettings(block=6, seed=5))(pixels, [0, 1, 2])
    assert torch.equal(found.importance, sketched(model.tower, pixels, 6, seed=5).importance)


def test_scores_by_class_have_the_scale_and_the_templates_of_model_and_data(tiny):
    data = load_data("demo:test", 3)
    pixels, classes = pixels_of(tiny, data), class_features(tiny.text, data.class_names, data.templates)
    objectives = {"confidence": confidence(classes, 10.0), "label": label(classes, 10.0, torch.tensor(data.labels))}
    for score, objective in objectives.items():
        found = prepare_search(tiny, data, SearchSettings("leave-out", score))(pixels, [0, 1, 2])
        expected = leave_out(tiny.tower, pixels, objective=objective)
        assert torch.equal(found.importance, expected.importance)


def test_the_iterative_search_removes_as_many_a_round_as_asked(tiny):
    data = load_data("demo:test", 2)
    pixels = pixels_of(tiny, data)
    found = prepare_search(tiny, data, SearchSettings("iterative", block=2, group=7))(pixels, [0, 1])
    assert torch.equal(found.removal_order, iterative(tiny.tower, pixels, block=2, group=7).removal_order)


def test_pixels_come_in_the_precision_of_the_model(tiny):
    data = load_data("demo:test", 2)
    pixels, search = pixels_of(tiny, data), SearchSettings("leave-out", stride=2)
    single = prepare_search(tiny, data, search)(pixels, [0, 1]).importance
    tiny.model.double()
    double = prepare_search(replace(tiny, tower=as_tower(tiny.model)), data, search)(pixels, [0, 1]).importance
    torch.testing.assert_close(double.float(), single, rtol=1e-2, atol=1e-6)


def test_labels_follow_the_images_of_the_batch(demo):
    model, data = demo
    search = prepare_search(model, data, SearchSettings("leave-out", "label", block=6, stride=2))
    pixels = pixels_of(model, data)
    whole = search(pixels, [0, 1, 2]).importance
    torch.testing.assert_close(search(pixels[[2, 0]], [2, 0]).importance, whole[[2, 0]], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(search(pixels[[2, 0]], [1, 1]).importance, whole[[2, 0]], rtol=1e-2)


def test_what_is_recorded():
    assert SearchSettings("leave-out", "label").to_dict() == {
        "search": "leave-out",
        "score": "label",
        "needs_labels": True,
        "block": 3,
        "window": 2,
        "stride": 1,
    }
    recorded = [SearchSettings(name, "confidence", block=2, group=7, seed=5).to_dict() for name in SEARCHES]
    assert [own.pop("search") for own in recorded] == list(SEARCHES)
    common = {"score": "confidence", "needs_labels": False, "block": 2}
    assert recorded == [
        common | {"num_probes": 3, "steps": 12, "seed": 5},
        common | {"num_probes": 4, "steps": 27, "seed": 5},
        common | {"window": 2, "stride": 1},
        common | {"group": 7},
    ]


@pytest.mark.parametrize(("field", "choices"), [("search", "sketched, sketched-quality"), ("score", "preservation")])
def test_unknown_names_list_the_known(field, choices):
    with pytest.raises(UserError, match=f"Unknown {field} 'best': choose from {choices}"):
        SearchSettings(**{field: "best"})


def test_scores_need_a_text_encoder_and_classes(demo, tmp_path):
    model, data = demo
    settings = SearchSettings(score="confidence")
    with pytest.raises(UserError, match="needs a text encoder, and 'demo' has none"):
        prepare_search(replace(model, text=None), data, settings)
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="needs classes"):
        prepare_search(model, load_data(str(tmp_path)), settings)


def test_settings_are_checked_before_an_image_is_read(demo):
    model, data = demo
    for settings in (SearchSettings(block=99), SearchSettings("leave-out", window=99)):
        with pytest.raises(UserError):
            prepare_search(model, data, settings)


def test_the_label_score_keeps_the_true_class_where_preservation_loses_it(demo):
    model, _ = demo
    data = load_data("demo:val", 12)
    classes = class_features(model.text, data.class_names, data.templates)
    pixels, right = pixels_of(model, data), {}
    for score in ("preservation", "label"):
        search = prepare_search(model, data, SearchSettings(score=score))
        importance = search(pixels, range(12)).importance
        with torch.inference_mode():
            tokens = model.tower.embed(pixels, 3)
            few = gather_tokens(tokens, top_patches(importance, 14), 1)
            predicted = (model.tower.pool(model.tower.run(few, 3)) @ classes.T).argmax(1)
        right[score] = np.mean(predicted.numpy() == np.array(data.labels))
    assert right["label"] > right["preservation"]


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_a_model_with_a_pruner_attached_is_refused(demo, keep):
    model, data = demo
    with Pruner.unfitted(model.tower, "demo", Schedule({4: 0.5})).attached(model.tower) as pruner:
        pruner.keep = keep
        for search in SEARCHES:
            with pytest.raises(UserError, match="detach the pruner first"):
                prepare_search(model, data, SearchSettings(search, block=2))
        for function in (sketched, leave_out, iterative):
            with pytest.raises(UserError, match="detach the pruner first"):
                function(model.tower, pixels_of(model, data), 2)
    model.tower.check_dense()
