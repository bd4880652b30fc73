"""Measure published rewrites by their words alone: `fedsdr diagnose` without a run.

    python benchmarks/published_rewrites.py RAW.jsonl=REWRITTEN.json ...

Each pair of files is a client. Both hold rows with instruction, input and output, as .json or
.jsonl, which are joined on instruction and input. Tokens are those of the embedded model.
"""

import json
import sys
from pathlib import Path

from fedsdr.config import ModelConfig
from fedsdr.models.base_model import EMBEDDED, load_base
from fedsdr.research.diagnose.alignment import alignment_of
from fedsdr.research.diagnose.rewrite_signs import Pair, signs_of
from fedsdr.research.diagnose.summary import markdown_of, tables_of


def answers(path: Path) -> dict[tuple[str, str], str]:
    """Return the output of each (instruction, input), the first if there are several."""
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if path.suffix == ".json" else map(json.loads, text.splitlines())
    found: dict[tuple[str, str], str] = {}
    for row in rows:
        found.setdefault((row["instruction"], row.get("input", "")), row["output"])
    return found


def main() -> None:
    pairs: dict[str, list[Pair]] = {}
    for argument in sys.argv[1:]:
        raw, rewritten = (answers(Path(name)) for name in argument.split("=", 1))
        pairs[Path(argument.split("=")[0]).stem] = [
            (raw[key], rewritten[key]) for key in raw if key in rewritten
        ]
    texts = [{name: [pair[i] for pair in of] for name, of in pairs.items()} for i in (0, 1)]
    tokenizer = load_base(ModelConfig(name=EMBEDDED)).tokenizer
    found = {
        "text": alignment_of(texts[0], texts[1], tokenizer, seed=0),
        "rewrites": {name: signs_of(of, seed=0) for name, of in pairs.items()},
    }
    print(markdown_of("published rewrites", tables_of(found)))


if __name__ == "__main__":
    main()
