from __future__ import annotations

import re

import demo_model
import torch
from demo_model import Muon, Scenes, Trainer, build_model, of_patches, orthogonalise, train_tokenizer
from torch.utils.data import DataLoader

from patchranking.demo.scenes import CLASSES, TEMPLATES
from patchranking.pretrain.compression import Compression
from patchranking.pretrain.schedule import CompressionSchedule, Stage


def test_orthogonalise_keeps_the_singular_vectors_and_levels_the_values():
    for shape in ((12, 30), (30, 12)):
        matrix = torch.randn(shape)
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        levelled = u.T @ orthogonalise(matrix) @ v.T
        assert (levelled.diagonal() > 0.6).all()
        assert (levelled.diagonal() < 1.3).all()
        assert (levelled - levelled.diagonal().diag()).abs().max() < 0.05


def test_muon_goes_downhill():
    weight = torch.nn.Parameter(torch.randn(6, 4))
    target = torch.randn(6, 4)
    optimiser = Muon([weight], 0.3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (weight - target).square().sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_attention_starts_local_with_one_offset_a_head():
    trainer = Trainer(build_model(train_tokenizer()), train_tokenizer())
    tower = trainer.tower
    pixels = torch.stack([Scenes("train", 0, 2)[index][0] for index in range(2)])
    with torch.inference_mode():
        tokens = tower.embed(pixels)
        block = tower.blocks[0]
        normed = block.layer_norm1(tokens)
        heads = (2, 145, tower.num_heads, -1)
        query, key = (p(normed).view(heads) for p in (block.self_attn.q_proj, block.self_attn.k_proj))
        best = torch.einsum("bqhd,bkhd->bhqk", query, key)[:, :, 1:, 1:].argmax(-1)
    row, column = best // 12, best % 12
    place = torch.arange(144)
    inner = ((place // 12) > 1) & ((place // 12) < 10) & ((place % 12) > 1) & ((place % 12) < 10)
    for head in range(tower.num_heads):
        shift = torch.stack([row[:, head] - place // 12, column[:, head] - place % 12], -1)[:, inner].flatten(0, 1)
        common = shift.mode(0).values
        assert common.abs().max() <= 2
        assert ((shift - common).abs().sum(-1) == 0).float().mean() > 0.6


def test_losses_reach_every_weight():
    tokenizer = train_tokenizer()
    trainer = Trainer(build_model(tokenizer), tokenizer)
    batch = next(iter(DataLoader(Scenes("train", 0, 4), batch_size=4)))
    losses = trainer.loss(batch, TEMPLATES[0])
    assert set(losses) == {"contrastive", "classes", "patches"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


def test_a_compressed_step_teaches_the_same_weights():
    tokenizer = train_tokenizer()
    trainer = Trainer(build_model(tokenizer), tokenizer)
    batch = next(iter(DataLoader(Scenes("train", 0, 4), batch_size=4)))
    sum(trainer.loss(batch, TEMPLATES[0], Compression(16, 0.5)).values()).backward()
    assert all(parameter.grad is not None for parameter in trainer.model.parameters())


def test_coverage_of_larger_patches_is_that_of_theirs():
    coverage = torch.rand(2, 144)
    torch.testing.assert_close(of_patches(coverage, 8), coverage)
    expected = coverage.view(2, 6, 2, 6, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(of_patches(coverage, 16), expected)
    torch.testing.assert_close(of_patches(coverage, 12).mean(1), coverage.mean(1))


def test_training_with_a_schedule_spends_the_same_on_images(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_model, "Scenes", lambda split, start, stop: Scenes(split, start, min(stop, start + 8)))
    CompressionSchedule((Stage(0.0, Compression(16, 0.5)), Stage(0.5, Compression(8)))).save(tmp_path / "s.yaml")
    demo_model.train(tmp_path / "model", steps=1, batch_size=1, schedule=tmp_path / "s.yaml")
    steps = int(re.search(r"step (\d+) .* zero-shot", capsys.readouterr().out)[1])
    assert steps > 3
    assert (tmp_path / "model" / "config.json").is_file()


def test_coverage_marks_the_patches_of_the_object():
    pixels, label, _, coverage = Scenes("val", 3, 4)[0]
    assert pixels.shape == (3, 96, 96)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert 0 <= label < len(CLASSES)
    assert coverage.shape == (144,)
    assert 2 < (coverage > 0.15).sum() < 100
