"""Pictures in folders of any size."""

from __future__ import annotations

import heapq
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from patchranking.data.base import printable
from patchranking.data.classnames import hidden
from patchranking.data.folder import folder_prefixes
from patchranking.data.images import no_picture, reason
from patchranking.data.streams.base import Entry, ImageStream

__all__ = ["FolderStream", "sorted_names"]

_NAMES_AT_ONCE = 100_000


class FolderStream(ImageStream):
    """Pictures below one or more folders, by name, folder by folder; links to folders come last, once each."""

    def __init__(self, folders: list[Path]) -> None:
        self._prefixes = folder_prefixes(folders)
        self._folders = [os.path.abspath(folder) for folder in folders]
        self.identity = ",".join(map(printable, self._folders))
        self.left_out = Counter()

    def entries(self) -> Iterator[Entry]:
        self.left_out = Counter()
        for folder, prefix in zip(self._folders, self._prefixes, strict=True):
            for path in self._pictures(folder):
                yield Entry(prefix + printable(path), os.fsencode(os.path.join(folder, path)))

    def content(self, place: bytes) -> Path:
        return Path(os.fsdecode(place))

    def _pictures(self, root: str) -> Iterator[str]:
        """Paths of pictures relative to ``root``; every folder is entered once, so links may form circles."""
        entered = set[tuple[int, int]]()
        links, inside = deque[str](), [self._opened(root, "", entered)]
        while inside or links:
            if not inside:
                inside.append(self._opened(root, links.popleft(), entered))
            if (path := next(inside[-1], None)) is None:
                inside.pop()
                continue
            whole = os.path.join(root, path)
            if why := hidden(os.path.basename(path)):
                self.left_out[why] += 1
            elif os.path.isdir(whole) and os.path.islink(whole):
                links.append(path)
            elif os.path.isdir(whole):
                inside.append(self._opened(root, path, entered))
            elif why := no_picture(Path(whole)):
                self.left_out[why] += 1
            else:
                yield path

    def _opened(self, root: str, folder: str, entered: set[tuple[int, int]]) -> Iterator[str]:
        """Paths of all that is in a folder; nothing where it was entered before or cannot be."""
        whole = os.path.join(root, folder)
        try:
            status = os.stat(whole)
            if (own := (status.st_dev, status.st_ino)) in entered:
                self.left_out["the same folder as another"] += 1
                return iter(())
            entered.add(own)
            os.scandir(whole).close()
        except OSError as error:
            self.left_out[reason(error)] += 1
            return iter(())
        return (os.path.join(folder, name) for name in sorted_names(whole))


def sorted_names(folder: str) -> Iterator[str]:
    """Names of all that is in a folder, sorted; where there are many, they are sorted in files and not in memory."""
    with ExitStack() as files:
        runs: list[Iterator[str]] = []
        with os.scandir(folder) as found:
            while names := sorted(entry.name for entry in islice(found, _NAMES_AT_ONCE)):
                if not runs and len(names) < _NAMES_AT_ONCE:
                    runs.append(iter(names))
                    break
                file = files.enter_context(tempfile.TemporaryFile())
                file.writelines(os.fsencode(name).replace(b"\n", b"\0") + b"\n" for name in names)
                file.seek(0)
                runs.append(os.fsdecode(line[:-1].replace(b"\0", b"\n")) for line in file)
        yield from heapq.merge(*runs)
