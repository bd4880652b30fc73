"""The page of a run's texts, which stays at the client: raw, rewrite and answers, side by side."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

from fedsdr.config import load_config
from fedsdr.data.clients import load_clients
from fedsdr.distill.cache import GenerationFile
from fedsdr.distill.records import MAKE_THEM, RewriteRecord, read_records
from fedsdr.errors import UserError
from fedsdr.evaluation.answer_audit import SIGNS, sign_pair
from fedsdr.evaluation.results_file import read_results
from fedsdr.file_reading import RESTORE, stands
from fedsdr.report.page import framed, render

SignsOf = Callable[[str, str], Iterable[str]]  # raw, rewrite -> what to look at
Piece = tuple[str, str]  # "", "del" or "ins", and the text
MODELS = {"base": "base", "global": "global", "client": "own model"}
ANSWER_SIGNS = ("unsupported", "wrong", "template", "unfinished")
MOST_CHARACTERS = 1_500_000  # of text on the page, so that it stays below 5 MB
_TOKEN = re.compile(r"\w+|\s+|[^\w\s]")


@dataclass(frozen=True)
class Entry:
    """One answer and the texts that are compared with it: name -> text."""

    client: str
    kind: str  # rewrite or answers
    place: str  # row and turn
    prompt: str
    first: tuple[str, str]  # name and text that the others are compared with
    others: Mapping[str, str]
    reason: str
    signs: Sequence[str]

    @property
    def change(self) -> float:
        """1 - the share of equal words: that of the text that differs least."""
        return 1 - max(_matcher(self.first[1], text).ratio() for text in self.others.values())

    @property
    def size(self) -> int:
        return len(self.prompt) + len(self.first[1]) + sum(map(len, self.others.values()))

    def columns(self) -> list[tuple[str, list[Piece]]]:
        """Return name and text of each column, with the differences to the first marked.

        The first column marks what the only other one lacks.
        """
        name, text = self.first
        pairs = {other: differences(text, of) for other, of in self.others.items()}
        left = next(iter(pairs.values()))[0] if len(pairs) == 1 else [("", text)]
        return [(name, left), *((other, right) for other, (_, right) in pairs.items())]


def rewrites_page(folder: Path, signs_of: SignsOf) -> str:
    """Return the page of the rewrites in RUN/distilled and the answers in RUN/answers.

    UserError if the run has neither, or a file of them is broken. All text is escaped.
    """
    files = sorted((folder / "distilled").glob("*.jsonl"))
    entries = [_rewrite(path.stem, r, signs_of) for path in files for r in read_records(path)]
    if stands(folder / "answers"):
        entries += _answers(folder)
    if not entries:
        raise UserError(f"{folder}: no rewrites and no answers; {MAKE_THEM}")
    entries = sorted(entries, key=lambda entry: -entry.change)
    shown: list[Entry] = []
    room = MOST_CHARACTERS
    for entry in entries:
        room -= entry.size
        if room < 0 and shown:
            break
        shown.append(entry)
    title = f"{folder.resolve().name}: texts"
    values = {
        "title": title,
        "entries": shown,
        "total": len(entries),
        "choices": {
            "client": sorted({entry.client for entry in shown}),
            "kind": sorted({entry.kind for entry in shown}),
            "reason": sorted({entry.reason for entry in shown}),
            "sign": sorted({sign for entry in shown for sign in entry.signs}),
        },
    }
    facts = [
        {"client": [e.client], "kind": [e.kind], "reason": [e.reason], "sign": [*e.signs]}
        for e in shown
    ]
    return framed(title, render("rewrites.html", values), facts, ["rewrites.js"])


def differences(old: str, new: str) -> tuple[list[Piece], list[Piece]]:
    """Return both texts in pieces: what only the old one has is "del", only the new one "ins"."""
    a, b = _TOKEN.findall(old), _TOKEN.findall(new)
    left: list[Piece] = []
    right: list[Piece] = []
    for tag, i, j, k, n in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if i < j:
            left.append(("" if tag == "equal" else "del", "".join(a[i:j])))
        if k < n:
            right.append(("" if tag == "equal" else "ins", "".join(b[k:n])))
    return left, right


def _matcher(old: str, new: str) -> SequenceMatcher[str]:
    a, b = ([t for t in _TOKEN.findall(text) if not t.isspace()] for text in (old, new))
    return SequenceMatcher(None, a, b, autojunk=False)


def _rewrite(client: str, record: RewriteRecord, signs_of: SignsOf) -> Entry:
    signs = [*signs_of(record.raw, record.rewrite), *(["truncated"] * (not record.finished))]
    return Entry(
        client=client,
        kind="rewrite",
        place=f"{record.id}, turn {record.turn + 1}",
        prompt=record.instruction,
        first=("raw", record.raw),
        others={"rewrite": record.rewrite},
        reason="used" if record.used == "rewrite" else f"kept raw: {record.reason}",
        signs=signs,
    )


def _answers(folder: Path) -> Iterable[Entry]:
    """Yield the test rows that the run's models have answered, beside the gold answer."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for model, name in MODELS.items():
        for path in sorted((folder / "answers" / model).glob("*.jsonl")):
            for made in GenerationFile(path):  # its key is the row and, in brackets, the model
                row_id = made.id.rpartition(" (")[0]
                found.setdefault((path.stem, row_id), {})[name] = made.text
    signs = _signs_of_answers(folder)
    for client in load_clients(load_config(folder / "config.toml").data):
        for row in client.test:
            key = (client.client_id, row.id)
            if texts := found.get(key):
                yield Entry(
                    client=client.client_id,
                    kind="answers",
                    place=row.id,
                    prompt="\n\n".join(
                        [*(t.content for t in row.history), row.instruction, row.input]
                    ),
                    first=("gold", row.response),
                    others=texts,
                    reason="test row",
                    signs=signs.get(key, ()),
                )


def _signs_of_answers(folder: Path) -> dict[tuple[str, str], list[str]]:
    """Return (client, row) -> what the answer audit saw in which model's answer."""
    if not stands(folder / "results.json"):
        return {}
    results = read_results(folder, RESTORE)
    return {
        (client, row["id"]): [
            f"{name}: {SIGNS[sign].title}"
            for model, name in MODELS.items()
            for sign in ANSWER_SIGNS
            if sign_pair(sign, row[model])[0]
        ]
        for client, rows in results.get("examples", {}).items()
        for row in rows
    }
