from __future__ import annotations

import pytest
import torch

from patchranking.errors import UserError
from patchranking.prompts.tokens import Prompts
from patchranking.tuning.checkpoint import Checkpoint, Progress


def started(folder, identity="this one"):
    """A checkpoint, its tokens and their optimiser, as at the start of a tuning."""
    prompts = Prompts("both", 6, 8, num_tokens=2, depth=2)
    optimiser = torch.optim.SGD(prompts.parameters(), 0.1, momentum=0.9)
    return Checkpoint(folder / "progress", identity, prompts, optimiser), prompts, optimiser


def step(prompts, optimiser):
    optimiser.zero_grad()
    sum((weight - place).square().sum() for place, weight in enumerate(prompts.parameters())).backward()
    optimiser.step()


def values(prompts):
    return {name: value.clone() for name, value in prompts.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_without_a_file_it_begins(tmp_path):
    checkpoint, prompts, optimiser = started(tmp_path)
    before = values(prompts)
    assert checkpoint.resume() == Progress(0, 0.0, [], [])
    assert same(values(prompts), before)
    assert not optimiser.state


def test_a_resumed_tuning_goes_on_as_one_that_never_stopped(tmp_path):
    checkpoint, prompts, optimiser = started(tmp_path)
    for _ in range(3):
        step(prompts, optimiser)
    progress = Progress(step=3, total=0.25, loss=[0.5, 0.125], held_out=[0.75, 0.5])
    checkpoint.save(progress, best=False)
    again, others, other_optimiser = started(tmp_path)
    assert not same(values(others), values(prompts))
    assert again.resume() == progress
    assert same(values(others), values(prompts))
    for _ in range(2):
        step(prompts, optimiser)
        step(others, other_optimiser)
        assert same(values(others), values(prompts)), "momentum goes on too"


def test_the_best_tokens_are_those_of_the_save_that_said_so(tmp_path):
    checkpoint, prompts, optimiser = started(tmp_path)
    seen = []
    for best in (True, True, False):
        step(prompts, optimiser)
        seen.append(values(prompts))
        checkpoint.save(Progress(), best)
    again, others, _ = started(tmp_path)
    again.resume()
    assert same(values(others), seen[2])
    step(prompts, optimiser)
    for made, own in ((checkpoint, prompts), (again, others)):
        made.load_best()
        assert same(values(own), seen[1])


def test_the_best_of_before_a_stop_is_kept_by_later_saves(tmp_path):
    checkpoint, prompts, optimiser = started(tmp_path)
    step(prompts, optimiser)
    checkpoint.save(Progress(), best=True)
    best = values(prompts)
    for _ in range(2):
        checkpoint, prompts, optimiser = started(tmp_path)
        checkpoint.resume()
        step(prompts, optimiser)
        checkpoint.save(Progress(), best=False)
    checkpoint.load_best()
    assert same(values(prompts), best)


def test_the_progress_of_another_tuning_is_refused_and_left_alone(tmp_path):
    checkpoint, prompts, optimiser = started(tmp_path)
    step(prompts, optimiser)
    checkpoint.save(Progress(step=1), best=False)
    other, others, _ = started(tmp_path, "another one")
    before, file = values(others), (tmp_path / "progress").read_bytes()
    with pytest.raises(UserError, match="choose another folder, or delete it"):
        other.resume()
    assert same(values(others), before)
    assert (tmp_path / "progress").read_bytes() == file
    assert [path.name for path in tmp_path.iterdir()] == ["progress"]


@pytest.mark.parametrize(
    ("held_out", "best"), [([], 4), ([0.5], 1), ([0.25, 0.75, 0.5, 0.75], 2), ([0.0, 0.0], 1), ([0.1, 0.2, 0.3], 3)]
)
def test_the_best_epoch_is_the_first_of_the_best_and_without_held_out_images_the_last(held_out, best):
    assert Progress(loss=[4.0, 3.0, 2.0, 1.0], held_out=held_out).best_epoch == best
