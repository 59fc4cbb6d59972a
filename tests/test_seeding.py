from __future__ import annotations

import torch

from patchranking.seeding import seeded


def test_a_seed_gives_the_same_numbers_and_the_caller_goes_on_with_its_own():
    torch.manual_seed(1)
    expected = torch.rand(2), torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(2)
    with seeded(7):
        inside = torch.rand(3)
    assert torch.equal(first, expected[0])
    assert torch.equal(torch.rand(2), expected[1])
    assert torch.equal(inside, torch.rand(3, generator=torch.Generator().manual_seed(7)))
