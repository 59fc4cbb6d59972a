r"""Hands damaged and hostile files to everything that reads files; ends with the smallest one that breaks a promise.

    python benchmarks/fuzz.py --seconds 600 --seed 1

``hostile.py`` has the files and the promises; ``tests/test_fuzz.py`` tries a few of each kind.
"""

from __future__ import annotations

import time

from common import main
from hostile import KINDS, attempt


def fuzz(examples: int = 200, seconds: float = 60.0, seed: int = 0) -> None:
    """Tries every kind of file in turn until the time is over.

    Args:
        examples: Files of a kind in a round.
        seconds: Time in which new rounds begin.
        seed: Random seed of the first round.
    """
    end, rounds = time.monotonic() + seconds, 0
    while not rounds or time.monotonic() < end:
        for kind in KINDS:
            attempt(kind, examples, seed + rounds)
        rounds += 1
        print(
            f"round {rounds}, seed {seed + rounds - 1}: {examples} files of each kind, every promise kept", flush=True
        )


if __name__ == "__main__":
    main(fuzz)
