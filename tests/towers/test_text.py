from __future__ import annotations

import torch

from patchranking.towers.text import TextTower


@torch.inference_mode()
def test_calling_encodes_the_ids_of_the_texts():
    text = TextTower(lambda texts: torch.tensor([[len(t)] for t in texts]), lambda ids: ids * 2.0, context_length=1)
    assert text(["a", "four"]).tolist() == [[2.0], [8.0]]
    assert (text.embedding, text.blocks) == (None, ())


@torch.inference_mode()
def test_ids_are_no_longer_than_the_context_and_features_are_unit_vectors(text):
    ids = text.tokenize(["a sun", "very " * 99])
    assert ids.shape == (2, text.context_length) == (2, 24)
    assert ids[1, -1] == text.tokenize([""])[0].max()  # the end
    torch.testing.assert_close(text.encode(ids).norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(text(["a sun", "very " * 99]), text.encode(ids))


@torch.inference_mode()
def test_the_embedding_and_the_blocks_are_those_the_model_runs(text):
    seen = []
    parts = [text.embedding, *text.blocks]
    hooks = [part.register_forward_hook(lambda part, *_: seen.append(part)) for part in parts]
    text(["a sun"])
    for hook in hooks:
        hook.remove()
    assert seen == parts
    assert len(text.blocks) > 1
