"""The held-out split of one client, made before anything else sees its rows."""

import hashlib
from collections.abc import Sequence

import numpy as np

from fedsdr.errors import UserError
from fedsdr.seeds import seed_for
from fedsdr.types import ClientData, Example

Prompt = bytes  # a hash of the turns up to a user message, each without outer white space


def split(
    examples: Sequence[Example],
    test_fraction: float,
    seed: int,
    max_examples: int = 0,
    max_test_examples: int = 0,
    client: str = "",
    key: str = "data.test_fraction",
) -> tuple[list[Example], list[Example]]:
    """Return (train, test), each in the file's order.

    Test gets round(test_fraction * n) rows, or fewer, since groups of one prompt (`prompt_groups`)
    stay together; at least one row if test_fraction > 0 and there are two groups. Duplicates are
    kept: they are weights. The caps then choose rows at random (0: all); a larger cap keeps the
    rows of a smaller one. The split depends on the rows, `seed` and `client` alone, so that a site
    gets the same one alone and among others. UserError, which names `key`, when no training row is
    left.
    """
    if not examples:
        raise UserError(f"client '{client}' has no rows; give it data or leave it out")
    wanted = round(test_fraction * len(examples))
    if wanted >= len(examples):
        rows = f"client '{client}': {key} = {test_fraction} of {len(examples)} rows"
        raise UserError(f"{rows} leaves no training row; lower it or add rows")
    test = _held_out(prompt_groups(examples), max(wanted, 1), seed, client) if test_fraction else []
    held = set(test)
    train = [i for i in range(len(examples)) if i not in held]
    train = _capped(train, max_examples, seed_for(seed, "cap-train", client))
    test = _capped(test, max_test_examples, seed_for(seed, "cap-test", client))
    return [examples[i] for i in train], [examples[i] for i in test]


def prompt_groups(examples: Sequence[Example]) -> list[list[int]]:
    """Return the groups of indices that must stay on one side, in the order of their first rows.

    Rows belong together when they have the same prompt (history, instruction and input, each
    without outer white space), and when one row's prompt is the beginning of the other's
    conversation, as in data that also hold each conversation turn by turn.
    """
    prompts = [_prompts(example) for example in examples]
    final = {chain[-1] for chain in prompts}
    groups: dict[Prompt, list[int]] = {}
    for index, chain in enumerate(prompts):
        # All rows that begin with one prompt find the same shortest beginning.
        first = next(prompt for prompt in chain if prompt in final)
        groups.setdefault(first, []).append(index)
    return list(groups.values())


def trained_elsewhere(
    clients: Sequence[ClientData], trained: Sequence[ClientData]
) -> dict[str, int]:
    """Return client -> how many of its test rows have the prompt of a row that another trains on.

    Clients without any are left out. A client's own training rows have other prompts (`split`).
    """
    seen = {_prompts(row)[-1] for client in trained for row in client.raw}
    counts = {c.client_id: sum(_prompts(row)[-1] in seen for row in c.test) for c in clients}
    return {client: count for client, count in counts.items() if count}


def _prompts(example: Example) -> list[Prompt]:
    """Return what comes before each assistant turn, the shortest first."""
    # Joined as the template joins them: the model sees no border between the two.
    asked = f"{example.instruction.strip()}\n\n{example.input.strip()}".strip()
    prompts, state = [], hashlib.blake2b(digest_size=16)
    for role, content in (*((t.role, t.content.strip()) for t in example.history), ("user", asked)):
        state.update(f"{role} {len(content)} {content}".encode())
        if role == "user":
            prompts.append(state.digest())
    return prompts


def _held_out(groups: list[list[int]], wanted: int, seed: int, client: str) -> list[int]:
    """Return the rows of shuffled groups as long as they fit in `wanted`, else a smallest one."""
    if len(groups) < 2:
        return []
    order = np.random.default_rng(seed_for(seed, "split", client)).permutation(len(groups))
    test: list[int] = []
    for g in order:
        if len(test) + len(groups[g]) <= wanted:
            test += groups[g]
    return sorted(test or min((groups[g] for g in order), key=len))


def _capped(indices: Sequence[int], most: int, seed: int) -> list[int]:
    if not most or len(indices) <= most:
        return list(indices)
    chosen = np.random.default_rng(seed).permutation(len(indices))[:most]
    return [indices[i] for i in sorted(chosen)]
