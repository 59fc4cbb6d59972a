from __future__ import annotations

import pytest
import torch

from patchranking.explore.says import Said, named, said, similarity


def test_names_come_with_commas_or_in_lines():
    assert named(" a cat,dog ,, \n big   bear, dog") == ["a cat", "dog", "big bear"]
    assert named(" , ") == []


def test_the_likeliest_classes_come_first():
    classes = torch.eye(3)
    found = said(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 0.0, 9.0]), classes, ["a", "b", "c"], 2.0, most=2)
    assert [name for name, _ in found.dense] == ["b", "a"]
    assert found.pruned[0][0] == "c"
    shares = (2 * torch.tensor([1.0, 2.0, 0.0]) / 5**0.5).softmax(0)
    assert found.dense[0][1] == pytest.approx(float(shares[1]))
    assert found.changed


def test_a_class_changes_where_another_is_first():
    assert not Said([("a", 0.9), ("b", 0.1)], [("a", 0.6), ("c", 0.4)]).changed
    assert similarity(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.6)
