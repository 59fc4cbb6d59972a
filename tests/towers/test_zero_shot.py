from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from patchranking.errors import UserError
from patchranking.towers.zero_shot import class_features


def encode(texts):
    return F.normalize(torch.tensor([[len(t), t.count("a") + 1.0, 3.0] for t in texts]), dim=-1)


def test_class_features_are_normalised_means_over_templates():
    found = class_features(encode, ["cat", "a dog"], ["a {}.", "the {}"])
    for row, name in enumerate(["cat", "a dog"]):
        mean = (encode([f"a {name}."])[0] + encode([f"the {name}"])[0]) / 2
        torch.testing.assert_close(found[row], mean / mean.norm())


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_needs_one_place(template):
    with pytest.raises(UserError, match="exactly one"):
        class_features(encode, ["cat"], [template])


def test_class_features_carry_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    assert not class_features(lambda texts: encode(texts) * weight, ["cat"], ["a {}."]).requires_grad
