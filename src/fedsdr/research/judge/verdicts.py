"""A blind judge between models: who is shown in which order, what it said, and who stands where.

Each pair of answers is shown in both orders, and so are all answers together where there are more
than two. A pair gives a win rate, all together a winner's share: the two are never mixed, since a
model that is everybody's second wins pairs and no share.
"""

import json
import random
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from typing import Any

from fedsdr.data.chat_templates import prompts_of
from fedsdr.research.compare.differences import mean_over_clients, stratified_interval
from fedsdr.research.diagnose.summary import Table
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
    """One question to the judge: whose answers to which row it sees, the first as A."""

    client: str
    row: str
    order: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """A -> whose answer that is."""
        return dict(zip(string.ascii_uppercase, self.order, strict=False))


def ballots_of(
    rows: Mapping[str, Sequence[Example]], contestants: Sequence[str], seed: int
) -> list[Ballot]:
    """Return the ballots of every row: each pair, and all where there are more than two.

    Each group of contestants stands in an order drawn by the seed, and in the reverse of it.
    """
    groups: list[tuple[str, ...]] = [*combinations(contestants, 2)]
    if len(contestants) > 2:
        groups.append(tuple(contestants))
    found = []
    for client, examples in rows.items():
        for row in examples:
            for group in groups:
                drawn = random.Random(seed_for(seed, "judge", client, row.id, *group))
                order = tuple(drawn.sample(group, len(group)))
                found += [Ballot(client, row.id, order), Ballot(client, row.id, order[::-1])]
    return found


def question_of(ballot: Ballot, row: Example, answers: Sequence[str]) -> tuple[Turn, ...]:
    """Return what the judge reads. `answers` are in the order of the ballot; no name is shown."""
    labels = list(ballot.labels)
    shown = (
        f"<answer {label}>\n{text}\n</answer {label}>"
        for label, text in zip(labels, answers, strict=True)
    )
    parts = {
        "criteria": "\n".join(f"- {name}: {what}" for name, what in RUBRIC["criteria"].items()),
        "conversation": "\n\n".join(f"{t.role}: {t.content}" for t in prompts_of(row)[-1]),
        "reference": row.response,
        "answers": "\n\n".join(shown),
        "labels": ", ".join(labels),
        "form": json.dumps(dict.fromkeys(CRITERIA, "...")),
    }

    def filled(template: str) -> str:  # in one pass: what is filled in may hold braces too
        return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template).strip()

    return Turn("system", filled(RUBRIC["system"])), Turn("user", filled(RUBRIC["user"]))


def verdict_of(reply: str, ballot: Ballot) -> Verdict | None:
    """Return the winners of the last JSON object in `reply` that names one by every criterion.

    None when there is none: such a reply is no tie, and is counted by itself.
    """
    names = {label.lower(): name for label, name in ballot.labels.items()} | {TIE: TIE}
    for start in reversed([found.start() for found in re.finditer(r"\{", reply)]):
        try:
            said, _ = json.JSONDecoder().raw_decode(reply, start)
        except (ValueError, RecursionError):
            continue
        words = [str(said.get(criterion)).strip(" .\n").lower() for criterion in CRITERIA]
        winners = [names.get(word.removeprefix("answer ")) for word in words]
        if all(winners):
            return {c: str(winner) for c, winner in zip(CRITERIA, winners, strict=True)}
    return None


def standings(
    votes: Sequence[tuple[Ballot, Verdict | None]], contestants: Sequence[str]
) -> dict[str, Any]:
    """Return what judge.json holds of the votes.

    pairs: for "a / b", by criterion, the win rate of a: the mean of 1 for a vote for a, 1/2 for a
    tie, 0 for b, over both orders and the rows of each client, then over clients. A row is a win
    when the two orders together favour a, a tie when they favour neither. winners: the share of
    votes for each contestant, and for a tie, when all are shown. Intervals are 95 % bootstrap
    intervals over the rows of each client. Rows where one order gave no verdict are left out.
    """
    groups: dict[tuple[str, str, frozenset[str]], list[tuple[Ballot, Verdict | None]]] = {}
    for ballot, verdict in votes:
        key = (ballot.client, ballot.row, frozenset(ballot.order))
        groups.setdefault(key, []).append((ballot, verdict))
    whole: dict[frozenset[str], dict[tuple[str, str], list[Verdict]]] = {}
    for (client, row, who), of_row in groups.items():
        verdicts = [verdict for _, verdict in of_row if verdict]
        if len(verdicts) == 2:
            whole.setdefault(who, {})[client, row] = verdicts
    pairs = {}
    for a, b in combinations(contestants, 2):
        rows = whole.get(frozenset((a, b)), {})
        pairs[f"{a} / {b}"] = {c: _win_rate(a, rows, c) for c in CRITERIA}
    winners = {}
    if len(contestants) > 2:
        rows = whole.get(frozenset(contestants), {})
        winners = {
            name: {c: _mean(_shares(name, rows, c)) for c in CRITERIA}
            for name in (*contestants, TIE)
        }
    return {
        "pairs": pairs,
        "winners": winners,
        "asked": len(votes),
        "unreadable": sum(verdict is None for _, verdict in votes),
        **_habits(
            votes, [v for who, rows in whole.items() if len(who) == 2 for v in rows.values()]
        ),
    }


