"""fedsdr watch: follow a run, a comparison or a deployed federation from another terminal."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsdr.cli.options import command_line, run_folder

if TYPE_CHECKING:
    from fedsdr.federation.loss_curves import Curve
    from fedsdr.runs.watched import Watched

MOST_CLIENTS = 12  # that are shown one by one
SECONDS_BETWEEN_LOOKS = 1.0
_BARS = "▁▂▃▄▅▆▇█"


@click.command()
@run_folder
@click.option("--once", is_flag=True, help="Show how it stands and end.")
def watch(run: Path, once: bool) -> None:
    """Follow a run, a comparison or a deployed federation until it ends; RUN is only read.

    Losses are shown as small curves. Of a federation, RUN is the folder of the ServerApp.
    """
    if once or not sys.stdout.isatty():
        _follow_in_lines(run, once)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            lines, running = view_of(run)
            live.update(Text("\n".join(lines)), refresh=True)
            if not running:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _follow_in_lines(run: Path, once: bool) -> None:
    """Print the view, then again whenever a round, a cell or the whole has ended."""
    shown = None
    while True:
        lines, running = view_of(run)
        settled = [line for line in lines if not line.startswith("now: ")]
        if settled != shown:
            print("\n".join(lines), flush=True)
            shown = settled
        if once or not running:
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def view_of(folder: Path) -> tuple[list[str], bool]:
    """Return the lines that show a run or a comparison, and whether it runs."""
    from fedsdr.runs.run_status import read_status
    from fedsdr.runs.watched import cells_of, watch_run

    if not (folder / "cells").is_dir():
        found = watch_run(folder)
        return _run_lines(found), found.running
    status, cells = read_status(folder), cells_of(folder)
    finished = sum(cell.finished for cell in cells)
    state = "running" if status else "not running"
    lines = [f"{folder}: {finished} of {len(cells)} started runs finished, {state}"]
    lines += [f"now: {status.step.text}"] if status and status.step else []
    for cell in cells:
        lines += ["", *_run_lines(cell)] if cell.running else [_cell_line(cell)]
    if not status:
        lines.append(f"next: {command_line('report', folder)} (the page of the comparison)")
    return lines, status is not None


def _cell_line(cell: "Watched") -> str:
    losses = _means(cell)
    state = "finished" if cell.finished else f"{cell.rounds}/{cell.config.federation.rounds} rounds"
    last = next(reversed(losses.items()), None)
    curve = f", {last[0]} {sparkline(last[1])} {last[1][-1][1]:.3f}" if last else ""
    return f"{cell.folder.name}: {state}{curve}"


def _run_lines(run: "Watched") -> list[str]:
    """Return how a run stands: rounds, what is done now, losses, clients, refused updates."""
    config = run.config
    state = "running" if run.running else "finished" if run.finished else "stopped"
    rounds = f"{run.rounds} of {config.federation.rounds} rounds"
    method = f"{config.method.name} with {config.algorithm.name}"
    lines = [f"{run.folder}: {method}, {rounds}, {state}"]
    now = run.step.text if run.step else run.left
    lines += [f"now: {now}"] if now else []
    means = _means(run)
    width = max(map(len, means), default=0)
    lines += [f"loss {name:<{width}}  {_curve_text(curve)}" for name, curve in means.items()]
    lines += _client_lines(run)
    refused = [(r["round"], one) for r in run.records for one in r["refused"]]
    lines += [f"refused in round {at}: {one['id']}: {one['reason']}" for at, one in refused[-5:]]
    if len(refused) > 5:
        lines.append(f"refused in all: {len(refused)} updates")
    if not run.running:
        lines.append(f"next: {_next_of(run)}")
    return lines


def _client_lines(run: "Watched") -> list[str]:
    """Return a line a client: the losses that were measured, else those of training."""
    from fedsdr.federation.loss_curves import measured_losses, training_losses

    panels = measured_losses(run.records) or training_losses(run.records)
    if not panels:
        return []
    name, curves = next(reversed(panels.items()))
    own = {client: curve for client, curve in curves.items() if client != "mean"}
    width = max(map(len, own))
    lines = [f"  {c:<{width}}  {_curve_text(own[c])}" for c in list(own)[:MOST_CLIENTS]]
    more = len(own) - MOST_CLIENTS
    return [f"loss {name}, by client:", *lines, *([f"  and {more} more"] if more > 0 else [])]


def _means(run: "Watched") -> dict[str, "Curve"]:
    from fedsdr.federation.loss_curves import measured_losses, training_losses

    panels = training_losses(run.records) | measured_losses(run.records)
    return {name: curves["mean"] for name, curves in panels.items()}


def _curve_text(curve: "Curve") -> str:
    first, last = curve[0][1], curve[-1][1]
    return f"{sparkline(curve)}  {first:.3f} -> {last:.3f}"


def sparkline(curve: "Curve", most: int = 24) -> str:
    """Return a curve as bars between its lowest and its highest value, with `most` at most."""
    values = _thinned([value for _, value in curve], most)
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)


def _thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most `most` of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _next_of(run: "Watched") -> str:
    if run.finished:
        return f"{command_line('report', run.folder)} (the page of the run)"
    again = command_line("run", run.folder / "config.toml", "--out", run.folder, "--resume")
    return f"{again} (go on)"
