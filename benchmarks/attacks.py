"""What each aggregation holds against: 2 of 8 clients attack a small federation.

Each honest client fits B A to a matrix of its own with AdamW, so a run takes a second and repeats
to the last bit. The rounds are those of the package (`run_round`).

    python benchmarks/attacks.py

The loss is the honest clients' mean ||B A - T_k||^2, relative to its start: 1 is nothing learnt.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsdr.algorithms import server_optimizer
from fedsdr.algorithms.aggregation import AGGREGATIONS
from fedsdr.federation.round import Plan, first_state, run_round
from fedsdr.tensors import Tensors, map_tensors, scale, subtract
from fedsdr.types import ClientTask, ClientUpdate, LocalSettings

A, B = "R/layer.lora_A", "R/layer.lora_B"
OUT, IN, RANK = 24, 32, 4
STEPS, LR = 20, 3e-3
COSINE = 0.2  # of the assembled attack's factors with the honest mean
OWN = 0.5  # size of what a client has for itself, beside the common part
HONEST = tuple(f"honest-{i}" for i in range(6))
HOSTILE = ("hostile-0", "hostile-1")
RULES = ("mean", "median", "trimmed-mean", "multi-krum")
Attack = Callable[[Tensors, Sequence[Tensors], Tensors], Tensors]  # (own, honest, R) -> update


def matrix(seed: int) -> Tensor:
    """Return a random matrix of the rank of R with norm 2."""
    generator = torch.Generator().manual_seed(seed)
    product = torch.randn(OUT, RANK, generator=generator) @ torch.randn(
        RANK, IN, generator=generator
    )
    return 2 * product / product.norm()


def targets(minority: int) -> dict[str, Tensor]:
    """Return T_k: a common matrix plus the client's own part; the last `minority` of the honest
    clients share another matrix."""
    groups = [matrix(1)] * (len(HONEST) - minority) + [matrix(2)] * minority
    own = {
        name: t + OWN * matrix(10 + i)
        for i, (name, t) in enumerate(zip(HONEST, groups, strict=True))
    }
    return own | {name: matrix(1) + OWN * matrix(20 + i) for i, name in enumerate(HOSTILE)}


def trained(shared: Tensors, target: Tensor) -> Tensors:
    """Return dR after AdamW on 1/2 ||B A - T||^2."""
    own = {name: torch.nn.Parameter(x.clone()) for name, x in shared.items()}
    optimizer = torch.optim.AdamW(own.values(), lr=LR, weight_decay=0)
    for _ in range(STEPS):
        a, b = own[A].detach(), own[B].detach()
        error = b @ a - target
        own[A].grad, own[B].grad = b.T @ error, error @ a.T
        optimizer.step()
    return subtract({name: x.detach() for name, x in own.items()}, shared)


def honest_update(own: Tensors, honest: Sequence[Tensors], shared: Tensors) -> Tensors:
    """Send what was trained."""
    return own


def sign_flipped(own: Tensors, honest: Sequence[Tensors], shared: Tensors) -> Tensors:
    """Send the negative of what was trained."""
    return scale(own, -1)


def scaled(own: Tensors, honest: Sequence[Tensors], shared: Tensors) -> Tensors:
    """Send ten times the negative of what was trained."""
    return scale(own, -10)


def assembled(own: Tensors, honest: Sequence[Tensors], shared: Tensors) -> Tensors:
    """Send factors that look honest one by one, and whose product turns against the honest mean.

    Each factor has the length of an honest one and an acute angle to the honest mean. What is left
    of it goes where the product moves most against the mean change of the products.
    """
    products = [(shared[B] + u[B]) @ (shared[A] + u[A]) - shared[B] @ shared[A] for u in honest]
    wanted = -torch.stack(products).mean(0)

    def disguised(name: str, direction: Tensor) -> Tensor:
        mean = torch.stack([u[name] for u in honest]).mean(0)
        size = statistics.fmean(float(u[name].norm()) for u in honest)
        mean = mean / mean.norm()
        across = direction - (direction * mean).sum() * mean
        return size * (COSINE * mean + (1 - COSINE**2) ** 0.5 * across / across.norm())

    b = disguised(B, wanted @ shared[A].T)
    return {A: disguised(A, (shared[B] + b).T @ wanted), B: b}


ATTACKS: dict[str, Attack] = {
    "none": honest_update,
    "sign-flipped": sign_flipped,
    "scaled": scaled,
    "assembled": assembled,
}


@dataclass(frozen=True)
class Outcome:
    """Losses relative to the start, and in how many client rounds someone was left out."""

    loss: float
    minority_loss: float  # of the honest clients that are not like the others
    hostile_left_out: int
    honest_left_out: int


def federate(rule: str, attack: str, minority: int = 0, rounds: int = 5) -> Outcome:
    """Run a federation of six honest and two hostile clients with an aggregation."""
    own = targets(minority)
    plan = Plan(0, tuple(own), 0, 1, server_optimizer("fedavg"), LocalSettings())
    plan = replace(plan, aggregation=AGGREGATIONS[rule], malicious_share=0.25, max_norm_ratio=0.0)
    bound = IN**-0.5
    a = torch.empty(RANK, IN).uniform_(-bound, bound, generator=torch.Generator().manual_seed(0))
    state = first_state({A: a, B: torch.zeros(OUT, RANK)}, plan)

    def run_clients(tasks: Sequence[ClientTask]) -> list[ClientUpdate]:
        updates = {t.client_id: trained(t.shared, own[t.client_id]) for t in tasks}
        honest = [updates[name] for name in HONEST]
        for name in HOSTILE:
            updates[name] = ATTACKS[attack](updates[name], honest, tasks[0].shared)
        return [
            ClientUpdate(
                t.client_id, t.round, 1, map_tensors(torch.clone, updates[t.client_id]), {}
            )
            for t in tasks
        ]

    left_out = []
    for _ in range(rounds):
        state, record = run_round(state, plan, run_clients)
        left_out += [str(entry["id"]) for entry in record.left_out]
    product = state.shared[B] @ state.shared[A]
    losses = {c: float((product - own[c]).square().sum() / own[c].square().sum()) for c in HONEST}
    return Outcome(
        loss=statistics.fmean(losses.values()),
        minority_loss=statistics.fmean(losses[c] for c in HONEST[-(minority or len(HONEST)) :]),
        hostile_left_out=sum(name in HOSTILE for name in left_out),
        honest_left_out=sum(name in HONEST for name in left_out),
    )


def main() -> None:
    """Print one table: alike clients, and two honest clients of six with another target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    hostile, honest = f"of {2 * rounds} hostile", f"of {6 * rounds} honest"
    print(f"| attack | aggregation | loss | {hostile} | {honest} | loss, minority of 2 | its loss "
          f"| {hostile} | {honest} |\n|---|---|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for attack in ATTACKS:
        for rule in RULES:
            alike, mixed = (federate(rule, attack, minority, rounds) for minority in (0, 2))
            print(f"| {attack} | {rule} | {alike.loss:.2f} | {alike.hostile_left_out} | "
                  f"{alike.honest_left_out} | {mixed.loss:.2f} | {mixed.minority_loss:.2f} | "
                  f"{mixed.hostile_left_out} | {mixed.honest_left_out} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
