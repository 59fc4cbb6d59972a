"""Images that are loaded, as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from PIL import Image

from patchranking.data.base import ImageData
from patchranking.data.streams.base import Entry, ImageStream

__all__ = ["IndexedStream"]


class IndexedStream(ImageStream):
    """The images of an ``ImageData``, in their order and under their keys; ``identity`` is as the caller says."""

    def __init__(self, data: ImageData, identity: str) -> None:
        self.identity, self.left_out, self._data = identity, Counter(data.left_out.values()), data

    def entries(self) -> Iterator[Entry]:
        return (Entry(key, str(index).encode()) for index, key in enumerate(self._data.keys))

    def content(self, place: bytes) -> Image.Image:
        return self._data.image(int(place))