Rows = Mapping[tuple[str, str], Sequence[Verdict]]  # (client, row) -> the verdicts of both orders


def _win_rate(name: str, rows: Rows, criterion: str) -> dict[str, Any]:
    points = {
        at: sum({name: 1.0, TIE: 0.5}.get(v[criterion], 0.0) for v in verdicts) / 2
        for at, verdicts in rows.items()
    }
    return {
        **_mean(points),
        "wins": sum(p > 0.5 for p in points.values()),
        "ties": sum(p == 0.5 for p in points.values()),
        "losses": sum(p < 0.5 for p in points.values()),
    }


def _shares(name: str, rows: Rows, criterion: str) -> dict[tuple[str, str], float]:
    return {at: sum(v[criterion] == name for v in verdicts) / 2 for at, verdicts in rows.items()}


def _mean(of_rows: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    values: dict[str, dict[str, tuple[float, float]]] = {}
    for (client, row), value in of_rows.items():
        values.setdefault(client, {})[row] = (value, 1.0)
    return {
        "value": mean_over_clients(values) if values else None,
        "interval": stratified_interval(values) if values else None,
        "rows": len(of_rows),
    }


def _habits(
    votes: Sequence[tuple[Ballot, Verdict | None]], pairs: Sequence[Sequence[Verdict]]
) -> dict[str, float | None]:
    """How far the judge can be trusted: what it says overall when the order is turned round."""
    firsts = [
        verdict["overall"] == ballot.order[0]
        for ballot, verdict in votes
        if len(ballot.order) == 2 and verdict and verdict["overall"] != TIE
    ]
    same = [first["overall"] == second["overall"] for first, second in pairs]
    return {
        "same verdict in both orders": sum(same) / len(same) if same else None,
        "winner was the first shown": sum(firsts) / len(firsts) if firsts else None,
    }


def tables_of(found: Mapping[str, Any]) -> list[Table]:
    """Return the tables of judge.json: win rates of pairs, and shares of all where there are."""
    overall = ("wins", "ties", "losses", "rows")
    header = ["", *CRITERIA, *(f"{word}, overall" if word != "rows" else word for word in overall)]
    body = [
        [pair, *(_text(of[c]) for c in CRITERIA), *(str(of["overall"][word]) for word in overall)]
        for pair, of in found["pairs"].items()
    ]
    tables: list[Table] = [("Pairs: win rate of the first, a tie is half", [header, *body])]
    if found["winners"]:
        shares = [
            [name, *(_text(of[c]) for c in CRITERIA), str(of["overall"]["rows"])]
            for name, of in found["winners"].items()
        ]
        title = "All at once: share of votes as the winner"
        tables.append((title, [["", *CRITERIA, "rows"], *shares]))
    return tables


def _text(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "no verdict"
    if entry["interval"] is None:  # a client with one row
        return f"{entry['value']:.3f}"
    low, high = entry["interval"]
    return f"{entry['value']:.3f} [{low:.3f}, {high:.3f}]"


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """Return the lines that the tables are read with."""
    same, first = found["same verdict in both orders"], found["winner was the first shown"]
    rows, clients = sum(found["clients"].values()), len(found["clients"])
    notes = [
        f"judge {found['judge']}, blind, both orders; {rows} test rows of {clients} clients, "
        "every client counts once; [95 % interval over test rows]",
        f"{found['unreadable']} of {found['asked']} replies were no verdict; "
        "their rows are left out of that comparison",
    ]
    if same is not None:
        notes.append(f"turned round, {same:.0%} of the pairs of answers got the same verdict")
    if first is not None:
        notes.append(f"the winner of a pair was the first shown in {first:.0%} (no bias: 50 %)")
    return notes
