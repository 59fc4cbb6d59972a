from __future__ import annotations

import torch
from torch.nn import functional as F

from patchranking.explore.disagree import disagreements


def test_the_worst_images_are_named_and_every_image_is_accounted_for(explorer, noise):
    entry = explorer.entry("patchranking", 0.6)
    found = disagreements(explorer.model, noise, entry, most=3)
    assert (found.compared, found.skipped) == (6, {"2.png": "a bad day"})
    cosines, changed = {}, set()
    classes = F.normalize(explorer.model.text([f"a {name}" for name in noise.class_names]), dim=-1)
    for image in (0, 1, 3, 4, 5, 6):
        pixels = explorer.model.preprocess(noise.image(image))[None]
        dense, pruned = explorer.model.tower(pixels)[0], entry.encoding(pixels)[0]
        cosines[image] = F.cosine_similarity(dense, pruned, dim=0).item()
        if torch.argmax(classes @ dense) != torch.argmax(classes @ pruned):
            changed.add(image)
    order = sorted(cosines, key=lambda image: (image not in changed, cosines[image]))
    assert [one.image for one in found.worst] == order[:3]
    assert found.changed == len(changed)
    assert abs(found.cosine - sum(cosines.values()) / 6) < 1e-5
    assert [one.changed for one in found.worst] == [image in changed for image in order[:3]]


def test_images_without_classes_are_compared_by_their_features(explorer, noise):
    noise.labels = None
    found = disagreements(explorer.model, noise, explorer.entry("tome", 0.6), most=2)
    assert (found.changed, found.worst[0].dense, found.worst[0].changed) == (None, None, False)
    assert found.worst[0].cosine <= found.worst[1].cosine
