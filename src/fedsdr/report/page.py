"""One self-contained HTML page of sections: tables and curves; no script, no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from fedsdr.evaluation.results import Table


@dataclass(frozen=True)
class Section:
    """One run, one comparison, or several runs side by side."""

    title: str
    tables: Sequence[Table]
    lines: Sequence[str] = ()
    svg: str = ""  # shown after the first table
    settings: str = ""


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Return the HTML page; all text in it is escaped."""
    source = files("fedsdr.report").joinpath("page.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(source)
    return template.render(title=title, sections=sections)
