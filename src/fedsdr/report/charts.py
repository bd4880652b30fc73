"""Charts as Vega-Lite specifications, each with a description and its numbers as a table.

A colour is a CSS variable of page.css, so that one drawing serves light, dark and print. Series
differ in shape and dash as well as in colour.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsdr.evaluation.results import Table

Curve = Sequence[tuple[int, float]]  # (round, value)
Place = tuple[str, str, float, float]  # name, series, x, y
Spec = dict[str, Any]

COLOURS = [f"var(--series-{i})" for i in range(6)]
DASHES = [[1, 0], [6, 3], [2, 2]]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]
MOST_SERIES = len(COLOURS) * len(DASHES)  # more cannot be told apart
MOST_LABELS = 60  # rows of a chart that are named, and of the table below it
MOST_VALUES = 12  # rows and columns of a matrix whose cells show their value


@dataclass(frozen=True)
class Chart:
    """A chart: `rows` are its data by `columns`, which `spec` names; `table` says it as text."""

    title: str
    description: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    spec: Spec
    table: Table


@dataclass(frozen=True)
class Dot:
    """A value with its interval, of one series at one name; `note` is shown on hover."""

    name: str
    series: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def line_chart(title: str, curves: Mapping[str, Curve], unit: str, bold: str = "") -> Chart:
    """Return a line per curve by round; `bold` is drawn thicker. Of many, `bold` alone is named."""
    few = len(curves) <= MOST_SERIES
    names = [name for name in curves if name != bold] + [bold] * (bold in curves)
    rows = [(n, r, _short(v), n == bold) for n in names for r, v in curves[n]]
    colour = {"field": "name", "type": "nominal", "title": None}
    dashes = [DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(names))]
    colours = [COLOURS[i % len(COLOURS)] if few else "var(--faint)" for i in range(len(names))]
    if bold in curves:
        colours[-1], dashes[-1] = "var(--ink)", DASHES[0]
    domain = {"domain": names}
    legend = {} if few else {"values": [bold]}
    encoding = {
        "x": {"field": "round", "type": "quantitative", "axis": {"tickMinStep": 1, "format": "d"},
              "scale": {"zero": False, "nice": False, "padding": 12}},
        "y": {"field": "value", "type": "quantitative", "title": unit, "scale": {"zero": False}},
        "color": colour | {"scale": domain | {"range": colours}, "legend": legend},
        "opacity": {"condition": {"param": "over", "value": 1}, "value": 0.15},
        "tooltip": _tooltip(name="", round="d", value=".4f"),
    }  # fmt: skip
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout", "fields": ["name"]}
    line = {
        "mark": {"type": "line", "strokeCap": "round"},
        "params": [{"name": "over", "select": hover}],
        "encoding": {
            "strokeWidth": {"condition": {"test": "datum.bold", "value": 3}, "value": 1.6},
            "strokeDash": colour | {"scale": domain | {"range": dashes}, "legend": legend},
        },
    }
    shapes = domain | {"range": [SHAPES[i % len(SHAPES)] for i in range(len(names))]}
    point = {
        "mark": {"type": "point", "filled": True, "size": 45},
        "encoding": {"shape": colour | {"scale": shapes, "legend": legend}},
    }
    ends = curves.get(bold) or next(iter(curves.values()))
    description = (
        f"Line chart of {unit} by round, {len(names)} lines. "
        f"{bold or names[0]}: from {ends[0][1]:.3f} in round {ends[0][0]} to {ends[-1][1]:.3f} in "
        f"round {ends[-1][0]}."
    )
    spec = {"height": 260, "encoding": encoding, "layer": [line, point] if few else [line]}
    by_round = {name: {str(r): v for r, v in curve} for name, curve in curves.items()}
    return Chart(
        title,
        description,
        ("name", "round", "value", "bold"),
        rows,
        spec,
        (f"{title}: {unit}", _pivot("", by_round)),
    )


def heat_map(
    title: str,
    cells: Mapping[str, Mapping[str, float | None]],
    labels: tuple[str, str, str],
    *,
    diverging: bool = False,
    crossed: Iterable[tuple[str, str]] = (),
    crosses: str = "",
) -> Chart:
    """Return row -> column -> value as coloured cells; None leaves a cell empty.

    `labels` name rows, columns and values. `diverging`: two colours that part at 0. `crossed`
    cells, which need no value, bear a cross; `crosses` says what it means.
    """
    of_rows, of_columns, of_values = labels
    marked = set(crossed)
    wanted = {(r, c): v for r, of in cells.items() for c, v in of.items() if v is not None}
    rows = [(r, c, _short(v), "") for (r, c), v in wanted.items()]
    rows += [(r, c, None, crosses) for r, c in sorted(marked)]
    columns = list(dict.fromkeys(c for of in cells.values() for c in of))
    most = max(map(abs, wanted.values()), default=1.0) or 1.0
    scale = {"scheme": "blueorange", "domain": [-most, 0, most]} if diverging else {
        "scheme": "viridis", "reverse": True
    }  # fmt: skip
    numbers = all(column.isdecimal() for column in columns)
    encoding = {
        "x": {"field": "column", "type": "ordinal", "title": of_columns, "sort": columns,
              "axis": {"labelAngle": 0 if numbers else -40, "labelOverlap": numbers}},
        "y": {"field": "row", "type": "ordinal", "title": of_rows, "sort": list(cells),
              "axis": {"labels": len(cells) <= MOST_LABELS}},
        "tooltip": _tooltip(row="", column="", value=".4f", note=""),
    }  # fmt: skip
    layers: list[Spec] = [{
        "mark": {"type": "rect", "stroke": "var(--paper)", "strokeWidth": 0.5},
        "encoding": {"color": {"field": "value", "type": "quantitative", "scale": scale,
                               "title": of_values, "legend": {"gradientLength": 140}}},
        "transform": [{"filter": "datum.value !== null"}],
    }]  # fmt: skip
    if marked:
        cross = {"type": "text", "text": "✕", "fontWeight": "bold", "color": "var(--bad)"}
        layers.append({"mark": cross, "transform": [{"filter": "datum.value === null"}]})
    if max(len(cells), len(columns)) <= MOST_VALUES and not numbers:
        # On viridis reversed, large values are dark; on the diverging scheme, both ends are.
        dark = f"abs(datum.value) > {0.75 * most}" if diverging else _upper_half(wanted.values())
        layers.append({
            "mark": {"type": "text", "fontSize": 11},
            "encoding": {
                "text": {"field": "value", "type": "quantitative", "format": ".2f"},
                "color": {"condition": {"test": dark, "value": "#fff"}, "value": "#111"},
            },
            "transform": [{"filter": "datum.value !== null"}],
        })  # fmt: skip
    least = f"{min(wanted.values()):.3f} to {max(wanted.values()):.3f}" if wanted else "no values"
    description = (
        f"Heat map of {of_values}, {len(cells)} rows ({of_rows}) by {len(columns)} columns "
        f"({of_columns}), {least}." + (f" {len(marked)} cells crossed: {crosses}." * bool(marked))
    )
    spec = {"height": _height(len(cells)), "encoding": encoding, "layer": layers}
    table = (f"{title}: {of_values}", _pivot(of_rows, cells))
    return Chart(title, description, ("row", "column", "value", "note"), rows, spec, table)


def dot_chart(title: str, dots: Sequence[Dot], unit: str, reference: float | None = 0.0) -> Chart:
    """Return a dot with its interval for each name and series; a line stands at `reference`."""
    names = list(dict.fromkeys(dot.name for dot in dots))
    series = list(dict.fromkeys(dot.series for dot in dots))
    rows = [
        (d.name, d.series, *map(_short, (d.value, d.low, d.high)), d.note or d.name) for d in dots
    ]
    colours, shapes = _scales(series)
    legend = {} if len(series) > 1 else {"legend": None}
    by = {"field": "series", "type": "nominal", "title": None}
    several = len(series) > 1 and len(names) <= MOST_LABELS
    encoding = {
        "y": {"field": "name", "type": "nominal", "title": None, "sort": names,
              "axis": {"labels": len(names) <= MOST_LABELS, "grid": len(names) <= MOST_LABELS}},
        "yOffset": {"field": "series", "sort": series} if several else {"value": 0},
        "color": by | {"scale": colours} | legend,
        "tooltip": _tooltip(note="", series="", value=".4f", low=".4f", high=".4f"),
    }  # fmt: skip
    if not several:
        del encoding["yOffset"]
    x = {"type": "quantitative", "scale": {"zero": False}}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeWidth": 2},
         "encoding": {"x": x | {"field": "low", "title": unit}, "x2": {"field": "high"}},
         "transform": [{"filter": "datum.low !== null"}]},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
         "encoding": {"x": x | {"field": "value", "title": unit},
                      "shape": by | {"scale": shapes} | legend}},
    ]  # fmt: skip
    if reference is not None:
        rule = {"type": "rule", "color": "var(--ink)", "strokeDash": [4, 3]}
        at = {"x": {"datum": reference, "type": "quantitative"}}
        # `encoding` is the charts' own: the rule has neither row nor colour.
        layers = [{"encoding": encoding, "layer": layers}, {"mark": rule, "encoding": at}]
        encoding = {}
    spec = {"height": _height(len(names) * (len(series) if several else 1)), "layer": layers}
    spec |= {"encoding": encoding} if encoding else {}
    cells: dict[str, dict[str, float | None]] = {}
    for dot in dots:
        ends = {"": dot.value, " low": dot.low, " high": dot.high}
        row = cells.setdefault(dot.note or dot.name, {})
        row |= {f"{dot.series}{end}": value for end, value in ends.items()}
    where = f" A line stands at {reference:g}." if reference is not None else ""
    return Chart(
        title,
        f"Dot chart of {unit}: {len(names)} rows, series {', '.join(series)}.{where}",
        ("name", "series", "value", "low", "high", "note"),
        rows,
        spec,
        (f"{title}: {unit}", _pivot("", cells)),
    )


def scatter_chart(
    title: str, points: Sequence[Place], x_unit: str, y_unit: str, *, joined: bool = False
) -> Chart:
    """Return a point for each place, with a line at 0 for y.

    `joined`: the points of a series are connected in their order.
    """
    series = list(dict.fromkeys(point[1] for point in points))
    rows = [(name, of, _short(x), _short(y), i) for i, (name, of, x, y) in enumerate(points)]
    by = {"field": "series", "type": "nominal", "title": None}
    colours, shapes = _scales(series)
    at = {
        "x": {"field": "x", "type": "quantitative", "title": x_unit, "scale": {"zero": False}},
        "y": {"field": "y", "type": "quantitative", "title": y_unit},
        "color": by | {"scale": colours},
    }
    tips = _tooltip(name="", series="", x=".4f", y=".4f")
    marks = {
        "mark": {"type": "point", "filled": True, "size": 80, "opacity": 0.9},
        "encoding": at | {"shape": by | {"scale": shapes}, "tooltip": tips},
    }
    path = at | {"order": {"field": "order", "type": "quantitative"}}
    lines = [{"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": path}] if joined else []
    rule = {"type": "rule", "color": "var(--ink)", "strokeDash": [4, 3]}
    zero = {"mark": rule, "encoding": {"y": {"datum": 0, "type": "quantitative"}}}
    text = [[f"{of} {n}", f"{x:.4f}", f"{y:.4f}"] for n, of, x, y, _ in rows]
    return Chart(
        title,
        f"Scatter chart of {y_unit} against {x_unit}, {len(points)} points.",
        ("name", "series", "x", "y", "order"),
        rows,
        {"height": 260, "layer": [*lines, marks, zero]},
        (title, _shortened([["", x_unit, y_unit], *text])),
    )


def _scales(series: Sequence[str]) -> tuple[Spec, Spec]:
    """Return the scales of colours and of shapes, no pair of which repeats for 36 series."""
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(series))]
    shapes = [SHAPES[(i + i // len(COLOURS)) % len(SHAPES)] for i in range(len(series))]
    return {"domain": series, "range": colours}, {"domain": series, "range": shapes}


def _tooltip(**formats: str) -> list[Spec]:
    return [{"field": name} | ({"format": f} if f else {}) for name, f in formats.items()]


def _height(rows: int) -> int:
    """Return the height of that many rows in pixels."""
    return max(60, 22 * rows if rows <= 30 else 14 * rows if rows <= MOST_LABELS else 3 * rows)


def _short(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _upper_half(values: Iterable[float]) -> str:
    found = list(values) or [0.0]
    return f"datum.value > {(min(found) + max(found)) / 2}"


def _pivot(corner: str, cells: Mapping[str, Mapping[str, float | None]]) -> list[list[str]]:
    """Return the cells as rows of text; of many rows, their quartiles by column instead."""
    columns = list(dict.fromkeys(c for of in cells.values() for c in of))
    if len(cells) > MOST_LABELS:
        found = {c: [v for of in cells.values() if (v := of.get(c)) is not None] for c in columns}
        named = ("minimum", "lower quartile", "median", "upper quartile", "maximum")
        marks = {c: [min(v), *statistics.quantiles(v, n=4), max(v)] if len(v) > 1 else v * 5
                 for c, v in found.items()}  # fmt: skip
        cells = {
            name: {c: of[i] if of else None for c, of in marks.items()}
            for i, name in enumerate(named)
        }
        corner = "of the rows"
    text = [["" if (v := of.get(c)) is None else f"{v:.4g}" for c in columns]
            for of in cells.values()]  # fmt: skip
    return [[corner, *columns], *([name, *row] for name, row in zip(cells, text, strict=True))]


def _shortened(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    return rows[: MOST_LABELS + 1]
