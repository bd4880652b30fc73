"""Three small clients for `fedsdr init --example`, each in another layout of rows."""

import csv
import io
import json
from collections.abc import Sequence

CAPITALS = {
    "Austria": "Vienna", "Bulgaria": "Sofia", "Chile": "Santiago", "Croatia": "Zagreb",
    "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "Estonia": "Tallinn",
    "Finland": "Helsinki", "France": "Paris", "Ghana": "Accra", "Greece": "Athens",
    "Hungary": "Budapest", "Ireland": "Dublin", "Japan": "Tokyo", "Kenya": "Nairobi",
    "Latvia": "Riga", "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima",
    "Poland": "Warsaw", "Portugal": "Lisbon", "Spain": "Madrid", "Sweden": "Stockholm",
}  # fmt: skip
PAST = {
    "begin": "began", "break": "broke", "bring": "brought", "buy": "bought", "catch": "caught",
    "choose": "chose", "draw": "drew", "drive": "drove", "eat": "ate", "fall": "fell",
    "find": "found", "fly": "flew", "give": "gave", "grow": "grew", "hold": "held",
    "know": "knew", "leave": "left", "ride": "rode", "sing": "sang", "speak": "spoke",
    "swim": "swam", "take": "took", "teach": "taught", "write": "wrote",
}  # fmt: skip
PRICES = {"apple": 3, "book": 12, "candle": 5, "lamp": 24, "pencil": 2, "ticket": 9}


def example_files() -> dict[str, str]:
    """Return file name -> content: 24 rows for each of three clients."""
    atlas = [
        {"instruction": f"What is the capital of {country}?", "output": f"It is {city}."}
        for country, city in CAPITALS.items()
    ]
    grammar = [
        {"messages": [
            {"role": "system", "content": "Answer with one word."},
            {"role": "user", "content": f"What is the past tense of '{verb}'?"},
            {"role": "assistant", "content": past},
        ]}
        for verb, past in PAST.items()
    ]  # fmt: skip
    shop = io.StringIO()
    table = csv.writer(shop, lineterminator="\n")
    table.writerow(["question", "answer"])
    for thing, price in PRICES.items():
        for count in (2, 3, 5, 8):
            said = f"{count} x {price} = {count * price}, so it costs {count * price} euros."
            table.writerow([f"One {thing} costs {price} euros. What do {count} cost?", said])
    return {
        "atlas.jsonl": _lines(atlas),
        "grammar.jsonl": _lines(grammar),
        "shop.csv": shop.getvalue(),
    }


def _lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
