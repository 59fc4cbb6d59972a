"""A CLIP of open_clip around a trained image encoder, and its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from patchranking.errors import UserError, check_numbers
from patchranking.extras import import_extra
from patchranking.files import make_folder, replacing, write_json
from patchranking.pretrain.objective import Normalisation
from patchranking.towers import as_tower

__all__ = ["ClipSettings", "make_clip", "open_clip_weights", "save_clip"]

_CONFIGURATION, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@dataclass(frozen=True)
class ClipSettings:
    """The text encoder, which learns from nothing, what both encoders share, and how pictures are seen.

    Attributes:
        features: Size of the features of images and texts.
        context: Tokens of a text, its start and its end included; what is longer is cut.
        width: Channels of the text encoder, a multiple of 32.
        depth: Its blocks.
        min_scale: Least share of a picture that a view shows.
    """

    features: int = 512
    context: int = 77
    width: int = 512
    depth: int = 12
    min_scale: float = 0.9

    def __post_init__(self) -> None:
        check_numbers(vars(self), features=1, context=3, width=32, depth=1)
        if self.width % 32:
            raise UserError(f"The 'width' of the text encoder is a multiple of 32, not {self.width}.")
        if not 0 < self.min_scale < 1:
            raise UserError(f"'min_scale' is a share of the picture, above 0 and below 1, not {self.min_scale:g}.")


def make_clip(encoder: nn.Module, settings: ClipSettings) -> tuple[nn.Module, dict[str, Any]]:
    """A CLIP whose image encoder computes what a trained one does, up to a linear layer to the shared features.

    The tokenizer is that of CLIP, which comes with open_clip. New weights are drawn by torch's random numbers.

    Args:
        encoder: A plain vision transformer of timm with a class token, from ``make_encoder``, trained.
        settings: The other side.

    Returns:
        The model and its configuration, as open_clip takes it.

    Raises:
        UserError: If open_clip has no such image encoder.
        MissingExtraError: If open_clip or timm is not installed.
    """
    open_clip = import_extra("open_clip", "A CLIP needs open_clip", "open-clip")
    tower, trained = as_tower(encoder), open_clip_weights(encoder)
    vision = {
        "image_size": tower.image_size[0],
        "patch_size": tower.image_size[0] // tower.grid[0],
        "width": tower.width,
        "head_width": tower.width // tower.num_heads,
        "layers": tower.depth,
        "mlp_ratio": tower.mlp_width / tower.width,
        "no_ln_pre": True,
        "norm_kwargs": {"eps": cast(nn.LayerNorm, encoder.norm).eps},
    }
    text = {
        "context_length": settings.context,
        "width": settings.width,
        "heads": settings.width // 32,
        "layers": settings.depth,
    }
    configuration = {"embed_dim": settings.features, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(**configuration)
    own = {name: value.shape for name, value in model.visual.state_dict().items() if name != "proj"}
    if own != {name: value.shape for name, value in trained.items()}:
        raise _no_clip(encoder)
    model.visual.load_state_dict(trained, strict=False)
    return model, configuration


def open_clip_weights(encoder: nn.Module) -> dict[str, Tensor]:
    """Weights of timm's plain vision transformer under the names of open_clip's.

    open_clip's patch embedding has no bias; it goes into the position embedding of every patch, which is the same.

    Raises:
        UserError: If the encoder is another transformer.
    """
    transformers = import_extra("timm.models.vision_transformer", "A CLIP needs timm", "pretrain")
    known = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    if type(encoder) is not transformers.VisionTransformer or encoder.global_pool != "token":
        raise _no_clip(encoder)
    try:
        positions = known.pop("pos_embed")[0]
        positions[1:] += known.pop("patch_embed.proj.bias")
        found = {
            "class_embedding": known.pop("cls_token").flatten(),
            "positional_embedding": positions,
            "conv1.weight": known.pop("patch_embed.proj.weight"),
        }
    except KeyError:
        raise _no_clip(encoder) from None
    return found | {_renamed(name): value for name, value in known.items()}


def _renamed(name: str) -> str:
    """The name of a weight of a block or of the last norm in open_clip."""
    for own, other in (
        ("blocks.", "transformer.resblocks."),
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
        (".attn.qkv.", ".attn.in_proj_"),
        (".attn.proj.", ".attn.out_proj."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
    ):
        name = name.replace(own, other)
    return f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name


def save_clip(model: nn.Module, configuration: Mapping[str, Any], normalisation: Normalisation, folder: Path) -> None:
    """Writes a CLIP as open_clip has it; ``open_clip:local-dir:FOLDER`` is then a MODEL argument.

    Args:
        model: A CLIP of open_clip.
        configuration: Of it, as open_clip takes it.
        normalisation: Of the pixels.
        folder: Made where it is missing; its files are replaced, the configuration last.
    """
    make_folder(folder)
    with replacing(folder / _WEIGHTS) as partial:
        save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, partial)
    preprocessing = {"mean": list(normalisation.mean), "std": list(normalisation.std), "interpolation": "bicubic"}
    write_json(folder / _CONFIGURATION, {"model_cfg": configuration, "preprocess_cfg": preprocessing})


def _no_clip(encoder: nn.Module) -> UserError:
    return UserError(
        "A CLIP is made around a plain vision transformer with a class token, like timm's vit_tiny_patch16_224, and "
        f"this {type(encoder).__name__} is another."
    )
