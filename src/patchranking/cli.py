"""The command line; every command is a function in patchranking.commands, its options are the function's arguments."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from huggingface_hub.utils import logging as hub_logging
from jsonargparse import auto_cli

from patchranking.commands.arguments import spread_lists
from patchranking.commands.benchmark import benchmark
from patchranking.commands.demo import demo
from patchranking.commands.evaluate import evaluate
from patchranking.commands.fit import fit
from patchranking.commands.rank import rank
from patchranking.commands.reproduce import reproduce
from patchranking.commands.tune import tune
from patchranking.errors import UserError

__all__ = ["main"]


def main() -> None:
    """Runs the command line; a user's mistake ends with one sentence and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hub_logging.set_verbosity_error()
    commands: list[Callable[..., None] | type] = [demo, rank, fit, tune, evaluate, benchmark, reproduce]
    try:
        auto_cli(commands, args=spread_lists(sys.argv[1:], commands), prog="patchranking")
    except UserError as error:
        print(f"patchranking: {error}", file=sys.stderr)
        sys.exit(2)
