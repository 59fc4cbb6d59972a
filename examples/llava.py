"""LLaVA on fewer image tokens: a pruner on its image tower, and a prompt with as many placeholders as tokens go on.

    patchranking fit hf:TOWER photos --target tokens --keep 0.25 --out runs/llava
    python examples/llava.py llava photo.jpg "What is this?" runs/llava

TOWER is the folder or the name of the CLIP whose image encoder the model has. What works: the hidden state that LLaVA
reads has the class token and the patches that stay, and the language model reads these. What transformers refuses: a
prompt with a placeholder for every patch, as its processor makes it. What warns: a pruner fitted to the image feature,
``--target feature``, whose later stages are of no use to LLaVA.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jsonargparse import auto_cli
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import patchranking


@torch.inference_mode()
def main(model: Path, photo: Path, question: str, pruner: Path, max_new_tokens: int = 50) -> None:
    """Prints how many image tokens go on, what is refused, and the answer.

    Args:
        model: Folder of a LLaVA with its processor.
        photo: A picture.
        question: About the picture.
        pruner: Folder that ``patchranking fit --target tokens`` wrote for the image encoder.
        max_new_tokens: Length of the answer, at most.
    """
    llava, processor = LlavaForConditionalGeneration.from_pretrained(model), AutoProcessor.from_pretrained(model)
    prompt = f"USER: <image>\n{question} ASSISTANT:"
    inputs = processor(images=Image.open(photo).convert("RGB"), text=prompt, return_tensors="pt")
    ids, pixels = inputs["input_ids"][0], inputs["pixel_values"].to(llava.dtype)
    placeholder, tower = ids == llava.config.image_token_id, llava.model.vision_tower
    with patchranking.Pruner.from_pretrained(pruner).attached(tower):
        states = tower(pixels, output_hidden_states=True).hidden_states[llava.config.vision_feature_layer]
        kept = states.shape[1] - 1  # all but the class token, which LLaVA leaves out
        print(f"{kept} of {int(placeholder.sum())} image tokens go on")
        try:
            llava(input_ids=ids[None], pixel_values=pixels)
        except ValueError as error:
            print(f"refused with all placeholders: {error}")
        fewer = ids[~placeholder | (placeholder.cumsum(0) <= kept)][None]
        answer = llava.generate(input_ids=fewer, pixel_values=pixels, max_new_tokens=max_new_tokens)
    print(processor.decode(answer[0, fewer.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    auto_cli(main)
