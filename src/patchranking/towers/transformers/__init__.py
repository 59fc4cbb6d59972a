"""View of the models of Hugging Face transformers."""

from patchranking.towers.transformers.text import wrap_text
from patchranking.towers.transformers.tower import TransformersTower, wrap

__all__ = ["TransformersTower", "wrap", "wrap_text"]
