from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import chain, islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from patchranking.errors import UserError
from patchranking.pretrain import Curriculum, CurriculumSampler
from patchranking.pretrain.curriculum import distinct_share, probabilities, uniform_share


@pytest.fixture
def distances():
    return np.random.default_rng(0).beta(3, 2, 30_000)


def test_it_is_imported_with_torch_and_numpy_alone():
    code = "import sys; from patchranking.pretrain import CurriculumSampler\n"
    code += "print(sorted({'sklearn', 'skimage', 'pyarrow', 'timm', 'lightning', 'PIL.Image'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("temperature", [0.03, 0.1, 0.5, 5.0])
def test_the_distinct_count_is_that_of_the_formula(distances, temperature):
    sampler = CurriculumSampler(distances, 1, Curriculum("fixed", temperature=temperature))
    drawn = np.array([sampler.draw(epoch) for epoch in range(12)])
    spread = np.ptp(distances)
    assert drawn.shape == (12, len(distances))
    assert sampler.share(0) == pytest.approx(distinct_share(distances, temperature * spread), rel=1e-3)
    distinct = np.mean([len(np.unique(epoch)) for epoch in drawn])
    assert distinct / len(distances) == pytest.approx(sampler.share(0), rel=0.01)
    expected = (distances * probabilities(distances, temperature * spread)).sum()
    assert distances[drawn].mean() == pytest.approx(expected, rel=0.02)


def test_every_image_is_drawn_as_often_as_its_probability_says():
    distances = np.array([0.0, 0.1, 0.1, 0.4, 1.0])
    sampler = CurriculumSampler(distances, 1, Curriculum("fixed", temperature=0.5))
    drawn = np.concatenate([sampler.draw(epoch) for epoch in range(8000)])
    frequency = np.bincount(drawn, minlength=5) / len(drawn)
    assert frequency == pytest.approx(probabilities(distances, 0.5), abs=0.01)


@pytest.mark.parametrize("order", ["prototype", "hard-first"])
def test_what_is_drawn_nears_the_whole_data_set(distances, order):
    sampler = CurriculumSampler(torch.from_numpy(distances), 20, Curriculum(order))
    shares = [sampler.share(epoch) for epoch in range(20)]
    assert shares[0] == pytest.approx(0.1, abs=1e-3)
    assert (np.diff(shares[:11]) > 0).all()
    assert shares[10:] == pytest.approx([uniform_share(len(distances))] * 10)
    means = [distances[sampler.draw(epoch)].mean() for epoch in range(0, 20, 2)]
    rising = np.diff(means[:6]) if order == "prototype" else -np.diff(means[:6])
    assert (rising > 0).all()
    assert means[5:] == pytest.approx([distances.mean()] * 5, abs=0.005)


def test_fixed_and_uniform_stay_as_they_are(distances):
    for order in ("fixed", "uniform"):
        sampler = CurriculumSampler(distances, 4, Curriculum(order))
        assert len({sampler.temperature(epoch) for epoch in range(6)}) == 1
    assert sampler.share(0) == pytest.approx(uniform_share(len(distances)))


