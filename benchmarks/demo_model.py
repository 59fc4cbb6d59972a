"""Trains the embedded demo model.

    python benchmarks/demo_model.py --out runs/demo_model

A CLIP is trained from scratch on generated scenes. Three things let it learn in an hour on two cores what would take a
day: its attention starts out local, as a convolution's; a throw-away head names the object, or the background, at
every patch; and the blocks' matrices are trained by orthogonalised momentum (Muon). The other terms are the
contrastive loss between images and captions and zero-shot classification against the prompts of all classes.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from common import main
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from patchranking.demo.scenes import BACKGROUNDS, CLASSES, COLOURS, SIZE, TEMPLATES, scene
from patchranking.errors import UserError
from patchranking.pretrain.compression import Compression, run_compressed
from patchranking.pretrain.cost import forward_share
from patchranking.pretrain.image_text import matches
from patchranking.pretrain.pictures import drop_noise
from patchranking.pretrain.schedule import CompressionSchedule
from patchranking.towers import as_tower

MEAN = STD = (0.5, 0.5, 0.5)
PATCH = 8
CONTEXT = 24
WHOLE = Compression(PATCH)


class Scenes(Dataset[tuple[Tensor, int, str, Tensor]]):
    """Scenes as pixels ``(3, SIZE, SIZE)``, label, caption and the share of each patch the object covers."""

    def __init__(self, split: str, start: int, stop: int) -> None:
        self.split, self.start, self.stop = split, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> tuple[Tensor, int, str, Tensor]:
        drawn = scene(self.split, self.start + index)
        pixels = torch.from_numpy(np.array(drawn.image)).permute(2, 0, 1).float() / 127.5 - 1
        side = SIZE // PATCH
        coverage = torch.from_numpy(drawn.mask.reshape(side, PATCH, side, PATCH).mean((1, 3)).ravel()).float()
        return pixels, drawn.label, drawn.caption, coverage


def train_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer for the captions' words."""
    words = [*CLASSES, *COLOURS, *BACKGROUNDS, *TEMPLATES, "an on of the background photo picture image with"]
    return CLIPTokenizer().train_new_from_iterator([words * 4], vocab_size=640, show_progress=False)


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The demo CLIP with random weights and local attention."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu",
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))
    start_local(model)
    return model


