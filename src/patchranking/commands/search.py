"""patchranking search."""

from __future__ import annotations

from pathlib import Path

from patchranking.errors import UserError

__all__ = ["search"]


def search(
    folder: Path,
    words: list[str],
    image: Path | None = None,
    k: int = 20,
    out: Path = Path("runs/search.html"),
    device: str = "cpu",
) -> None:
    """Finds images by words or by another image among those that embed took; writes a page of thumbnails.

    Args:
        folder: Folder that embed wrote.
        words: What to look for, such as "a red car"; nothing with --image.
        image: Picture to look for others like it.
        k: How many images to find.
        out: The page.
        device: cpu, cuda, cuda:1, mps, ...
    """
    from patchranking.embedding.index import read_manifest  # here, so that --help need not wait for torch
    from patchranking.embedding.search import pictures
    from patchranking.embedding.search import search as find
    from patchranking.exporting.model import open_model
    from patchranking.report.found import write_found

    text = " ".join(words)
    if bool(text) == (image is not None):
        raise UserError("Give words to look for, or a picture with --image.")
    manifest = read_manifest(folder)
    found = find(folder, text if image is None else image, k, open_model(manifest["model"], device))
    for one in found:
        print(f"{one.similarity:.4f}  {one.key}")
    shown = [(one.key, one.similarity, picture) for one, picture in zip(found, pictures(folder, found), strict=True)]
    write_found(text or str(image), shown, out)
    print(f"wrote {out}")
