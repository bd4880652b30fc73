"""The charts of one run, from results.json, rounds.jsonl and the audit of its rewriting."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedsdr.federation.loss_curves import measured_losses, training_losses
from fedsdr.report.charts import (
    MOST_LABELS,
    Chart,
    Dot,
    dot_chart,
    heat_map,
    line_chart,
    scatter_chart,
)
from fedsdr.report.findings import Records, changes_by_client, has_own_models, mean_change

MODEL_NAMES = {"base": "base", "global": "global", "client": "own"}
LOSS = "loss, nats per token"


def training_charts(records: Records) -> list[Chart]:
    """Return the losses by round and phase, a line a client, and heat maps of clients by rounds."""
    losses = training_losses(records)
    charts = [
        line_chart(f"Training loss, phase {phase}", curves, LOSS, bold="mean")
        for phase, curves in losses.items()
    ]
    charts += [
        line_chart(f"Loss on {title}", curves, LOSS, bold="mean")
        for title, curves in measured_losses(records).items()
    ]
    labels = ("client", "round")
    for phase, curves in losses.items() if len(records) > 1 else ():
        cells = {
            name: {str(r): value - curve[0][1] for r, value in curve[1:]}
            for name, curve in curves.items()
            if name != "mean"
        }
        title, unit = f"Phase {phase}: change since the client's first round", "change of loss"
        charts.append(heat_map(title, cells, (*labels, unit), diverging=True))
    return charts + list(_norm_map(records))


def _norm_map(records: Records) -> Iterator[Chart]:
    norms: dict[str, dict[str, float | None]] = {}
    refused = [(entry["id"], str(r["round"])) for r in records for entry in r["refused"]]
    for record in records:
        for client in (*record["clients"], *record["refused"]):
            norms.setdefault(client["id"], {})[str(record["round"])] = client.get("norm")
    if refused or any(v is not None for of in norms.values() for v in of.values()):
        yield heat_map(
            "Updates and refusals",
            dict(sorted(norms.items())),
            ("client", "round", "norm of the update"),
            crossed=refused,
            crosses="refused",
        )


def gain_charts(results: Mapping[str, Any]) -> list[Chart]:
    """Return what the global and own models change of each client's loss and score."""
    charts = []
    models = ("global", "client") if has_own_models(results) else ("global",)
    for measure, unit, better in (
        ("loss", "change of loss, nats per token", "left"),
        ("score", "change of score", "right"),
    ):
        dots = [
            Dot(name, MODEL_NAMES[model], change.value, change.low, change.high)
            for model in models
            for name, change in changes_by_client(results, model, measure).items()
        ]
        order = {d.name: d.value for d in dots}  # by the last model
        dots.sort(key=lambda dot: (order[dot.name], dot.name))
        charts.append(
            dot_chart(
                f"{measure.title()} against the base, by client",
                dots,
                f"{unit} ({better} is better)",
            )
        )
    return charts


def transfer_charts(results: Mapping[str, Any]) -> list[Chart]:
    """Return the losses of each model on each client's rows; of many clients, nothing."""
    matrix = (results.get("transfer") or {"matrix": {}})["matrix"]
    if not 0 < len(matrix) <= MOST_LABELS:
        return []
    cells = {model: {c: of["loss"] for c, of in row.items()} for model, row in matrix.items()}
    change = {
        model: {
            c: loss - results["clients"][c]["models"]["base"]["loss"]
            for c, loss in row.items()
            if c in results["clients"]
        }
        for model, row in cells.items()
    }
    return [
        heat_map("Loss of each model on each client's rows", cells, ("model", "rows of", LOSS)),
        heat_map(
            "The same, minus the base's loss",
            change,
            ("model", "rows of", "change of loss"),
            diverging=True,
        ),
    ]


def rewriting_charts(audit: Mapping[str, Any]) -> list[Chart]:
    """Return by client how many rewrites are used, and how much longer they are."""
    clients = audit["clients"].items()
    used = [
        Dot(
            n,
            "used",
            c["rewritten"] / max(1, c["answers"]),
            note=f"{n}: {c['rewritten']} of {c['answers']} answers",
        )
        for n, c in clients
    ]
    ratios = [Dot(n, "length", c["length_ratio"]) for n, c in clients if c["rewritten"]]
    charts = [dot_chart("Rewrites in use", used, "share of the answers", reference=None)]
    if ratios:
        unit = "words of the rewrite / of the raw answer"
        charts.append(dot_chart("Length of the rewrites in use", ratios, unit, reference=1.0))
    return charts


def answer_charts(results: Mapping[str, Any]) -> list[Chart]:
    """Return how long each model's answers are, and what gain costs in drift from the base."""
    charts, names = [], {m: MODEL_NAMES[m] for m in ("base", "global", "client")}
    if not has_own_models(results):
        del names["client"]
    dots = [
        Dot(client, name, sign["value"], *sign["interval"])
        for client, of in results["clients"].items()
        for model, name in names.items()
        if (sign := of["models"][model].get("audit", {}).get("length_ratio"))
    ]
    if dots:
        unit = "words of the answers / of the gold answers"
        charts.append(dot_chart("Length of the answers", dots, unit, reference=1.0))
    if points := list(_gains_and_drifts(results)):
        title = "Gain on the own domain against drift from the base"
        charts.append(
            scatter_chart(
                title,
                points,
                "drift, KL from the base (left is better)",
                "change of loss (down is better)",
            )
        )
    return charts


def _gains_and_drifts(results: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float]]:
    """Yield (client, model, drift, change of loss); the global model drifts alike for all."""
    retention, own_models = results.get("retention") or {}, has_own_models(results)
    for name, client in results["clients"].items() if retention else ():
        losses = {model: of["loss"] for model, of in client["models"].items()}
        drift = retention["models"]["global"]["drift"]["value"]
        yield name, "global", drift, losses["global"] - losses["base"]
        if own_models and (own := retention["clients"].get(name)):
            yield name, "own", own["drift"]["value"], losses["client"] - losses["base"]


def cost_chart(cost: Mapping[str, Any]) -> Chart:
    """Return the seconds of each part of the run."""
    dots = [Dot(name, "seconds", value) for name, value in cost["seconds"].items()]
    return dot_chart("Seconds by part", dots, "seconds, summed over clients")


def several_runs(runs: Mapping[str, tuple[Mapping[str, Any] | None, Records]]) -> Sequence[Chart]:
    """Return the mean training losses of several runs, and their gains where they are finished."""
    curves = {
        f"{name}, {phase}": panel["mean"]
        for name, (_, records) in runs.items()
        for phase, panel in training_losses(records).items()
    }
    charts = [line_chart("Training loss, mean over clients", curves, LOSS)] if curves else []
    dots = []
    for name, (results, _) in runs.items():
        if not (results and results["clients"]):
            continue
        for model in ("global", "client"):
            change = mean_change(changes_by_client(results, model, "loss").values())
            dots.append(Dot(name, MODEL_NAMES[model], change.value, change.low, change.high))
    if dots:
        order = {dot.name: dot.value for dot in dots}  # by the own models
        dots.sort(key=lambda dot: order[dot.name])
        unit = "change of loss, nats per token (left is better)"
        charts.append(dot_chart("Loss against the base, mean over clients", dots, unit))
    return charts
