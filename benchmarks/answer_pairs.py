"""Print the answers of a comparison's global models to the same test rows, as Markdown.

    fedsdr compare examples/answers.toml --out runs/answers
    python benchmarks/answer_pairs.py runs/answers --rows 10 > docs/answers.md

The rows are the first test rows of each client in turn: nobody chose them. Answers are greedy.
"""

import argparse
import itertools
import json
from pathlib import Path

from fedsdr.cli.progress import console_progress
from fedsdr.data.chat_templates import prompt_of
from fedsdr.data.clients import load_clients, taking_part
from fedsdr.runs.answers import answers_of
from fedsdr.runs.run_folder import read_run


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", "<br>").replace("<|", "&lt;\\|") or "(nothing)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--rows", type=int, default=10)
    arguments = parser.parse_args()

    found = json.loads((arguments.comparison / "compare.json").read_text())
    runs = {one["variant"]: arguments.comparison / one["folder"] for one in found["cells"]}
    config, _ = read_run(next(iter(runs.values())))
    clients = taking_part(load_clients(config.data), config.data)
    in_turn = itertools.zip_longest(
        *([(client.client_id, row) for row in client.test] for client in clients)
    )
    asked = list(filter(None, itertools.chain(*in_turn)))[: arguments.rows]
    rows = {c.client_id: [row for name, row in asked if name == c.client_id] for c in clients}
    progress = console_progress()
    base = answers_of(next(iter(runs.values())), "base", clients, rows, progress)
    answers = {"base": base} | {
        variant: answers_of(run, "global", clients, rows, progress) for variant, run in runs.items()
    }
    for number, (name, row) in enumerate(asked, start=1):
        prompt = "\n".join(turn.content for turn in prompt_of(row))
        print(f"\n### {number}. {name}\n")
        print("\n".join(f"> {line}" for line in prompt.splitlines()))
        print("\n| model | answer |\n|---|---|")
        print(f"| reference | {cell(row.response)} |")
        for variant, of in answers.items():
            print(f"| {variant} | {cell(of[name][row.id])} |")


if __name__ == "__main__":
    main()
