from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.pruning.select import gather_tokens
from patchranking.ranking.gates import gated_features, probes, sketched_jacobian

BLOCK = 2


def tokens_of(case):
    return case.tower.embed(case.pixels, BLOCK).double()


@pytest.fixture
def exact(case):
    """The case in double precision."""
    case.model.double()
    case.pixels = case.pixels.double()
    return case


@pytest.mark.parametrize("grad", [False, True])
def test_hard_gates_equal_dropping_the_patches(exact, grad):
    tower, tokens = exact.tower, tokens_of(exact)
    kept = torch.stack([torch.randperm(tower.num_patches)[:5].sort().values for _ in tokens])
    log_gates = torch.full((len(tokens), tower.num_patches), -torch.inf, dtype=torch.double)
    log_gates.scatter_(1, kept, 0.0)
    with torch.set_grad_enabled(grad):
        gated = gated_features(tower, tokens, log_gates, BLOCK)
        pruned = gather_tokens(tokens, kept, tower.num_prefix_tokens)
        dropped = tower.pool(tower.run(pruned, BLOCK, positions=kept))
    torch.testing.assert_close(gated, dropped, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(gated, tower(exact.pixels), rtol=1e-4)


@torch.no_grad()
def test_open_gates_change_nothing(exact):
    tower, tokens = exact.tower, tokens_of(exact)
    open_gates = torch.zeros(len(tokens), tower.num_patches, dtype=torch.double)
    gated = gated_features(tower, tokens, open_gates, BLOCK)
    torch.testing.assert_close(gated, tower(exact.pixels), rtol=1e-9, atol=1e-11)


def test_gates_of_one_image_do_not_touch_another(exact):
    tower, tokens = exact.tower, tokens_of(exact)
    log_gates = torch.zeros(len(tokens), tower.num_patches, dtype=torch.double)
    log_gates[1, 3] = -2
    with torch.no_grad():
        moved = (gated_features(tower, tokens, log_gates, BLOCK) - tower(exact.pixels)).norm(dim=1)
    assert moved[1] > 1e-6
    assert moved[[0, 2]].max() < 1e-10


def test_the_jacobian_agrees_with_finite_differences(exact):
    tower, tokens = exact.tower, tokens_of(exact)
    torch.manual_seed(1)
    log_gates = (-torch.rand(len(tokens), tower.num_patches, dtype=torch.double)).requires_grad_()

    def unit(gates):
        return F.normalize(gated_features(tower, tokens, gates, BLOCK), dim=-1)

    size = unit(log_gates).shape[1]
    found = sketched_jacobian(gated_features(tower, tokens, log_gates, BLOCK), log_gates, torch.eye(size))
    step = 1e-5
    for patch in (0, tower.num_patches // 2, tower.num_patches - 1):
        move = torch.zeros_like(log_gates)
        move[:, patch] = step
        with torch.no_grad():
            slope = (unit(log_gates + move) - unit(log_gates - move)) / (2 * step)
        torch.testing.assert_close(found[:, :, patch].double(), slope, rtol=1e-4, atol=1e-7)


def test_as_many_probes_as_features_give_the_exact_gram_matrix(exact):
    tower, tokens = exact.tower, tokens_of(exact)
    log_gates = torch.zeros(len(tokens), tower.num_patches, dtype=torch.double, requires_grad=True)
    features = gated_features(tower, tokens, log_gates, BLOCK)
    size = features.shape[1]
    sketch = sketched_jacobian(features, log_gates, probes(size, size, seed=0)).double()
    jacobian = sketched_jacobian(features, log_gates, torch.eye(size)).double()
    gram = jacobian.transpose(1, 2) @ jacobian
    torch.testing.assert_close(sketch.transpose(1, 2) @ sketch, gram, rtol=1e-4, atol=1e-6 * gram.abs().max().item())


def test_few_probes_are_right_on_average():
    rows = torch.stack([probes(3, 12, seed) for seed in range(4000)])
    mean = (rows.transpose(1, 2) @ rows).mean(0)
    torch.testing.assert_close(mean, torch.eye(12), rtol=0, atol=0.12)


def test_probes_are_orthogonal_and_seeded():
    rows = probes(5, 16, 0)
    torch.testing.assert_close(rows @ rows.T, torch.eye(5) * 16 / 5)
    assert torch.equal(rows, probes(5, 16, 0))
    assert not torch.equal(rows, probes(5, 16, 1))


@pytest.mark.parametrize("count", [0, 9])
def test_probes_out_of_range(count):
    with pytest.raises(UserError, match="between 1 and 8 probes"):
        probes(count, 8, 0)
