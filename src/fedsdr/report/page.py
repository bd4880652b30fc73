"""One self-contained HTML page: tables, and charts that the browser draws. It loads nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from fedsdr.evaluation.results import Table
from fedsdr.report.charts import Chart

HERE = files("fedsdr.report")
SCRIPTS = ("vega/vega.min.js", "vega/vega-lite.min.js", "page.js")


@dataclass(frozen=True)
class Group:
    """Charts and tables below one heading; `note` says how to read them."""

    title: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One run, one comparison, or several runs side by side."""

    title: str
    groups: Sequence[Group]
    findings: Sequence[str] = ()  # sentences that say what came out
    warnings: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)  # what was run
    notes: Sequence[str] = ()
    settings: str = ""


def render_page(title: str, sections: Sequence[Section]) -> str:
    """Return the HTML page; all text in it is escaped."""
    charts: dict[str, dict[str, Any]] = {}

    def embed(chart: Chart) -> str:
        name = f"chart-{len(charts) + 1}"
        charts[name] = {"columns": chart.columns, "rows": chart.rows, "spec": chart.spec}
        return name

    body = render("page.html", {"title": title, "sections": sections, "embed": embed})
    scripts = SCRIPTS if charts else SCRIPTS[-1:]
    return framed(title, body, charts, scripts, licence=read("vega/LICENSE") if charts else "")


def framed(title: str, body: str, data: Any, scripts: Sequence[str], licence: str = "") -> str:
    """Return the whole page: a body of HTML, the data of its scripts, and the scripts."""
    values = {"title": title, "body": body, "data": script_json(data), "licence": licence}
    code = [read(name) for name in scripts]
    page = render("frame.html", values | {"style": read("page.css"), "scripts": code})
    return page.encode("utf-8", "replace").decode()  # a model may write half of a surrogate pair


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a template of this folder with its values, which are escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(read(template)).render(values)


def read(name: str) -> str:
    """Return a text file of this folder."""
    return HERE.joinpath(name).read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """Return JSON that may stand inside a <script>: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
