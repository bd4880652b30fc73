"""Numbers that a paper reports, beside those of our runs and never among them.

source = "arXiv 2605.18028v1, Tables 6 and 8"
setting = "Llama-2-7b, Dolly-15K, 8 clients"
measures = { MMLU = "suite", F = "judge" }         # what kind of number each one is
[[rows]]
variant = "fedsdr"
algorithm = "fedavg"
point = { "data.alpha" = 0.5 }                      # where the table has a sweep
values = { MMLU = 47.11, F = 74.33 }
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsdr.config import key_names, read_toml
from fedsdr.errors import UserError, nearest

OURS = [("global", "loss"), ("global", "score"), ("client", "loss"), ("client", "score")]


@dataclass(frozen=True)
class PaperRow:
    """What a paper reports of one method with one algorithm, at one point of a sweep."""

    variant: str
    algorithm: str
    values: dict[str, float]
    point: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """The numbers of one table of a paper; `measures`: name -> its kind (suite, judge, ...)."""

    source: str
    setting: str
    measures: dict[str, str]
    rows: list[PaperRow]


def load_reference(path: Path) -> Reference:
    """Read a file of the form above; UserError where it has another one."""
    table = read_toml(path, "compare.reference names it")
    try:
        found = Reference(**{**table, "rows": [PaperRow(**row) for row in table["rows"]]})
        named = {name for row in found.rows for name in row.values}
        numbers = [value for row in found.rows for value in row.values.values()]
        swept = {key for row in found.rows for key, _ in row.point.items()}
        kinds = list(found.measures.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not the numbers of a paper ({error}); it takes source, setting, measures "
            "and [[rows]] of variant, algorithm, point, values"
        ) from None
    if unnamed := named - set(found.measures):
        raise UserError(f"{path}: values of '{min(unnamed)}', which 'measures' does not name")
    if unknown := swept - set(key_names()):
        key = min(unknown)
        raise UserError(f"{path}: 'point' has the unknown key '{key}'{nearest(key, key_names())}")
    if not all(isinstance(kind, str) for kind in kinds):
        raise UserError(f"{path}: 'measures' says in a text what kind of number each one is")
    if not all(type(number) in (int, float) for number in numbers):
        raise UserError(f"{path}: 'values' are numbers")
    return found


def paper_table(
    rows: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    paper: Mapping[str, Any],
    suites: Sequence[Mapping[str, Any]] = (),
) -> list[list[str]]:
    """Return our means and the paper's numbers of the same run as text, the header first.

    `rows` are those of `comparison_rows`, `keys` those of a sweep, `paper` a `Reference` as plain
    values, `suites` those of `suite_rows`, of which the global models' scores in percent stand here
    where the paper has that suite. A header says what kind of number the paper's is. Empty where it
    has none.
    """
    run = ["variant", "algorithm", *keys]
    measures = paper["measures"]
    asked = {(row["suite"], *(row[key] for key in run)): row for row in suites
             if row["model"] == "global"}  # fmt: skip
    suites_asked = {suite for suite, *_ in asked}
    both = [name for name in measures if name.lower() in suites_asked]
    header = [*run, *(f"our {model} {measure}" for model, measure in OURS)]
    header += [f"our global {name} (suite)" for name in both]
    table = [[*header, *(f"paper {name} ({kind})" for name, kind in measures.items())]]
    ours = {(row["model"], *(row[key] for key in run)): row for row in rows}
    for model, *place in ours:
        if model == "global":
            own = [f"{ours[of, *place][measure]:.3f}" for of, measure in OURS]
            scores = [asked.get((name.lower(), *place)) for name in both]
            own += [f"{100 * row['score']:.2f}" if row else "" for row in scores]
            values = _values_at(dict(zip(run, place, strict=True)), paper["rows"])
            numbers = [f"{values[name]:.2f}" if name in values else "" for name in measures]
            table.append([*map(str, place), *own, *numbers])
    return table


def paper_note(paper: Mapping[str, Any], model: str, data: str) -> str:
    """Return what must be known before a number of ours is held against one of the paper's."""
    kinds = ", ".join(sorted(set(paper["measures"].values())))
    return (
        f"paper: {paper['source']}; its setting: {paper['setting']}; these runs: {model} on "
        f"{data}. Its numbers ({kinds}) are other measures than our loss and score, and say "
        "nothing of seeds: hold the order of the methods against its order, not the numbers."
    )


def _values_at(place: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    for row in rows:
        wanted = {"variant": row["variant"], "algorithm": row["algorithm"], **row["point"]}
        if all(place.get(key) == value for key, value in wanted.items()):
            return dict(row["values"])
    return {}
