"""Losses by round in the lines of rounds.jsonl: of each phase while it trains, and as measured."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

Curve = list[tuple[int, float]]  # (round, loss)
Curves = dict[str, dict[str, Curve]]  # what is measured -> client, or "mean" over clients
_KINDS = {"global": "global", "client": "own"}  # in rounds.jsonl -> in names
Record = Mapping[str, Any]  # a line of rounds.jsonl


def training_losses(records: Sequence[Record]) -> Curves:
    """Return the training loss of each phase, by client and as their mean."""
    found: Curves = {}
    for record in records:
        phases: dict[str, dict[str, float]] = {}
        for client in record["clients"]:
            for key, value in client.items():
                phase, _, what = key.rpartition(".")
                if what == "loss":
                    phases.setdefault(phase, {})[client["id"]] = value
        _append(found, record["round"], phases)
    return found


def measured_losses(records: Iterable[Record]) -> Curves:
    """Return the losses of the global and of the own models between rounds, by client and as their
    mean, where evaluation.every asks for them."""
    found: Curves = {}
    for record in records:
        measured = record.get("evaluation") or {"losses": {}}
        if measured["losses"]:
            of_rows = {
                f"{measured['of']} rows, {name} model": {
                    client: of[kind] for client, of in measured["losses"].items()
                }
                for kind, name in _KINDS.items()
            }
            _append(found, record["round"], of_rows)
    return found


def _append(curves: Curves, round: int, losses: Mapping[str, Mapping[str, float]]) -> None:
    for name, by_client in losses.items():
        panel = curves.setdefault(name, {})
        for client, loss in {**by_client, "mean": fmean(by_client.values())}.items():
            panel.setdefault(client, []).append((round, loss))
