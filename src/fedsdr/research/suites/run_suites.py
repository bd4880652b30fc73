"""Ask the base, global and client models of a run the questions of public suites."""

import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

from fedsdr.files import write_atomically
from fedsdr.progress import Progress
from fedsdr.research.suites.catalogue import Suite
from fedsdr.research.suites.harness import VERSION, TwoBranchLM, ask
from fedsdr.research.suites.tables import saved_suites
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.runs.served_models import models_of
from fedsdr.types import ServerState


def run_suites(
    runtime: ClientRuntime,
    state: ServerState,
    suites: Mapping[str, tuple[Suite, Mapping[str, Any]]],
    source: str,
    limit: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure all models of a run on suites, each given with its tasks; return the results.

    suites.json is written after each suite and keeps the results of other suites. `source` says
    where the questions come from. Results of a model: mean and standard error of each metric, the
    score of each question, seconds.
    """
    saved_suites(runtime.folder)  # fail on a broken file before the work starts
    models = list(models_of(runtime, state))
    results: dict[str, Any] = {}
    with progress.bar("suites", len(suites) * len(models)) as advance:
        for name, (suite, tasks) in suites.items():
            lm = TwoBranchLM(runtime)
            measured: dict[str, dict[str, Any]] = {"models": {}, "clients": {}}
            for model, forward in models:
                progress.log(f"{name}: {model}")
                began = time.perf_counter()
                with forward():
                    ids, scores = ask(lm, suite, tasks, limit)
                kind = "clients" if model.startswith("client ") else "models"
                measured[kind][model.removeprefix("client ")] = {
                    "metrics": {metric: _summary(values) for metric, values in scores.items()},
                    "seconds": round(time.perf_counter() - began, 3),
                    "scores": scores,
                }
                advance(1)
            results[name] = {
                "shots": suite.shots,
                "how": f"lm-evaluation-harness {VERSION}, {source}",
                "cut_prompts": len(lm.cut),
                "rounds": state.round,
                "num_questions": len(ids),
                **measured,
                "ids": ids,
            }
            merged = {**saved_suites(runtime.folder), **results}
            write_atomically(runtime.folder / "suites.json", json.dumps(merged) + "\n")
    return results


def _summary(scores: list[float]) -> dict[str, float]:
    """Return the mean and, of more than one score, its standard error s / sqrt(n)."""
    count = len(scores)
    error = {"stderr": statistics.stdev(scores) / count**0.5} if count > 1 else {}
    return {"mean": statistics.fmean(scores), **error}
