"""Writing a page: one self-contained HTML file from a template, the common style and the formats of numbers."""

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from treeward.runs.directory import whole
from treeward.stats import formatting as meanings
from treeward.stats import formatting as numbers


def write_html(template: str, out: Path, **facts: Any) -> Path:
    """Fill a template of this package and write `out`, whole or not at all."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {
        "number": numbers.number, "measured": measured, "label": meanings.label, "meaning": meanings.meaning,
    }  # fmt: skip
    environment.globals["p_value"] = numbers.p_value
    folder = resources.files("treeward.report")
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))
    text = environment.from_string((folder / template).read_text(encoding="utf-8")).render(style=style, **facts)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    with whole(temporary):
        temporary.write_text(text, encoding="utf-8")
        temporary.rename(out)
    return out


def measured(facts: Mapping[str, Any] | None, sign: bool = False) -> Markup:
    """A value with its interval in small print and, where that is unreliable, a word that says so."""
    if facts is None or facts["value"] is None:
        return Markup("–")
    value = Markup("<b>{}</b>").format(numbers.value(facts, sign))
    if facts.get("constant"):
        return value + Markup(" <small>by construction</small>")
    interval = Markup(" <small>{}</small>").format(numbers.bounds(facts, sign))
    note = "" if numbers.reliable(facts) else Markup(' <small class="warn">{}</small>').format(numbers.UNRELIABLE)
    return value + interval + note
