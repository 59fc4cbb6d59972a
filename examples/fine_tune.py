"""Fine-tunes a CLIP with a pruner attached, by LoRA: forward and backward passes run on the patches that stay.

    python examples/fine_tune.py clip photos/train runs/fit runs/lora

The pruner gets no gradient, and the weights it was fitted to stay as they are: it serves the model with its adapter as
before. Were the weights themselves trained, another pruner would have to be fitted to them afterwards.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import auto_cli
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

import patchranking


def main(model: Path, photos: Path, pruner: Path, out: Path, epochs: int = 5, batch_size: int = 16) -> None:
    """Trains an adapter of the image encoder and saves it.

    Args:
        model: Folder of a transformers CLIP.
        photos: Folder with one sub-folder per class.
        pruner: Folder that ``patchranking fit`` wrote for ``hf:MODEL``.
        out: Folder for the adapter.
        epochs: Passes over the photos.
        batch_size: Images of a step.
    """
    torch.manual_seed(0)
    clip, processor = CLIPModel.from_pretrained(model, dtype=torch.float32), AutoImageProcessor.from_pretrained(model)
    data = ImageFolder(str(photos), lambda image: processor(image, return_tensors="pt")["pixel_values"][0])
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in data.classes]
    tokens = AutoTokenizer.from_pretrained(model)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        classes = clip.logit_scale.exp() * F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
    lora = get_peft_model(clip, LoraConfig(r=8, target_modules=r"vision_model.*(q_proj|v_proj)"))
    optimiser = torch.optim.AdamW([weight for weight in lora.parameters() if weight.requires_grad], lr=1e-3)
    with patchranking.Pruner.from_pretrained(pruner).attached(lora):
        for epoch in range(epochs):
            losses = []
            for pixels, labels in DataLoader(data, batch_size, shuffle=True):
                features = F.normalize(clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
                loss = F.cross_entropy(features @ classes.T, labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                losses.append(loss.item())
            print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")
    lora.save_pretrained(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    auto_cli(main)
