"""Writes a page: one self-contained HTML file from a template, with the common style and number formats."""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from treeward.runs.directory import whole
from treeward.stats import formatting


def write_html(template: str, out: Path, **facts: Any) -> Path:
    """Fill a template of this package and write it to `out`, completely or not at all."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "number": formatting.number,
        "measured": measured,
        "label": formatting.label,
        "meaning": formatting.meaning,
    }
    environment.globals["p_value"] = formatting.p_value
    folder = resources.files("treeward.report")
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))
    text = environment.from_string((folder / template).read_text(encoding="utf-8")).render(style=style, **facts)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    with whole(temporary):
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(out)
    return out


def measured(facts: Mapping[str, Any] | None, sign: bool = False) -> Markup:
    """A value with its interval in small print, and a warning where the interval is unreliable."""
    if facts is None or facts["value"] is None:
        return Markup("–")
    value = Markup("<b>{}</b>").format(formatting.value(facts, sign))
    if facts.get("constant"):
        return value + Markup(" <small>by construction</small>")
    interval = Markup(" <small>{}</small>").format(formatting.bounds(facts, sign))
    note = "" if formatting.reliable(facts) else Markup(' <small class="warn">{}</small>').format(formatting.UNRELIABLE)
    return value + interval + note
