"""Views of the models of Hugging Face transformers."""

from __future__ import annotations

from torch import nn

from patchranking.errors import UserError
from patchranking.towers.transformers.dinov3 import Dinov3Tower
from patchranking.towers.transformers.families import family_name, kind_of
from patchranking.towers.transformers.siglip2 import Siglip2Tower
from patchranking.towers.transformers.text import wrap_text
from patchranking.towers.transformers.tower import TransformersTower

__all__ = ["TransformersTower", "wrap", "wrap_text"]

_TOWERS = {"dinov3_vit": Dinov3Tower, "siglip2": Siglip2Tower}


def wrap(model: nn.Module) -> TransformersTower | None:
    """Returns a tower for a model of ``families.CLASSES``, None for anything else.

    Raises:
        UserError: If the installed transformers builds this class in another way.
    """
    kind = kind_of(model)
    if kind is None:
        return None
    try:
        return _TOWERS.get(family_name(model), TransformersTower)(model, kind)
    except AttributeError as error:
        raise UserError(
            f"The installed transformers builds {type(model).__name__} in a way that patchranking does not know "
            f"({error}): install the latest transformers."
        ) from error
