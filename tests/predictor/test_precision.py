from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.predictor.distill import distill, soft_damage
from patchranking.predictor.networks import Predictor
from patchranking.predictor.precision import frozen_pass, precision_for
from patchranking.pruning.schedule import Schedule

TWO = Schedule({1: 0.75, 3: 0.5})


@pytest.mark.parametrize(
    ("names", "expected"), [((), "32-true"), (("avx512_bf16",), "bf16-mixed"), (("amx_tile",), "bf16-mixed")]
)
def test_it_is_mixed_where_the_processor_multiplies_bfloat16(tower, cpu, names, expected):
    cpu(*names)
    assert precision_for(tower) == expected
    assert precision_for(tower, "32-true") == "32-true"
    assert precision_for(tower, "bf16-mixed") == "bf16-mixed"


def test_a_model_in_half_precision_stays_as_it_is(tower, cpu):
    cpu("avx512_bf16")
    tower.module.half()
    assert precision_for(tower) == "32-true"
    with pytest.raises(UserError, match=r"weights are torch\.float16, and bf16-mixed is for float32"):
        precision_for(tower, "bf16-mixed")


def test_weights_ask_for_a_gradient_in_between_only(tower):
    first = next(tower.module.parameters()).requires_grad_(True)
    asking = lambda: [weight for weight in tower.module.parameters() if weight.requires_grad]  # noqa: E731
    with frozen_pass(tower, "32-true"):
        assert len(asking()) == len(list(tower.module.parameters()))
    assert [id(weight) for weight in asking()] == [id(first)]


def gradients(case, precision):
    """Of a distillation's loss by all that is learned of two stages."""
    tower = case.tower
    torch.manual_seed(1)
    schedule = Schedule({1: 0.75, 2: 0.5})
    predictors = {block: Predictor.for_tower(tower, "mlp", merges=True) for block in schedule.stages}
    tokens = tower.embed(case.pixels, 1)
    features = tower.pool(tower.run(tokens, 1))
    with frozen_pass(tower, precision):
        loss = soft_damage(predictors, tower, tokens, features, schedule, 0.1).mean()
    weights = [weight for own in predictors.values() for weight in own.parameters()]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return loss.detach(), torch.cat([own.flatten() for own in found if own is not None])


def test_gradients_are_those_of_a_tower_that_asks_for_none(case):
    loss, found = gradients(case, "32-true")
    case.tower.module.requires_grad_(True)
    expected_loss, expected = gradients(case, "32-true")
    assert loss == pytest.approx(expected_loss.item(), rel=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_mixed_gradients_point_the_same_way_in_float32(case):
    loss, found = gradients(case, "bf16-mixed")
    expected_loss, expected = gradients(case, "32-true")
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert loss == pytest.approx(expected_loss.item(), rel=0.1, abs=1e-5)
    assert F.cosine_similarity(found, expected, dim=0) > 0.85


def test_what_is_learned_in_mixed_precision_holds_in_float32(tower):
    tokens = (torch.randn(256, 4) @ torch.randn(4, 17 * 32)).unflatten(1, (17, 32))
    features = tower.pool(tower.run(tokens, 1)).detach()

    def error(precision, steps):
        torch.manual_seed(2)
        predictors = {block: Predictor.for_tower(tower, "mlp", merges=True) for block in TWO.stages}
        report = distill(
            predictors, tower, tokens[None], features[None], TWO, steps, learning_rate=2e-3, precision=precision
        )
        assert report.precision == precision
        return report.feature_error["0.5"]

    start, full, mixed = error("32-true", 1), error("32-true", 60), error("bf16-mixed", 60)
    assert full < 0.8 * start
    assert mixed == pytest.approx(full, rel=0.3)
