"""What the site has beside the pages in docs/: the repository's own files, the results, and the reference.

The site lays the repository over docs/: CONTRIBUTING.md and CHANGELOG.md become pages, and so do recipes and files of
results, so that links from docs/ work here as they do on GitHub. The reference is made of docstrings.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tables  # noqa: E402
from compared import grid  # noqa: E402

import patchranking  # noqa: E402
from patchranking.cli import COMMANDS, function_of  # noqa: E402

PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is not in docs/."""
    for name, text in (*_of_the_repository(), *_reference()):
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to their pages."""
    if page.file.src_uri in PAGES:
        markdown = markdown.replace("](docs/", "](")
    linked = re.sub(r"\]\(\.\./", "](", markdown) if "/" not in page.file.src_uri else markdown
    return re.sub(r"\]\((examples/\w+)\.py\)|\]\((benchmarks/results/[\w-]+)\.json\)", _to_page, linked)


def _to_page(link: re.Match[str]) -> str:
    return f"]({link[1] or link[2]}.md)"


def _of_the_repository() -> Iterator[tuple[str, str]]:
    for name in PAGES:
        yield name, (ROOT / name).read_text()
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield f"examples/{path.stem}.md", f"# {path.name}\n\n```python\n{path.read_text()}```\n"
    for path in sorted((ROOT / "benchmarks/results").glob("*.json")):
        yield f"benchmarks/results/{path.stem}.md", result(path.stem, json.loads(path.read_text()))


def result(name: str, results: Mapping[str, Any]) -> str:
    """The page of a file of results: its tables, and where they come from."""
    try:
        shown = tables.table(name, dict(results), "all" if "differences" in results else None)
    except KeyError as unknown:
        if unknown.args != (name.partition("-")[0],):
            raise
        shown = rows(results["rows"])
    environments = results["environment"]
    environments = {"": environments} if "device" in environments else environments
    parts = [f"# {name}", shown, "## Where it comes from"]
    for part, own in environments.items():
        command = own.get("command")
        said = ", ".join(f"{key} {own[key]}" for key in own if key != "command" and own[key] is not None)
        parts += [f"**{part}**"] * bool(part)
        parts += [f"```bash\npython benchmarks/{command}\n```"] * bool(command) + [said]
    return "\n\n".join([*parts, f"The file is `benchmarks/results/{name}.json`."]) + "\n"


def rows(found: list[dict[str, Any]]) -> str:
    """Rows as tables, one for each kind of them, of what is a value or a list of values."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in found:
        kinds.setdefault(tuple(key for key, value in row.items() if not isinstance(value, dict)), []).append(row)
    return "\n\n".join(grid([*keys], [[_cell(row[key]) for key in keys] for row in own]) for keys, own in kinds.items())


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text.replace("|", "\\|")


def _reference() -> Iterator[tuple[str, str]]:
    yield "reference/command-line.md", command_line()
    for title, names in sections(str(patchranking.__doc__)).items():
        directives = "\n\n".join(f"::: patchranking.{name}" for name in names)
        yield f"reference/{title.lower().replace(' ', '-')}.md", f"# {title}\n\n{directives}\n"


def sections(contents: str) -> dict[str, list[str]]:
    """Heading -> public names below it, of the table of contents in the package's docstring."""
    found: dict[str, list[str]] = {}
    for line in contents.splitlines()[1:]:
        if line and not line.startswith(" "):
            found[line] = own = []
        elif named := re.match(r"    (\w+(?:, \w+)*)(?:  |$| \w)", line):
            own += [name for name in named[1].split(", ") if name in patchranking.__all__]
    return found


def command_line() -> str:
    """Every command: what it does, its arguments and its options."""
    parts = [
        "# Command line",
        "Every command takes `--help`, `--config FILE` with options as YAML, and `--traceback`. Lists take several "
        "values: `--keep 0.9 0.8`.",
    ]
    for command in COMMANDS:
        own = function_of(command)
        function = getattr(importlib.import_module(f"patchranking.commands.{own}"), own)
        given = list(options(function))
        usage = " ".join(["patchranking", command, *(name.upper() for name, default, _ in given if default is None)])
        lines = [
            [f"`{name.upper()}`" if default is None else f"`--{name}`", default or "", sentence]
            for name, default, sentence in given
        ]
        about = str(inspect.getdoc(function)).partition("\n")[0]
        parts += [f"## {command}", about, f"```text\n{usage} [OPTIONS]\n```", grid(["", "default", ""], lines)]
    return "\n\n".join(parts) + "\n"


def options(function: Any) -> Iterator[tuple[str, str | None, str]]:
    """Name, default (None where there is none) and sentence of every argument, the fields of settings included."""
    hints, said = get_type_hints(function), _described(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            fields = _described(hints[name])
            for field in dataclasses.fields(hints[name]):
                yield field.name, _shown(field.default), fields[field.name]
        else:
            required = parameter.default is inspect.Parameter.empty
            yield name, None if required else _shown(parameter.default), said[name]


def _shown(default: Any) -> str:
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _described(item: Any) -> dict[str, str]:
    """Name -> sentence of the arguments or attributes in a docstring."""
    found = griffe.Docstring(str(inspect.getdoc(item))).parse("google", warnings=False)
    values = (one for section in found if section.kind.value in ("parameters", "attributes") for one in section.value)
    return {one.name: " ".join(one.description.split()).replace("|", "\\|") for one in values}
