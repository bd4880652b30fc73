"""A blind judge between models: the questions, its verdicts and the win rates.

Two answers to a row are shown at a time, in both orders.
"""

import json
import random
import re
import string
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from typing import Any

from fedsdr.data.chat_templates import prompt_of
from fedsdr.research.compare.differences import mean_over_clients, stratified_interval
from fedsdr.research.diagnose.summary import Table, grid, with_interval
from fedsdr.seeds import seed_for
from fedsdr.types import Example, Turn

RUBRIC: Mapping[str, Any] = tomllib.loads(
    resources.files(__package__).joinpath("rubric.toml").read_text("utf-8")
)
CRITERIA = tuple(RUBRIC["criteria"])
TIE = "tie"

Verdict = Mapping[str, str]  # criterion -> the winner, or TIE


@dataclass(frozen=True)
class Ballot:
    """One question to the judge: the row, and whose answers it sees as A and B."""

    client: str
    row: str
    order: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """Label -> model, as in {"A": "fedsdr", "B": "plain"}."""
        return dict(zip(string.ascii_uppercase, self.order, strict=False))


def ballots_of(
    rows: Mapping[str, Sequence[Example]], models: Sequence[str], seed: int
) -> list[Ballot]:
    """Return two ballots for each row and pair of models: an order drawn by the seed, reversed."""
    found = []
    for client, examples in rows.items():
        for row in examples:
            for pair in combinations(models, 2):
                drawn = random.Random(seed_for(seed, "judge", client, row.id, *pair))
                order = tuple(drawn.sample(pair, 2))
                found += [Ballot(client, row.id, order), Ballot(client, row.id, order[::-1])]
    return found


def question_of(ballot: Ballot, row: Example, answers: Sequence[str]) -> tuple[Turn, ...]:
    """Return the judge's prompt: answers in the order of the ballot, without the models' names."""
    shown = (
        f"<answer {label}>\n{text}\n</answer {label}>"
        for label, text in zip(ballot.labels, answers, strict=True)
    )
    parts = {
        "criteria": "\n".join(f"- {name}: {what}" for name, what in RUBRIC["criteria"].items()),
        "conversation": "\n\n".join(f"{t.role}: {t.content}" for t in prompt_of(row)),
        "reference": row.response,
        "answers": "\n\n".join(shown),
        "labels": ", ".join(ballot.labels),
        "form": json.dumps(dict.fromkeys(CRITERIA, "...")),
    }

    def filled(template: str) -> str:  # in one pass: the parts may hold braces themselves
        return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template).strip()

    return Turn("system", filled(RUBRIC["system"])), Turn("user", filled(RUBRIC["user"]))


def verdict_of(reply: str, ballot: Ballot) -> Verdict | None:
    """Return the winners in the last JSON object of `reply` that names one for every criterion.

    None if there is no such object: it is counted as unreadable, not as a tie.
    """
    names = {label.lower(): name for label, name in ballot.labels.items()} | {TIE: TIE}
    for start in reversed([found.start() for found in re.finditer(r"\{", reply)]):
        try:
            parsed, _ = json.JSONDecoder().raw_decode(reply, start)
        except (ValueError, RecursionError):
            continue
        words = [str(parsed.get(criterion)).strip(" .\n").lower() for criterion in CRITERIA]
        winners = [names.get(word.removeprefix("answer ")) for word in words]
        if all(winners):
            return {c: str(winner) for c, winner in zip(CRITERIA, winners, strict=True)}
    return None


def standings(
    votes: Sequence[tuple[Ballot, Verdict | None]], models: Sequence[str]
) -> dict[str, Any]:
    """Return the content of judge.json that follows from the votes.

    pairs: for "a / b" and each criterion, the win rate of a: 1 for a vote for a, 1/2 for a tie, 0
    for b, averaged over both orders, then over a client's rows, then over clients, with its 95 %
    bootstrap interval over rows. A row is a win if the two orders together favour a, a tie if they
    favour neither. Rows with an unreadable verdict in either order are left out of their pair.
    """
    rows: dict[tuple[frozenset[str], str, str], list[Verdict]] = defaultdict(list)
    for ballot, verdict in votes:
        if verdict:
            rows[frozenset(ballot.order), ballot.client, ballot.row].append(verdict)
    readable = {at: both for at, both in rows.items() if len(both) == 2}
    same = [one["overall"] == other["overall"] for one, other in readable.values()]
    firsts = [
        verdict["overall"] == ballot.order[0]
        for ballot, verdict in votes
        if verdict and verdict["overall"] != TIE
    ]
    return {
        "pairs": {
            f"{a} / {b}": {c: _win_rate(a, frozenset((a, b)), readable, c) for c in CRITERIA}
            for a, b in combinations(models, 2)
        },
        "asked": len(votes),
        "unreadable": sum(verdict is None for _, verdict in votes),
        "same verdict in both orders": sum(same) / len(same) if same else None,
        "winner was the first shown": sum(firsts) / len(firsts) if firsts else None,
    }


def _win_rate(
    model: str,
    pair: frozenset[str],
    readable: Mapping[tuple[frozenset[str], str, str], Sequence[Verdict]],
    criterion: str,
) -> dict[str, Any]:
    worth = {model: 1.0, TIE: 0.5}
    values: dict[str, dict[str, tuple[float, float]]] = {}
    for (models, client, row), both in readable.items():
        if models == pair:
            value = sum(worth.get(verdict[criterion], 0.0) for verdict in both) / 2
            values.setdefault(client, {})[row] = (value, 1.0)
    points = [value for rows in values.values() for value, _ in rows.values()]
    return {
        "value": mean_over_clients(values) if values else None,
        "interval": stratified_interval(values) if values else None,
        "rows": len(points),
        "wins": sum(p > 0.5 for p in points),
        "ties": sum(p == 0.5 for p in points),
        "losses": sum(p < 0.5 for p in points),
    }


def table_of(found: Mapping[str, Any]) -> Table:
    """Return the win rates of judge.json as a table."""
    rows = {}
    for pair, rates in found["pairs"].items():
        rows[pair] = {c: with_interval(rates[c]) or "no verdict" for c in CRITERIA}
        for count in ("wins", "ties", "losses", "rows"):
            rows[pair][f"{count}, overall"] = str(rates["overall"][count])
    meaning = (
        "Above 0.5 the first model wins, and a tie counts half. If the interval includes 0.5, the "
        "judge does not separate the two."
    )
    return grid("Win rate of the first of two models", meaning, rows)


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """Return the notes on how the judge was asked and how far it can be trusted."""
    same, first = found["same verdict in both orders"], found["winner was the first shown"]
    rows, clients = sum(found["clients"].values()), len(found["clients"])
    notes = [
        f"judge {found['judge']}, blind, both orders; {rows} test rows of {clients} clients, "
        "every client counts once; [95 % interval over test rows]",
        f"{found['unreadable']} of {found['asked']} replies were unreadable; "
        "their rows are left out of that pair",
    ]
    if same is not None:
        notes.append(f"{same:.0%} of the pairs got the same verdict in both orders (best: 100 %)")
    if first is not None:
        notes.append(f"the winner was shown first in {first:.0%} of the votes (unbiased: 50 %)")
    return notes
