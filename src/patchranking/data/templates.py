"""Zero-shot prompts by data set, as in CoOp and the paper's code: one template each."""

from __future__ import annotations

__all__ = ["templates_for"]

_DEFAULT = "a photo of a {}."
_TEMPLATES = {
    "flowers": "a photo of a {}, a type of flower.",
    "pets": "a photo of a {}, a type of pet.",
    "iiitpet": "a photo of a {}, a type of pet.",
    "iiit-pet": "a photo of a {}, a type of pet.",
    "aircraft": "a photo of a {}, a type of aircraft.",
    "food": "a photo of {}, a type of food.",
    "dtd": "{} texture.",
    "ucf": "a photo of a person doing {}.",
}


def templates_for(name: str) -> tuple[str, ...]:
    """The template of the data set whose name contains a known word, else ``"a photo of a {}."``."""
    found = {template for word, template in _TEMPLATES.items() if word in name.lower()}
    return (found.pop() if len(found) == 1 else _DEFAULT,)
