"""The model card of an exported model: how it was made and measured, without any text of a row."""

from pathlib import Path
from typing import Any

from fedsdr.config import Config
from fedsdr.evaluation.results_file import measured_results
from fedsdr.federation.checkpoint import load_progress
from fedsdr.types import ServerState

NAMES = {"base": "base", "global": "global (base + R)", "client": "clients' own"}


def model_card(
    run: Path, config: Config, state: ServerState, *, base: str, client_id: str, merged: bool
) -> str:
    """Return README.md of an exported model, with the metadata that the hub reads.

    `base` is a hub id, or what else names the base. Names of clients are left out, except that of
    the client whose model it is. UserError for a damaged results.json, and
    where it is missing although the run is finished.
    """
    rounds, _ = load_progress(run / "checkpoint")  # `state` may be that of the best round
    results = measured_results(run, rounds, config.federation.rounds) or {}
    of = f"a client's model ('{client_id}')" if client_id else "the global model"
    kind = "Merged weights" if merged else "A LoRA adapter"
    parts = [
        _metadata(base, merged),
        f"# {kind} of {of}\n\nTrained by federated fine-tuning with fedsdr: "
        f"`{config.method.name}` with `{config.algorithm.name}`, {state.round} rounds, "
        f"{len(state.accepted)} clients.\n",
        _table("How it was trained", _settings(config, base)),
        _table("Data", _counts(results)),
        _scores(results, client_id),
        _privacy(config, results),
        f"\n## Load\n\n```python\n{load_lines(merged, 'THIS_FOLDER')}\n```\n",
    ]
    return "".join(parts)


def load_lines(merged: bool, folder: str) -> str:
    """Return the Python that loads an export."""
    auto = "AutoModelForCausalLM" if merged else "AutoPeftModelForCausalLM"
    library = "transformers" if merged else "peft"
    return f'from {library} import {auto}\nmodel = {auto}.from_pretrained("{folder}")'


def _metadata(base: str, merged: bool) -> str:
    library = "transformers" if merged else "peft"
    named = "" if base.startswith("/") else f"base_model: {base}\n"  # the hub refuses a path
    return (
        f"---\n{named}library_name: {library}\npipeline_tag: text-generation\n"
        "tags:\n- fedsdr\n- federated-learning\n- lora\n---\n\n"
    )


def _settings(config: Config, base: str) -> dict[str, object]:
    train, lora = config.train, config.lora
    return {
        "base model": base,
        "dtype of the base": config.model.dtype,
        "local epochs a phase": train.local_epochs,
        "optimizer": f"{train.optimizer}, lr {train.lr:g}, {train.schedule}",
        "batch size": train.batch_size,
        "rank, alpha": f"{lora.rank}, {lora.alpha}" + (", rsLoRA" if lora.rslora else ""),
        "target modules": lora.target_modules,
        "aggregation": config.algorithm.aggregation,
        "seed": config.seed,
    }


def _counts(results: dict[str, Any]) -> dict[str, object]:
    clients = results.get("clients", {}).values()
    counted: dict[str, object] = {"clients": len(clients)}
    for key, name in (("num_train", "training rows"), ("num_test", "test rows")):
        sizes = [client[key] for client in clients if key in client]
        if sizes:
            counted[name] = f"{sum(sizes):,} ({min(sizes):,} to {max(sizes):,} a client)"
    return counted if clients else {}


def _scores(results: dict[str, Any], client_id: str) -> str:
    clients = results.get("clients", {})
    if not clients:
        return "\n## Results\n\nNot measured.\n"
    models = clients[client_id]["models"] if client_id in clients else results["mean"]
    on = "the client's own test rows" if client_id in clients else "the mean over clients"
    lines = [
        f"\n## Results\n\nOn {on}. Loss in nats a token, lower is better; score from 0 to 1, "
        "higher is better, with a 95 % interval over the test rows.\n\n"
        "| model | loss | score | interval |\n|---|---|---|---|\n"
    ]
    for key, name in NAMES.items():
        if found := models.get(key):
            low, high = found["score_ci"]
            loss, score = found["loss"], found["score"]
            lines.append(f"| {name} | {loss:.3f} | {score:.3f} | {low:.3f} to {high:.3f} |\n")
    return "".join(lines)


def _privacy(config: Config, results: dict[str, Any]) -> str:
    said = "No differential privacy: updates were sent as they are."
    if spent := results.get("privacy"):
        said = (
            f"Differential privacy ({config.privacy.mode}) of whole clients: epsilon "
            f"{spent['epsilon']:.3g} at delta {config.privacy.delta:g}."
        )
    elif config.privacy.mode != "none":
        said = f"Differential privacy ({config.privacy.mode}); epsilon was not computed."
    return f"\n## Privacy\n\n{said}\n"


def _table(title: str, rows: dict[str, object]) -> str:
    if not rows:
        return ""
    lines = "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items())
    return f"\n## {title}\n\n| | |\n|---|---|\n{lines}"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
