from __future__ import annotations

import open_clip
import pytest
import torch
from torch.nn import functional as F

from patchranking.methods.low_res import LowRes, low_res, low_res_schedule, small_grid
from patchranking.pruning.macs import analytic_macs
from patchranking.pruning.schedule import Schedule
from patchranking.towers import as_tower


def test_small_grids_keep_the_shape_of_the_picture():
    assert small_grid((12, 12), 144) == (12, 12)
    assert small_grid((12, 12), 143) == (11, 12)
    assert small_grid((12, 12), 125) == (11, 11)
    assert small_grid((3, 4), 6) == (2, 3)
    assert small_grid((12, 12), 10) == (3, 3)
    assert small_grid((12, 12), 1) == (1, 1)


@torch.inference_mode()
def test_it_equals_the_librarys_model_of_the_smaller_size():
    def model(side):
        vision = {"image_size": side, "patch_size": 8, "width": 32, "head_width": 16, "layers": 3}
        return open_clip.CLIP(24, vision, {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1})

    large, small = model(48).eval(), model(32).eval()
    state = large.state_dict()
    open_clip.model.resize_pos_embed(state, small, interpolation="bicubic", antialias=True)
    small.load_state_dict(state)
    pixels = torch.randn(2, 3, 48, 48)
    shrunk = F.interpolate(pixels, (32, 32), mode="bicubic", antialias=True)
    found = low_res(as_tower(large), pixels, Schedule({0: 16 / 36}))
    torch.testing.assert_close(found, small.encode_image(shrunk), atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_it_leaves_the_model_as_it_was_and_the_full_size_alone(case):
    tower = case.tower
    before = tower(case.pixels)
    smaller = low_res(tower, case.pixels, Schedule({0: 0.5}))
    assert smaller.shape == before.shape
    assert not torch.allclose(smaller, before)
    assert torch.equal(tower(case.pixels), before)
    assert torch.equal(low_res(tower, case.pixels, Schedule({0: 1.0})), before)


def test_its_macs_are_those_of_pruning(tower):
    for kept in (14, 12, 8):
        beside = Schedule({3: kept / 16})
        schedule, aim = low_res_schedule(tower, beside), analytic_macs(tower, 0, beside)
        assert analytic_macs(tower, 0, schedule) == pytest.approx(aim, rel=0.15)
        rows, columns = small_grid(tower.grid, schedule.kept(16)[0])
        assert rows * columns == schedule.kept(16)[0]


@torch.inference_mode()
def test_the_method_takes_the_size_whose_macs_are_nearest_and_the_pixels(tower):
    pixels, reference = torch.randn(2, 3, 32, 32), Schedule({2: 0.5})
    encoding = LowRes().at(tower, reference, 0)
    sizes = [r * c for r in range(1, 5) for c in range(1, 5) if abs(r - c) <= 1]
    aim = analytic_macs(tower, 0, reference)
    nearest = min(sizes, key=lambda size: abs(analytic_macs(tower, 0, Schedule({0: size / 16})) - aim))
    assert encoding.schedule == low_res_schedule(tower, reference) == Schedule({0: nearest / 16})
    assert torch.equal(encoding(pixels), low_res(tower, pixels, encoding.schedule))


@torch.inference_mode()
def test_an_error_on_the_way_leaves_the_positions_as_they_were(tower):
    before = tower.position_embedding.clone()
    tower.embed = None
    with pytest.raises(TypeError):
        low_res(tower, torch.randn(1, 3, 32, 32), Schedule({0: 0.25}))
    assert torch.equal(tower.position_embedding, before)


@torch.inference_mode()
def test_a_rotary_model_rotates_like_the_patches_under_those_of_the_small_picture(rotary_case, monkeypatch):
    tower, seen = rotary_case.tower, []
    run = tower.run
    monkeypatch.setattr(tower, "run", lambda *given, **named: seen.append(named) or run(*given, **named))
    low_res(tower, rotary_case.pixels, Schedule({0: 0.25}))
    assert seen[-1]["positions"].tolist() == [[5, 7, 13, 15]] * 3
