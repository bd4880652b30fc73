"""Membership inference against a federated run: `benchmarks/membership.py`.

Who has a row and a model guesses whether the model was trained on the row. Members are the training
rows of each client, non-members are its test rows. Two attacks, each with one number a row:

    loss        -loss of the row under the attacked model        (Yeom et al., CSF 2018)
    reference   loss under the base model - loss under the attacked model
                                                                 (Carlini et al., S&P 2022)

where a loss is the mean over the row's supervised tokens. The rows of all clients are pooled; since
domains differ in their losses, each number is first standardised by the non-members of its client,
which gives the attacker more than he would know.

R is the global model, R + S the client's own one, attacked on the rows of that client. `test loss`
is that of the attacked model on the non-members, beside that of the base model.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RUNS = {
    "plain": ["method.name=plain"],
    "fedsdr": [],
    "fedsdr, central noise": ["privacy.mode=central"],
    "fedsdr, local noise": ["privacy.mode=local"],
}
FPRS = (0.01, 0.05)
RESAMPLES = 2000
Scores = NDArray[np.float64]


def auc(members: Scores, others: Scores) -> float:
    """Return P(member > non-member) + P(equal) / 2, the area under the ROC curve."""
    above = members[:, None] > others
    equal = members[:, None] == others
    return float(above.mean() + equal.mean() / 2)


def tpr_at(fpr: float, members: Scores, others: Scores) -> float:
    """Return the largest share of members above a threshold that at most `fpr` of others reach."""
    allowed = int(fpr * len(others))
    threshold = np.sort(others)[::-1][allowed]  # scores above it: at most `allowed` others
    return float((members > threshold).mean())


def success(
    members: Scores, others: Scores, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[float]]:
    """Return [value, low, high] of AUC and TPR: 95 % bootstrap, members and others apart."""
    rng = np.random.default_rng(seed)

    def measures(m: Scores, o: Scores) -> list[float]:
        return [auc(m, o), *(tpr_at(fpr, m, o) for fpr in FPRS)]

    resampled = [
        measures(rng.choice(members, len(members)), rng.choice(others, len(others)))
        for _ in range(resamples)
    ]
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    names = ("auc", *(f"tpr at {fpr:.0%} fpr" for fpr in FPRS))
    values = zip(measures(members, others), low.tolist(), high.tolist(), strict=True)
    return dict(zip(names, map(list, values), strict=True))


class Attacked(NamedTuple):
    """The losses of one client's rows under the attacked model and the base model."""

    members: Scores
    others: Scores
    base_members: Scores
    base_others: Scores


def attack_scores(clients: Sequence[Attacked], attack: str) -> tuple[Scores, Scores]:
    """Return the pooled scores of members and of non-members."""
    pooled = []
    for rows in clients:
        with_base = attack == "reference"
        members = with_base * rows.base_members - rows.members
        others = with_base * rows.base_others - rows.others
        centre, spread = others.mean(), others.std() or 1.0
        pooled.append(((members - centre) / spread, (others - centre) / spread))
    members, others = zip(*pooled, strict=True)
    return np.concatenate(members), np.concatenate(others)


def measure(options: argparse.Namespace, folder: Path) -> dict:
    """Run every configuration and attack its models."""
    from fedsdr.config import load_config
    from fedsdr.data.clients import load_clients
    from fedsdr.runs.shared_base import one_base

    (folder / "config.toml").write_text("")
    settings = [
        'data.clients="embedded:five-domains"',
        f'data.include={json.dumps(options.clients.split(","))}',
        "data.test_fraction=0.5", "data.max_length=160",
        f"data.max_examples={options.rows}", f"data.max_test_examples={options.others}",
        f"federation.rounds={options.rounds}", f"train.local_epochs={options.epochs}",
        "train.batch_size=4", f"train.lr={options.lr}",
        f"privacy.clip_norm={options.clip_norm}", f"privacy.noise_multiplier={options.noise}",
        "teacher.max_new_tokens=64", f'teacher.cache="{folder / "cache"}"',
        *options.set,
    ]  # fmt: skip
    kept = folder / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    open_runtime, base = one_base(), {}
    for name in options.runs.split(";"):
        if f"{name}: R" in results:
            continue
        began = time.perf_counter()
        config = load_config(folder / "config.toml", [*settings, *RUNS[name]])
        clients = load_clients(config.data)
        runtime = open_runtime(config, folder / name)
        base = base or {c.client_id: losses(runtime, c) for c in clients}
        state = train(runtime, clients)
        models = {"R": "global"} | ({"R + S": "client"} if runtime.method.private else {})
        for label, kind in models.items():
            attacked = [Attacked(*served(runtime, state, kind, c), *base[c.client_id])
                        for c in clients]  # fmt: skip
            results[f"{name}: {label}"] = report(attacked) | {"epsilon": epsilon_of(runtime)}
        kept.write_text(json.dumps(results, indent=2) + "\n")
        print(f"# {name}: {time.perf_counter() - began:.0f} s", flush=True)
    return results


