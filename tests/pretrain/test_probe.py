from __future__ import annotations

import pytest
import torch
from torch import nn

from patchranking import load_data
from patchranking.errors import UserError
from patchranking.pretrain.probe import features_of, knn_accuracy, linear_accuracy, measures_of, read_labelled


def literal_knn(bank, bank_labels, queries, labels, k, temperature):
    hits = 0
    for query, label in zip(queries, labels, strict=True):
        cosines = [float(query @ one / query.norm() / one.norm()) for one in bank]
        nearest = sorted(range(len(bank)), key=lambda place: -cosines[place])[:k]
        votes = {}
        for place in nearest:
            own = int(bank_labels[place])
            votes[own] = votes.get(own, 0.0) + torch.tensor(cosines[place] / temperature).exp().item()
        hits += max(votes, key=votes.get) == int(label)
    return hits / len(queries)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_neighbours_vote_as_written_out(k):
    bank, queries = torch.randn(40, 6), torch.randn(30, 6)
    bank_labels, labels = torch.randint(4, (40,)), torch.randint(4, (30,))
    found = knn_accuracy(bank, bank_labels, queries, labels, k, 0.1)
    assert found == pytest.approx(literal_knn(bank, bank_labels, queries, labels, k, 0.1))


def test_a_linear_probe_finds_what_is_linear_and_not_scaled():
    labels = torch.randint(3, (300,))
    features = nn.functional.one_hot(labels, 3).float() * torch.tensor([1.0, 1e-3, 1e3]) + 1e-5 * torch.randn(300, 3)
    assert linear_accuracy(features[:200], labels[:200], features[200:], labels[200:]) == 1
    assert linear_accuracy(torch.randn(200, 3), labels[:200], torch.randn(100, 3), labels[200:]) < 0.6


def test_measures_are_of_whole_images(vit, noise_folder):
    data = load_data(str(noise_folder("noise", ("cat", "dog"), 4)))

    def preprocess(image):
        return torch.tensor(list(image.tobytes()), dtype=torch.float32).view(32, 32, 3).permute(2, 0, 1) / 255

    labelled = read_labelled(data, preprocess)
    assert labelled.pixels.shape == (8, 3, 32, 32)
    assert torch.equal(features_of(vit.eval(), labelled.pixels), vit(labelled.pixels).detach())
    features = features_of(vit, labelled.pixels)
    knn = knn_accuracy(features, labelled.labels, features, labelled.labels)
    assert measures_of(labelled, labelled)(vit) == {"knn": 100 * knn, "linear_probe": 100.0}


def test_without_classes_there_is_nothing_to_measure(tmp_path, noise_folder):
    folder = noise_folder("noise", ("cat",), 2) / "cat"
    with pytest.raises(UserError, match="no classes to evaluate on"):
        read_labelled(load_data(str(folder)), lambda image: torch.zeros(3, 2, 2))
