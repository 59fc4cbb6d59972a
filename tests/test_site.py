"""The site of the documentation: built strictly, without network, and with nothing on it that comes from elsewhere."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import get_type_hints

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import patchranking
from patchranking.cli import COMMANDS, function_of

ROOT = Path(__file__).parents[1]
EMBEDS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "use": "href"}


class Loaded(HTMLParser):
    """Collects what a page has a browser load: scripts, styles, fonts, pictures and frames, not links to follow."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        if tag in EMBEDS:
            self.found.append(about.get(EMBEDS[tag]))
        if tag == "link" and about.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(about["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a warning of mkdocs, a connection to another machine, or a broken link would end the build."""

    def refuse(*_):
        raise AssertionError("the site is built without network")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    return folder


def pages(site):
    return {path: path.read_text() for path in site.rglob("*.html")}


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site):
    found = pages(site)
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / ("" if page.stem == "index" else page.stem) / "index.html") in found
    for path, text in found.items():
        for address in Loaded(text).found:
            assert not re.match(r"(\w+:)?//", address or ""), (path, address)
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text()), path


def test_what_a_browser_loads_is_told_from_a_link():
    text = '<a href="https://a"></a><script src="https://b"></script><link rel="stylesheet" href="//c"><img src="d">'
    assert Loaded(text).found == ["https://b", "//c", "d"]


def test_every_public_name_is_in_the_reference(site):
    text = "".join(path.read_text() for path in (site / "reference").rglob("*.html"))
    for name in set(patchranking.__all__) - {"__version__"}:
        assert re.search(rf'id="patchranking.{name}"', text), name
    assert "<blockquote>" not in text


def test_every_option_of_every_command_is_in_the_reference(site):
    text = (site / "reference/command-line/index.html").read_text()
    for command in COMMANDS:
        (section,) = re.findall(rf'<h2 id="{command.replace(" ", "-")}">(.*?)(?=<h2|</article>)', text, re.DOTALL)
        own = function_of(command)
        function = getattr(importlib.import_module(f"patchranking.commands.{own}"), own)
        for name, kind in get_type_hints(function).items():
            fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else [name]
            for option in fields if name != "return" else []:
                parameter = inspect.signature(function).parameters.get(option)
                required = parameter is not None and parameter.default is inspect.Parameter.empty
                assert f"<code>{option.upper() if required else f'--{option}'}</code>" in section, (command, option)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda path: path.stem)
def test_a_file_of_results_has_a_page_and_is_named_in_the_list(site, path):
    text = (site / f"benchmarks/results/{path.stem}/index.html").read_text()
    assert "<table>" in text
    environment = json.loads(path.read_text())["environment"]
    commits = {own.get("git_commit") for own in ([environment] if "device" in environment else environment.values())}
    assert all(f"git_commit {commit}" in text for commit in commits if commit)
    assert f"(../benchmarks/results/{path.stem}.json)" in (ROOT / "docs/results.md").read_text()
