"""What came out of a run in sentences, and what to be careful about, computed from its numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fedsdr.evaluation.intervals import ratio_interval, weighted_mean
from fedsdr.seeds import seed_for

Records = Sequence[Mapping[str, Any]]  # the lines of rounds.jsonl
FEW_ROWS = 20  # test rows below which an interval says little
OWNERS = {"global": "The global model's", "client": "The clients' own models'"}


class Change(NamedTuple):
    """The difference of a model to the base, with its 95 % interval over test rows if known."""

    before: float
    after: float
    low: float | None = None
    high: float | None = None

    @property
    def value(self) -> float:
        return self.after - self.before

    @property
    def is_clear(self) -> bool:
        """Whether the interval is known and excludes 0."""
        return self.low is not None and self.high is not None and self.low * self.high > 0


def changes_by_client(results: Mapping[str, Any], model: str, measure: str) -> dict[str, Change]:
    """Return how `measure` (loss or score) of each client differs between a model and the base.

    Intervals are of the difference over the client's test rows, which both models answered.
    """
    seed = seed_for(results["seed"], "report")
    changes = {}
    for name, client in results["clients"].items():
        before, after = (client["models"][m][measure] for m in ("base", model))
        rows = results.get("examples", {}).get(name, ())
        pairs = [_pair(row, model, measure) for row in rows]
        known = [pair for pair in pairs if pair[1]]
        ends = ratio_interval(known, seed) if len(known) > 1 else (None, None)
        changes[name] = Change(before, after, *ends)
    return changes


def mean_change(changes: Iterable[Change]) -> Change:
    """Return the mean over clients, each of which counts once."""
    found = list(changes)
    before, after = fmean(c.before for c in found), fmean(c.after for c in found)
    ends = [[c.low, c.high] for c in found if c.low is not None and c.high is not None]
    if len(ends) < len(found):
        return Change(before, after)
    _, interval = weighted_mean([1.0] * len(found), [c.value for c in found], ends)
    return Change(before, after, *interval)


def has_own_models(results: Mapping[str, Any]) -> bool:
    """Return whether a client has another model than the global one."""
    models = [client["models"] for client in results["clients"].values()]
    return any(of["client"]["loss"] != of["global"]["loss"] for of in models)


def findings(results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for the global model and, where there are any, one for the own models."""
    clients = results["clients"].values()
    if not clients:
        return ["No test rows, so nothing was measured (data.test_fraction)."]
    metrics = {client["metric"] for client in clients}
    metric = metrics.pop() if len(metrics) == 1 else "each client's own metric"
    lines = []
    for model in ("global", "client") if has_own_models(results) else ("global",):
        loss, score = (
            mean_change(changes_by_client(results, model, m).values()) for m in ("loss", "score")
        )
        lines.append(
            f"{OWNERS[model]} loss {_moved(loss)} nats per token; "
            f"{'their' if model == 'client' else 'its'} score ({metric}) {_moved(score)}."
        )
    rows = sum(client["num_test"] for client in clients)
    where = f"On {rows} test rows of {len(clients)} client{'s' * (len(clients) != 1)}, "
    first = lines[0][0].lower() + lines[0][1:]
    lines = [where + first, *lines[1:]]
    return [*lines, "Means over clients [95 % interval over test rows, this seed and draw alone]."]


def warnings(
    results: Mapping[str, Any] | None, records: Records, audit: Mapping[str, Any]
) -> list[str]:
    """Return what a reader should know before trusting the numbers; one line each."""
    found = [*_of_rounds(records), *_of_rewriting(audit.get("clients", {}))]
    return [*_of_results(results), *found] if results and results["clients"] else found


def _of_results(results: Mapping[str, Any]) -> Iterable[str]:
    clients = results["clients"]
    if few := {n: c["num_test"] for n, c in clients.items() if c["num_test"] < FEW_ROWS}:
        yield f"Few test rows (fewer than {FEW_ROWS}): {_listed(few)}."
    changes = changes_by_client(results, "global", "loss")
    if worse := {n: f"{c.value:+.3f}" for n, c in changes.items() if c.is_clear and c.value > 0}:
        yield f"The global model (R alone) is worse than the base in loss: {_listed(worse)}."
    cut = {
        name: f"{1 - share:.0%}"
        for name, client in clients.items()
        if (share := client["models"]["global"].get("finished", 1.0)) < 0.5
    }
    if cut:
        yield (
            "More than half of the global model's answers end at the token limit, which lowers "
            f"scores (evaluation.max_new_tokens): {_listed(cut)}."
        )


def _of_rounds(records: Records) -> Iterable[str]:
    tasks = sum(len(r["clients"]) + len(r["refused"]) for r in records)
    if refused := Counter(entry["id"] for r in records for entry in r["refused"]):
        yield f"{sum(refused.values())} of {tasks} updates were refused: {_listed(refused)}."
    if left := Counter(entry["id"] for r in records for entry in r.get("left_out") or ()):
        yield f"The aggregation left updates out: {_listed(left)}."
    rows = {client["id"]: client["num_examples"] for r in records for client in r["clients"]}
    if len(rows) > 2 and (most := max(rows.values())) > sum(rows.values()) / 2:
        name = max(rows, key=lambda client: rows[client])
        yield f"{name} has {most / sum(rows.values()):.0%} of the training rows."


def _of_rewriting(clients: Mapping[str, Any]) -> Iterable[str]:
    unused = {
        name: f"{of['rewritten']} of {of['answers']} used"
        for name, of in clients.items()
        if 2 * of["rewritten"] < of["answers"]
    }
    if unused:
        yield f"Most rewrites are not used: {_listed(unused)}."


def _pair(row: Mapping[str, Any], model: str, measure: str) -> tuple[float, float]:
    of, base = row[model], row["base"]
    if measure == "loss":
        return of["loss_sum"] - base["loss_sum"], float(of["tokens"])
    # With denominators of 1 the interval would be Wilson's, which is of shares, not of differences.
    return 2 * (of["score"] - base["score"]), 2.0


def _moved(change: Change) -> str:
    ends = f" [{change.low:+.3f}, {change.high:+.3f}]" if change.low is not None else ""
    amount = f"{change.value:+.3f}{ends}"
    if change.low is not None and not change.is_clear:
        return f"did not change beyond chance ({change.before:.3f} to {change.after:.3f}, {amount})"
    way = "fell" if change.value < 0 else "rose" if change.value > 0 else "stayed"
    return f"{way} from {change.before:.3f} to {change.after:.3f} ({amount})"


def _listed(values: Mapping[str, object], most: int = 8) -> str:
    shown = [f"{name} ({value})" for name, value in list(values.items())[:most]]
    more = len(values) - most
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
