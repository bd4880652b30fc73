"""Which client holds how much of what, as bars of letters."""

import string
from collections import Counter
from collections.abc import Mapping

LETTERS = string.ascii_letters + string.digits
OTHERS = "*"


def client_bars(counts: Mapping[str, Mapping[str, int]], width: int = 60) -> list[str]:
    """Return one bar per client, as long as its share of the largest client's rows, and a legend.

    `counts` are rows by client and category. Each category has a letter, the most frequent first;
    those beyond the letters share `*`.
    """
    totals: Counter[str] = Counter()
    for of in counts.values():
        totals.update(of)
    named = [name for name, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0]))]
    letters = dict(zip(named, LETTERS, strict=False))
    most = max(sum(of.values()) for of in counts.values())
    indent = max(map(len, counts))
    lines = [f"rows of each client; a full bar of {width} letters is {most:,} rows"]
    for client, of in counts.items():
        bar, held = "", 0
        for name in named:
            held += of.get(name, 0)
            bar += letters.get(name, OTHERS) * (-(-held * width // most) - len(bar))
        lines.append(f"{client:<{indent}}  {bar:<{width}}  {held:,}")
    legend = [
        f"{letter} {name or 'no category'} {totals[name]:,}" for name, letter in letters.items()
    ]
    if rest := sum(totals[name] for name in named[len(LETTERS) :]):
        legend.append(f"{OTHERS} {len(named) - len(LETTERS)} others {rest:,}")
    return [*lines, "; ".join(legend)]
