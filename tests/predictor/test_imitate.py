from __future__ import annotations

import math

import pytest
import torch

from patchranking.errors import UserError
from patchranking.predictor.imitate import imitate
from patchranking.predictor.losses import LOSSES
from patchranking.predictor.networks import Predictor


@pytest.mark.parametrize("loss", LOSSES)
def test_it_learns_a_readable_importance_and_reports_the_held_out_images(loss):
    tokens = torch.randn(160, 13, 16)
    importance = tokens[:, 1:, 3] + 0.05 * torch.randn(160, 12)
    network = Predictor(16, 1, 12)
    report = imitate(network, tokens[None], importance[None], LOSSES[loss], epochs=30)
    assert (report.n_train, report.n_held_out, report.chance) == (144, 16, 0.5)
    assert report.matching_rate > 0.85
    fresh = torch.randn(50, 13, 16)
    agreement = torch.corrcoef(torch.stack([network(fresh).flatten(), fresh[:, 1:, 3].flatten()]))[0, 1]
    assert agreement > 0.85


def after(seed, tokens, importance, **settings):
    """Weights of a predictor after an imitation, all in a row."""
    torch.manual_seed(1)
    network = Predictor(16, 1, 12)
    imitate(network, tokens, importance, seed=seed, **settings)
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


def test_every_step_draws_one_view_with_its_own_importance():
    """The first step on two views is the one that either view alone would give, and both have their turn."""
    tokens, importance = torch.randn(2, 8, 13, 16), torch.randn(2, 8, 12)
    drawn = set()
    for seed in range(6):
        both = after(seed, tokens, importance, epochs=1)
        alone = [after(seed, tokens[[view]], importance[[view]], epochs=1) for view in range(2)]
        drawn |= {view for view in range(2) if torch.equal(both, alone[view])}
        assert any(torch.equal(both, weights) for weights in alone)
    assert drawn == {0, 1}


def test_the_epoch_kept_is_the_best_on_held_out_images_and_its_figures_are_reported():
    tokens, importance = torch.randn(2, 20, 13, 16), torch.randn(2, 20, 12)
    held_out = torch.randperm(20, generator=torch.Generator().manual_seed(4))[:5]
    settings = {"learning_rate": 1e-2, "held_out": held_out, "seed": 4}
    network = Predictor(16, 1, 12)
    start = {name: weight.clone() for name, weight in network.state_dict().items()}
    report = imitate(network, tokens, importance, epochs=40, **settings)
    assert (report.n_train, report.n_held_out, report.chance) == (15, 5, 0.5)
    assert report.epoch < 40
    with torch.no_grad():
        scores = network(tokens[0, held_out])
    assert report.loss == pytest.approx(LOSSES["listnet"](scores, importance[0, held_out]).item())
    tops = zip(scores.topk(6).indices.tolist(), importance[0, held_out].topk(6).indices.tolist(), strict=True)
    assert report.matching_rate == pytest.approx(sum(len({*a} & {*b}) for a, b in tops) / 30)
    for weights in (start, network.state_dict()):
        other = Predictor(16, 1, 12)
        other.load_state_dict(weights)
        assert report.loss <= imitate(other, tokens, importance, epochs=1, **settings).loss


def test_images_held_out_are_never_learned_from():
    tokens, importance = torch.randn(2, 20, 13, 16), torch.randn(2, 20, 12)
    held_out = torch.randperm(20, generator=torch.Generator().manual_seed(3))[:2]
    other = tokens.clone()
    other[:, held_out] = torch.randn(2, 2, 13, 16)
    assert torch.equal(after(3, other, importance, epochs=1), after(3, tokens, importance, epochs=1))


def test_steps_are_as_long_as_asked_and_fall_by_a_cosine_to_a_tenth(optimiser_steps):
    tokens, importance = torch.randn(1, 10, 13, 16), torch.randn(1, 10, 12)
    after(0, tokens, importance, epochs=8, batch_size=5, learning_rate=0.5, weight_decay=0.2)
    falling = [0.05 + 0.45 * (1 + math.cos(math.pi * epoch / 8)) / 2 for epoch in range(8)]
    assert [step["lr"] for step in optimiser_steps] == pytest.approx([rate for rate in falling for _ in range(2)])
    assert {step["weight_decay"] for step in optimiser_steps} == {0.2}


def test_every_step_has_a_gradient_of_its_own(optimiser_steps):
    tokens, importance = torch.randn(1, 10, 13, 16), torch.randn(1, 10, 12)
    after(0, tokens, importance, epochs=3, learning_rate=0.0)
    assert [step["norm"] for step in optimiser_steps] == pytest.approx([optimiser_steps[0]["norm"]] * 3)


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own():
    tokens, seen = torch.randn(1, 10, 13, 16), []

    class Watched(Predictor):
        def forward(self, entering):
            if self.training:
                seen.extend(int((tokens[0] == own).all((1, 2)).nonzero()) for own in entering)
            return super().forward(entering)

    imitate(Watched(16, 1, 12), tokens, torch.randn(1, 10, 12), epochs=2, batch_size=4)
    first, second = seen[:9], seen[9:]
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 9
    assert first != second != sorted(first)


def test_epochs_count_from_one_and_chance_is_the_share_of_the_top():
    network = Predictor(16, 1, 13)
    report = imitate(network, torch.randn(1, 10, 14, 16), torch.randn(1, 10, 13), epochs=1)
    assert (report.epoch, report.chance) == (1, 6 / 13)
    assert not network.training


def test_the_same_seed_gives_the_same_predictor_and_another_another():
    tokens, importance = torch.randn(1, 20, 13, 16), torch.randn(1, 20, 12)
    assert torch.equal(after(5, tokens, importance, epochs=3), after(5, tokens, importance, epochs=3))
    assert not torch.equal(after(5, tokens, importance, epochs=3), after(6, tokens, importance, epochs=3))


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="at least 4"):
        imitate(Predictor(16, 1, 12), torch.randn(1, 3, 13, 16), torch.randn(1, 3, 12))
