"""Makes a command line of a function: its arguments, and the fields of its settings, are the options."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from patchranking.errors import UserError

__all__ = ["parse", "run"]

_TRACEBACK = "--traceback"


def run(command: Callable[..., None], arguments: Sequence[str], prog: str) -> None:
    """Runs a function with command-line arguments; a user's mistake ends with one sentence and status 2.

    Required arguments are positional; so may be those before a function's ``*``, which have defaults. An argument that
    is a dataclass becomes one option for each of its fields. List options take several values, ``--keep 0.9 0.8``; so
    does a list that is the last positional argument. An option of one letter may have one dash. Errors of the system,
    such as a full disk, end like a mistake. ``--traceback``, or ``PATCHRANKING_TRACEBACK=1`` in the environment, shows
    where it was found and its cause.

    Args:
        command: The function, with a docstring in Google style.
        arguments: The command line after the command's name.
        prog: The command's name, for ``--help``.
    """
    given = [argument for argument in arguments if argument != _TRACEBACK]
    try:
        command(**parse(command, given, prog))
    except (UserError, OSError) as error:
        if len(given) < len(arguments) or os.environ.get("PATCHRANKING_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        said = str(error) if isinstance(error, UserError) else f"{' '.join(str(error).split())[:300]}."
        print(f"{prog.partition(' ')[0]}: {said}", file=sys.stderr)
        sys.exit(2)


def parse(command: Callable[..., None], arguments: Sequence[str], prog: str) -> dict[str, Any]:
    """Reads a command line into the arguments of a function, settings made; see ``run``."""
    hints = get_type_hints(command)
    settings: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    parameters = [p for p in inspect.signature(command).parameters.values() if p.name not in settings]
    about = str(inspect.getdoc(command)).partition("\n")[0]
    parser = ArgumentParser(prog=prog, description=about, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with options")
    parser.add_argument(_TRACEBACK, action="store_true", help="show where a mistake was found, and its cause")
    parser.add_function_arguments(command, as_group=False, as_positional=True, skip=set(settings))
    fields: dict[str, Any] = {}
    for kind in settings.values():
        parser.add_class_arguments(kind, as_group=False)
        fields |= get_type_hints(kind)
    positional = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    lists = {
        name
        for name, kind in {**hints, **fields}.items()
        if any(get_origin(k) is list for k in (kind, *get_args(kind)))
    }
    arguments = _by_name(arguments, parameters)
    letters = [f"-{p.name}" for p in parameters if len(p.name) == 1]
    given = [f"-{argument}" if argument in letters else argument for argument in arguments]
    try:
        found = parser.parse_args(_spread(given, lists, positional))
    except ArgumentError as error:
        raise UserError(f"{_wrong(str(error), hints | fields)}; {prog} --help shows all.") from error
    values = {p.name: _expanded(found[p.name]) for p in parameters}
    for name, kind in settings.items():
        values[name] = kind(**{field.name: found[field.name] for field in dataclasses.fields(kind)})
    return values


def _wrong(said: str, kinds: dict[str, Any]) -> str:
    """What is wrong with an option and what it takes, from what jsonargparse says, which goes over many lines."""
    words = " ".join(said.split())
    key, value = re.search(r'[Kk]ey "(\w+)"', words), re.search(r"(?s).*(?:Given|Got) value:(.*)", words)
    if key is None or value is None or key[1] not in kinds:
        return re.sub(r'^Parser key "(\w+)"', r"--\1", words).rstrip(".")
    given = value[1].strip()[:80]
    return f"--{key[1]} takes {_named(kinds[key[1]])}, not {given!r}"


def _named(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list:
        return f"{_named(inner[0])}, or several"
    if origin is dict:
        return "a mapping such as '{3: 0.6}'"
    if inner:
        return " or ".join(_named(one) for one in inner if one is not type(None))
    names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "a text"}
    return names.get(kind, "another value")


def _expanded(value: Any) -> Any:
    """The value with ``~`` expanded where it is a path, or a list of paths."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _by_name(arguments: Sequence[str], parameters: Sequence[inspect.Parameter]) -> list[str]:
    """Writes the leading words as options where a function has arguments before a ``*``, all with defaults."""
    named = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    leading = 0 if len(named) == len(parameters) else len(named)
    for place, word in enumerate(arguments[:leading]):
        if word.startswith("-"):
            leading = place
            break
    return [*(f"--{name}={word}" for name, word in zip(named, arguments[:leading], strict=False)), *arguments[leading:]]


def _spread(arguments: list[str], lists: set[str], positional: list[str]) -> list[str]:
    """Writes lists as jsonargparse reads them."""
    if positional and positional[-1] in lists:
        leading = next((place for place, text in enumerate(arguments) if text.startswith("-")), len(arguments))
        single, several = arguments[: len(positional) - 1], arguments[len(positional) - 1 : leading]
        several = several if several[:1] and several[0].startswith("[") else [f"[{','.join(map(repr, several))}]"]
        arguments = [*single, *several, *arguments[leading:]] if len(single) == len(positional) - 1 else arguments
    spread: list[str] = []
    option = None
    for argument in arguments:
        if argument.removeprefix("--") in lists and argument.startswith("--"):
            option = argument
            spread.append(f"{option}=[]")
        elif option and not argument.startswith("--"):
            spread.append(f"{option}+={argument}")
            option = None if argument.startswith("[") else option
        else:
            option = None
            spread.append(argument)
    return spread
