from __future__ import annotations

import torch

from patchranking.prompts.insert import tuned_class_features


class Tuned:
    """What ``tuned_class_features`` reads of tokens."""

    class_names = ("missile", "missile", "circle")
    class_features = torch.eye(3)


def test_row_i_is_for_class_i_whatever_the_names():
    tuned = Tuned()
    tuned.class_names = list(Tuned.class_names)
    assert torch.equal(tuned_class_features(tuned, list(Tuned.class_names)), torch.eye(3))