@pytest.mark.parametrize("images", [24, 29])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_together_draw_the_same(images, ranks):
    own = np.linspace(0, 1, images)
    whole = list(CurriculumSampler(own, 2, seed=3))
    each = [CurriculumSampler(own, 2, seed=3, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    assert {len(sampler) for sampler in each} == {-(-images // ranks)}
    drawn = list(chain.from_iterable(zip(*each, strict=True)))
    assert drawn[:images] == whole
    assert drawn[images:] == whole[: len(drawn) - images]


def test_a_pass_is_the_next_epoch_unless_it_is_named():
    sampler = CurriculumSampler(np.linspace(0, 1, 50), 4)
    first, second = list(sampler), list(sampler)
    assert (first, second) == (sampler.draw(0).tolist(), sampler.draw(1).tolist())
    assert first != second
    sampler.set_epoch(0)
    assert list(islice(sampler, 3)) == first[:3]
    assert list(sampler) == first
    sampler.set_epoch(0)
    assert list(sampler) == first
    sampler.set_epoch(7)
    assert list(sampler) == sampler.draw(7).tolist()
    assert list(CurriculumSampler(np.linspace(0, 1, 50), 4, seed=1)) != first


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (4, 1), (1, 4), (2, 4)])
def test_one_that_is_resumed_draws_the_rest(before, after):
    own, used = np.random.default_rng(1).random(37), 5
    whole = CurriculumSampler(own, 6, seed=2).draw(2).tolist()
    running = [CurriculumSampler(own, 6, seed=2, num_replicas=before, rank=rank) for rank in range(before)]
    for sampler in running:
        sampler.set_epoch(2)
    taken = list(chain.from_iterable(zip(*(islice(sampler, used) for sampler in running), strict=True)))
    assert taken == whole[: used * before]
    state = json.loads(json.dumps(running[0].state_dict()))
    assert state == running[-1].state_dict(used)
    resumed = [CurriculumSampler(own, 6, seed=2, num_replicas=after, rank=rank) for rank in range(after)]
    for sampler in resumed:
        sampler.load_state_dict(state)
        sampler.set_epoch(2)
    rest = list(chain.from_iterable(zip(*resumed, strict=True)))
    assert rest[: 37 - len(taken)] == whole[len(taken) :]
    assert {len(list(sampler)) for sampler in resumed} == {-(-37 // after)}
    assert resumed[0].epoch == 3


def test_one_that_was_resumed_can_be_stopped_again():
    own = np.linspace(0, 1, 40)
    sampler = CurriculumSampler(own, 2)
    list(islice(sampler, 10))
    for taken in (7, 11):
        state = sampler.state_dict()
        sampler = CurriculumSampler(own, 2)
        sampler.load_state_dict(state)
        list(islice(sampler, taken))
    assert list(islice(sampler, 1)) == [sampler.draw(0)[17]]
    assert sampler.state_dict(11)["position"] == 28


def test_workers_that_fetch_ahead_are_no_reason_to_lose_images():
    own, data = np.linspace(0, 1, 32), TensorDataset(torch.arange(32))
    sampler = CurriculumSampler(own, 2)
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=1)
    (first,) = next(iter(loader))
    assert first.tolist() == sampler.draw(0)[:4].tolist()
    assert sampler.state_dict()["position"] > 4
    other = CurriculumSampler(own, 2)
    other.load_state_dict(sampler.state_dict(taken=4))
    assert list(other) == sampler.draw(0)[4:].tolist()


def test_over_a_million_images_are_solved_in_under_a_second():
    sampler = CurriculumSampler(np.random.default_rng(0).beta(4, 3, 1_280_000).astype(np.float32), 100)
    for epoch in (0, 25, 49):
        began = time.process_time()
        temperature = sampler.temperature(epoch)
        assert time.process_time() - began < 1
        assert temperature > 0
    assert sampler.share(0) == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], 1), "one for each image, and at least one"),
        (([0.1, float("nan")], 1), "finite numbers"),
        (([[0.1, 0.2]], 1), "one for each image"),
        (([0.1], -1), "'epochs' is a number, 0 or more"),
        (([0.1], 1, Curriculum(), -1), "'seed' is a whole number"),
        (([0.1], 1, Curriculum(), 0, 2, 2), "'rank' is below 'num_replicas', 2, not 2"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        CurriculumSampler(*arguments)


def test_one_image_or_none_that_differ_are_drawn_alike():
    assert list(CurriculumSampler([3.0], 1)) == [0]
    assert set(CurriculumSampler([2.0] * 9, 1, Curriculum("fixed"))) <= set(range(9))


def test_the_state_of_another_is_refused():
    state = CurriculumSampler([0.0, 1.0], 1).state_dict()
    with pytest.raises(UserError, match="images 2, not 3"):
        CurriculumSampler([0.0, 1.0, 2.0], 1).load_state_dict(state)
    with pytest.raises(UserError, match="seed 0, not 1"):
        CurriculumSampler([0.0, 1.0], 1, seed=1).load_state_dict(state)
