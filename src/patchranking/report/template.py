"""Self-contained HTML pages, from templates."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from patchranking.extras import import_extra
from patchranking.files import replacing

__all__ = ["fill", "write_page"]


def write_page(out: Path, template: str, **values: Any) -> Path:
    """Fills a template of this room, which also gets the pages' common ``css`` and ``js``.

    Args:
        out: The HTML file to write; it appears complete or not at all.
        template: Its file's name.
        **values: What it shows.

    Returns:
        ``out``.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    text, css, js = (
        files("patchranking.report").joinpath(name).read_text("utf-8") for name in (template, "page.css", "page.js")
    )
    html = fill(text, css=css.strip(), js=js.strip(), **values)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as partial:
        partial.write_text(html.lstrip(), encoding="utf-8")
    return out


def fill(template: str, **values: Any) -> str:
    """Fills a template; what values hold is escaped.

    Args:
        template: Its text.
        **values: What it shows; one that the template names and that is not given is an error.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    jinja = import_extra("jinja2", "The report", "report")
    engine = jinja.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja.StrictUndefined)
    return str(engine.from_string(template).render(**values))
