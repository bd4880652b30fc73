"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from fedsdr.distill.records import Audit
from fedsdr.evaluation.results import table_of
from fedsdr.research.compare.differences import Group
from fedsdr.research.compare.dry_run import Estimate, rewriting_seconds
from fedsdr.research.compare.tables import notes_of, tables_in
from fedsdr.research.suites import tables as suite_tables


def print_results(results: Mapping[str, Any]) -> None:
    """Print scores and losses of base, global and client models, and what they cost."""
    console = wide_console()
    if results["clients"]:
        console.print(_table_of(results))
    else:
        console.print("no test rows, so nothing was measured (data.test_fraction)")
    cost = results["cost"]
    tokens = ", ".join(f"{name} {count:,.0f}" for name, count in cost["tokens"].items())
    seconds = ", ".join(f"{name} {count:,.0f}" for name, count in cost["seconds"].items())
    console.print(f"tokens: {tokens}", highlight=False)
    console.print(f"seconds: {seconds}", highlight=False)
    console.print(
        f"bytes: {cost['bytes_up'] / 1e6:,.1f} MB up, {cost['bytes_down'] / 1e6:,.1f} MB down",
        highlight=False,
    )


def _table_of(results: Mapping[str, Any]) -> Table:
    return grid(
        f"{results['method']} with {results['algorithm']}, {results['rounds']} rounds, "
        f"seed {results['seed']} [95 % interval over test rows]; loss in nats per token",
        table_of(results),
        line_after=len(results["clients"]),
    )


def grid(title: str, rows: Sequence[Sequence[str]], line_after: int | None = None) -> Table:
    """Return rows, the first of them the header, as a table: words left, numbers right. A line
    follows the first `line_after` rows of the body."""
    header, *body = rows
    table = Table(title=title)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right")
    for i, row in enumerate(body):
        if i == line_after:
            table.add_section()
        table.add_row(*row)
    return table


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the tables of a comparison but those by client, and the notes to read them with."""
    console = wide_console()
    for title, rows in tables_in(comparison, by_client=False).items():
        console.print(grid(title, rows))
    for note in notes_of(comparison):
        console.print(note, highlight=False, markup=False)


def print_suites(results: Mapping[str, Any]) -> None:
    """Print what public suites found, and how each was asked."""
    console = wide_console()
    for title, rows in suite_tables.tables_of(results).items():
        console.print(grid(title, rows))


def print_estimates(estimates: Mapping[Group, Estimate]) -> None:
    """Print what each run of a comparison will take, and all that are still to be done."""
    columns = ["train tokens", "rewrite tokens", "seconds", "MB up", "MB down", "GiB memory"]
    rows = [["run", "runs to do", *columns]]
    for group, one in estimates.items():
        numbers = (one.train_tokens, one.rewrite_tokens, one.seconds)
        sent = (one.bytes_up / 1e6, one.bytes_down / 1e6)
        texts = (*(f"{n:,.0f}" for n in numbers), *(f"{n:,.2f}" for n in sent))
        memory = "unknown" if one.memory is None else f"{one.memory / 2**30:,.2f}"
        rows.append([str(group), str(one.runs), *texts, memory])
    rewriting = rewriting_seconds(estimates.values())
    seconds = sum(one.runs * one.seconds for one in estimates.values()) + rewriting
    console = wide_console()
    console.print(grid("what one run will take, from a small run of each kind", rows))
    console.print(
        f"{sum(one.runs for one in estimates.values())} runs to do, about {seconds:,.0f} s in all, "
        f"{rewriting:,.0f} of them for making the rewrites once",
        highlight=False,
    )


def print_audit(audits: Mapping[str, Audit]) -> None:
    """Print what became of each client's answers."""
    table = Table(title="rewriting")
    columns = (
        "client",
        "answers",
        "rewritten",
        "length",
        "new tokens",
        "cached",
        "kept raw because",
    )
    for name in columns:
        table.add_column(name, justify="left" if name in (columns[0], columns[-1]) else "right")
    for client, audit in audits.items():
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(audit.kept_raw.items()))
        table.add_row(
            client,
            str(audit.answers),
            f"{audit.rewritten} ({audit.share_rewritten:.0%})",
            f"x{audit.length_ratio:.2f}",
            str(audit.new_tokens),
            str(audit.from_cache),
            reasons,
        )
    wide_console().print(table)


def wide_console() -> Console:
    """Return a console as wide as the terminal. Piped into a file there is no width to fit into,
    and a table that is cut would be useless."""
    return Console() if Console().is_terminal else Console(width=160)
