from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

lightly = pytest.importorskip("lightly.models")

from lightly.models.modules import MaskedVisionTransformerTIMM  # noqa: E402
from lightly.models.utils import patchify  # noqa: E402

from patchranking.pretrain.encoder import make_encoder  # noqa: E402
from patchranking.pretrain.mae import MAE  # noqa: E402
from patchranking.pretrain.objective import Normalisation, Step  # noqa: E402
from patchranking.pretrain.pictures import drop_noise  # noqa: E402
from patchranking.seeding import seeded  # noqa: E402

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
BATCH = 3


@pytest.fixture
def mae():
    encoder = make_encoder("vit_tiny_patch16_224", 24, 4, SMALL, 0)
    with seeded(0):
        return MAE(encoder, width=32, depth=1)


def step(mae, seed=0):
    return Step(mae.base, drop_noise(seed, 0, BATCH), 0.0)


def by_hand(mae, pixels, seed=0):
    """The loss with the encoder of lightly, image by image and patch by patch."""
    noise = drop_noise(seed, 0, BATCH)(36)
    encode = MaskedVisionTransformerTIMM(
        mae.encoder, weight_initialization="skip", pos_embed_initialization="skip"
    ).encode
    errors = []
    for image, own in zip(pixels, noise, strict=True):
        order = own.argsort()
        visible, hidden = order[:9].sort().values, order[9:].sort().values
        seen = mae.embed(encode(image[None], idx_keep=torch.cat([torch.zeros(1, dtype=int), 1 + visible])[None])[0])
        tokens = mae.decoder.mask_token[0].repeat(37, 1)
        tokens[0], tokens[1 + visible] = seen[0], seen[1:]
        predicted = mae.predict(mae.decoder(tokens[None])[0, 1 + hidden])
        for place, patch in zip(hidden.tolist(), predicted, strict=True):
            row, column = divmod(place, 6)
            true = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
            errors.append(((true - true.mean()) / (true.var() + 1e-6).sqrt() - patch).square().mean())
    return torch.stack(errors).mean()


def test_the_loss_is_that_of_the_paper(mae):
    pixels = torch.randn(BATCH, 3, 24, 24)
    torch.testing.assert_close(mae([pixels], step(mae)), by_hand(mae, pixels))


def test_only_hidden_patches_count_and_only_seen_ones_are_read(mae):
    pixels = torch.randn(BATCH, 3, 24, 24)
    noise = drop_noise(0, 0, BATCH)(36)
    visible = noise < noise.kthvalue(10, dim=1, keepdim=True).values
    mask = visible.view(BATCH, 1, 6, 6).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(mask, pixels, 7 * torch.randn_like(pixels))
    filled, again = (mae.fill(image, drop_noise(0, 0, BATCH)) for image in (pixels, other))
    assert torch.equal(filled.visible, visible)
    assert torch.equal(filled.pixels * mask, pixels * mask)
    first, second = (patchify(one.pixels, 4)[~visible] for one in (filled, again))
    first, second = ((one - one.mean(1, keepdim=True)) / one.std(1, keepdim=True) for one in (first, second))
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


def test_weights_and_positions_are_those_of_the_original(mae):
    position = mae.encoder.pos_embed
    assert not position.requires_grad
    assert position[0, 0].abs().max() == 0
    assert position[0, 1:].norm(dim=1) == pytest.approx([12**0.5] * 36, rel=1e-4)
    bound = (6 / (24 + 72)) ** 0.5
    assert mae.encoder.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)


def test_it_learns_to_fill_in_what_repeats(mae):
    rows = torch.sin(torch.arange(24) * 0.8)[:, None].expand(24, 24)
    pixels = torch.stack([rows, rows.T, rows + rows.T])[:, None].expand(-1, 3, -1, -1).contiguous()
    optimiser = torch.optim.AdamW(mae.parameters(), 3e-3)
    losses = []
    for turn in range(60):
        loss = mae([pixels], step(mae, turn))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    filled = mae.fill(pixels, drop_noise(0, 0, BATCH)).pixels
    assert F.mse_loss(filled, pixels) < 0.3


def test_raw_pixels_may_be_predicted():
    encoder = make_encoder("vit_tiny_patch16_224", 24, 4, SMALL, 0)
    mae = MAE(encoder, width=32, depth=1, normalise=False)
    pixels = torch.randn(BATCH, 3, 24, 24)
    noise = drop_noise(0, 0, BATCH)(36)
    hidden = noise >= noise.kthvalue(10, dim=1, keepdim=True).values
    filled = mae.fill(pixels, drop_noise(0, 0, BATCH)).pixels
    expected = (patchify(filled - pixels, 4)[hidden]).square().mean()
    torch.testing.assert_close(mae([pixels], step(mae)), expected)


def test_a_pass_costs_what_the_parts_cost(mae):
    seen, tokens = 1 + 9, 37
    encoder = 36 * 48 * 24 + 2 * (12 * tokens * 24**2 + 2 * tokens**2 * 24)
    masked = 36 * 48 * 24 + 2 * (12 * seen * 24**2 + 2 * seen**2 * 24)
    decoder = 12 * tokens * 32**2 + 2 * tokens**2 * 32 + seen * 24 * 32 + 27 * 32 * 48
    assert mae.passes(mae.base) == pytest.approx((masked + decoder) / encoder)


def test_views_are_normalised_crops(mae):
    picture = Image.new("RGB", (40, 30), (255, 0, 51))
    (view,) = mae.views(Normalisation((0.5, 0.5, 0.2), (0.5, 0.25, 0.1)))(picture)
    assert view.shape == (3, 24, 24)
    assert view[:, 0, 0].tolist() == pytest.approx([1, -2, 0], abs=1e-5)