def train(runtime, clients):
    """Rewrite if the method needs it and run the rounds; return the final state."""
    from fedsdr.progress import SILENT
    from fedsdr.runs.rewriting import distill_clients
    from fedsdr.runs.run import run_rounds
    from fedsdr.runs.run_plan import announced_by, plan_of
    from fedsdr.runs.teacher_setup import prepare_rewriting

    if runtime.method.rewrites:
        distill_clients(runtime, prepare_rewriting(runtime), clients, SILENT)
    plan = plan_of(runtime.config, announced_by(clients))
    return run_rounds(runtime, clients, plan, SILENT)


def losses(runtime, client) -> tuple[Scores, Scores]:
    """Return the mean loss of each training and test row with the branches in the forward."""
    found = [runtime.losses(rows) for rows in (client.raw, client.test)]
    members, others = (np.array([s / n for s, n in rows if n]) for rows in found)
    return members, others


def served(runtime, state, kind, client) -> tuple[Scores, Scores]:
    from fedsdr.runs.served_models import serving_of

    serving = serving_of(runtime, state, kind, client.client_id)
    runtime.model.set(serving.values)
    with runtime.model.using(*serving.branches):
        return losses(runtime, client)


def epsilon_of(runtime) -> float | None:
    *_, last = (runtime.folder / "rounds.jsonl").read_text().splitlines()
    return json.loads(last)["epsilon"]


def report(clients: Sequence[Attacked]) -> dict:
    """Return the success of both attacks and the losses of the attacked model."""
    return {
        "members": sum(len(c.members) for c in clients),
        "non-members": sum(len(c.others) for c in clients),
        "train loss": float(np.mean([c.members.mean() for c in clients])),
        "test loss": float(np.mean([c.others.mean() for c in clients])),
        "base test loss": float(np.mean([c.base_others.mean() for c in clients])),
        **{a: success(*attack_scores(clients, a)) for a in ("loss", "reference")},
    }


def table(results: Mapping[str, dict]) -> str:
    """Return a line of Markdown for each attacked model and attack."""
    lines = ["| model | attack | AUC | TPR at 1 % FPR | TPR at 5 % FPR | test loss | epsilon |",
             "| :-- | :-- | --: | --: | --: | --: | --: |"]  # fmt: skip
    for model, found in results.items():
        for attack in ("loss", "reference"):
            cells = [f"{v:.2f} [{low:.2f}, {high:.2f}]" for v, low, high in found[attack].values()]
            epsilon = "" if found["epsilon"] is None else f"{found['epsilon']:.3g}"
            lines.append(f"| {model} | {attack} | {' | '.join(cells)} | {found['test loss']:.2f} "
                         f"| {epsilon} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="medicine,talk", help="embedded clients")
    parser.add_argument("--rows", type=int, default=16, help="members per client")
    parser.add_argument("--others", type=int, default=50, help="non-members per client")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2, help="epochs per phase of a round")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--clip-norm", type=float, default=0.01)
    parser.add_argument("--noise", type=float, default=2.0, help="privacy.noise_multiplier")
    parser.add_argument("--runs", default=";".join(RUNS), help="some of them, with ; between")
    parser.add_argument("--set", action="append", default=[], help="any other key: a.b=value")
    parser.add_argument("--work", type=Path, help="keep the runs here; a second call goes on")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(table(measure(options, folder)))


if __name__ == "__main__":
    main()