@torch.no_grad()
def start_local(model: CLIPModel) -> None:
    """Makes every head attend to the patch at its own random offset of up to two patches.

    The first channels hold sine-cosine positions; in them a shift is a rotation, which the query projection applies
    (structured initialisation of attention, Zheng et al., 2024).
    """
    side, heads = SIZE // PATCH, model.config.vision_config.num_attention_heads
    size = model.config.vision_config.hidden_size // heads
    frequencies = math.pi / (1.5 * 2 ** torch.linspace(0, 3, size // 4))
    place = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([place.sin(), place.cos()], dim=1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    embeddings = model.vision_model.embeddings
    embeddings.position_embedding.weight.normal_(std=0.02)
    embeddings.position_embedding.weight[1:, :size] += 0.5 * torch.cat([waves[rows.ravel()], waves[columns.ravel()]], 1)
    embeddings.patch_embedding.weight.normal_(std=0.05)
    embeddings.patch_embedding.weight[:size] *= 0.1
    for block in model.vision_model.encoder.layers:
        query, key = block.self_attn.q_proj.weight, block.self_attn.k_proj.weight
        query.normal_(std=0.01)
        key.normal_(std=0.01)
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            shifts = (_rotation(frequencies * int(torch.randint(-2, 3, ()))) for _ in range(2))
            query[own, :size] += 1.2 * torch.block_diag(*shifts)
            key[own, :size] += 1.2 * torch.eye(size)


def _rotation(angles: Tensor) -> Tensor:
    """Matrix that turns ``[sin a, cos a]`` into ``[sin(a + angles), cos(a + angles)]``."""
    cosine, sine = angles.cos().diag(), angles.sin().diag()
    return torch.cat([torch.cat([cosine, sine], 1), torch.cat([-sine, cosine], 1)])


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by a Newton-Schulz iteration (Jordan et al., 2024), in single precision.

    ``torch.optim.Muon`` iterates in bfloat16, which most CPUs only emulate.
    """

    def __init__(self, matrices: list[nn.Parameter], learning_rate: float) -> None:
        super().__init__(matrices, {"lr": learning_rate, "momentum": 0.95, "weight_decay": 0.05})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.mul_(group["momentum"]).add_(weight.grad)
                direction = orthogonalise(weight.grad + group["momentum"] * average)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Brings the singular values of a matrix near 1 and keeps its singular vectors."""
    a = matrix / (matrix.norm() + 1e-7)
    a = a.T if a.shape[0] > a.shape[1] else a
    for _ in range(steps):
        gram = a @ a.T
        a = 3.4445 * a + (-4.7750 * gram + 2.0315 * gram @ gram) @ a
    return a.T if matrix.shape[0] > matrix.shape[1] else a


def of_patches(coverage: Tensor, size: int) -> Tensor:
    """The share of larger patches that the object covers, from that of the model's own, ``(batch, patches)``."""
    side = SIZE // PATCH
    pixels = F.interpolate(coverage.view(-1, 1, side, side), SIZE, mode="nearest")
    return F.avg_pool2d(pixels, size).flatten(1)


class Trainer:
    """The losses of one step; owns the throw-away patch head."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.tower = as_tower(model)
        self.patch_head = nn.Linear(self.tower.width, len(CLASSES) + 1)
        self.patch_weights = torch.ones(len(CLASSES) + 1)
        self.patch_weights[-1] = 0.2

    def text_features(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
        return F.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)

    def loss(
        self,
        batch: tuple[Tensor, Tensor, list[str], Tensor],
        template: str,
        compression: Compression = WHOLE,
        step: int = 0,
    ) -> dict[str, Tensor]:
        pixels, labels, captions, coverage = batch
        noise = drop_noise(0, step, len(pixels))
        tokens, kept = run_compressed(self.tower, pixels, compression, noise)
        coverage = of_patches(coverage, compression.patch_size)
        coverage = coverage if kept is None else coverage.gather(1, kept)
        images = F.normalize(self.tower.pool(tokens), dim=-1)
        scale = self.model.logit_scale.exp().clamp(max=100)
        classes = self.text_features([template.format(name) for name in CLASSES])
        texts = self.text_features(captions)
        same = torch.tensor([[a == b for b in captions] for a in captions])
        owners = torch.where(coverage > 0.15, labels[:, None], len(CLASSES))
        return {
            "contrastive": matches(images, texts, same, scale),
            "classes": F.cross_entropy(scale * images @ classes.T, labels),
            "patches": F.cross_entropy(
                self.patch_head(tokens[:, 1:]).flatten(0, 1), owners.flatten(), weight=self.patch_weights
            ),
        }

    @torch.no_grad()
    def accuracy(self, data: DataLoader[tuple[Tensor, int, str, Tensor]]) -> float:
        """Zero-shot top-1 in percent, prompts averaged over the templates."""
        prompts = [self.text_features([t.format(name) for name in CLASSES]) for t in TEMPLATES]
        classes = F.normalize(torch.stack(prompts).mean(0), dim=-1)
        hits = [(self.tower(pixels) @ classes.T).argmax(1) == labels for pixels, labels, *_ in data]
        return 100 * torch.cat(hits).float().mean().item()


def train(
    out: Path = Path("runs/demo_model"),
    steps: int = 1900,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
    seed: int = 0,
    resume: Path | None = None,
    start: int = 0,
    schedule: Path | None = None,
) -> None:
    """Trains the demo model and writes a transformers folder in half precision.

    Args:
        out: Folder to write.
        steps: Optimiser steps without compression; with it there are more, at the same MACs of the image encoder.
        batch_size: Scenes per step.
        learning_rate: Muon's, at the peak of the warm-up and cosine schedule; AdamW takes half of it.
        seed: Random seed.
        resume: Folder written by an earlier run, to go on from its weights.
        start: Step to go on from, of training without compression.
        schedule: Compression over the share of the budget, a YAML file as pretrain contrastive writes and takes it.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer()
    model = build_model(tokenizer) if resume is None else CLIPModel.from_pretrained(resume, dtype=torch.float32)
    trainer = Trainer(model, tokenizer)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "encoder.layers" in name]
    chosen = {id(p) for p in matrices}
    parameters = [*model.parameters(), *trainer.patch_head.parameters()]
    others = [p for p in parameters if id(p) not in chosen]
    optimisers = [
        Muon(matrices, learning_rate),
        torch.optim.AdamW(others, learning_rate / 2, (0.9, 0.98), weight_decay=0.02),
    ]
    warm_up = max(1, steps // 60)
    compressions = CompressionSchedule.constant(WHOLE) if schedule is None else CompressionSchedule.load(schedule)
    compressions.check(trainer.tower, lambda one: forward_share(trainer.tower, one))
    if schedule is not None and start:
        raise UserError("A training with a schedule cannot go on from a step: leave --start out.")
    cheapest = min(forward_share(trainer.tower, one) for one in compressions.compressions)

    def rate(spent: float) -> float:
        return min((spent - start + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * spent / steps)) + 0.002)

    held_out = DataLoader(Scenes("val", 0, 500), batch_size=100)
    most = math.ceil((steps - start) / cheapest) + start
    loader = DataLoader(Scenes("train", start * batch_size, most * batch_size), batch_size=batch_size, num_workers=1)
    began, spent = time.monotonic(), float(start)
    peaks = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    for step, batch in enumerate(loader, start):
        progress = spent / steps
        compression = compressions.at(progress)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * rate(spent)
        losses = trainer.loss(batch, TEMPLATES[step % len(TEMPLATES)], compression, step)
        total = losses["contrastive"] + losses["classes"] + (1 - progress) * losses["patches"]
        total.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        spent += forward_share(trainer.tower, compression)
        done = spent > steps - 1e-6
        if step % 50 == 49:
            shown = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"step {step + 1} {progress:.1%} {time.monotonic() - began:.0f} s {shown}", flush=True)
        if step % 500 == 499 or done:
            seconds = time.monotonic() - began
            accuracy = trainer.accuracy(held_out)
            print(f"step {step + 1} {seconds:.0f} s zero-shot top-1 {accuracy:.1f} %", flush=True)
            save(model, tokenizer, out)
        if done:
            break


def save(model: CLIPModel, tokenizer: CLIPTokenizer, out: Path) -> None:
    """Writes the model in half precision, its tokenizer and its preprocessing."""
    half = CLIPModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


if __name__ == "__main__":
    main(train)
