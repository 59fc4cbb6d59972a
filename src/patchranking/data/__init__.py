"""Pictures with keys, labels and class names, from a DATA argument."""

from patchranking.data.base import DATA_HELP, ClassesName, ImageData, of_classes, subset
from patchranking.data.datasets import load_data
from patchranking.data.halves import of_half
from patchranking.data.joined import joined, shared_pictures
from patchranking.data.reading import none_readable, read_batches

__all__ = [
    "DATA_HELP",
    "ClassesName",
    "ImageData",
    "joined",
    "load_data",
    "none_readable",
    "of_classes",
    "of_half",
    "read_batches",
    "shared_pictures",
    "subset",
]
