"""Agreement: our suites over branches against the harness's own HF model on the merged export.

    python benchmarks/agreement.py RUN --suite-data DIR [--suite mmlu] [--limit 200] [--out FILE]

Both are asked the same prompts by the same task; ours is the global model of RUN with its branches
in the forward, the other what `fedsdr export RUN --merge` writes, loaded by lm-eval's HFLM.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM

from fedsdr.research.suites.catalogue import chosen_suites, read_suites
from fedsdr.research.suites.harness import FunctionsLM, samples, task_of
from fedsdr.research.suites.questions import limited
from fedsdr.research.suites.run_suites import model_functions
from fedsdr.runs.export import export_model
from fedsdr.runs.run_folder import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--suite-data", type=Path, required=True)
    parser.add_argument("--suite", default="mmlu")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    suites = chosen_suites(arguments.suite, allow_code_execution=False)
    ((name, suite),) = suites.items()
    questions = limited(read_suites(suites, arguments.suite_data)[name], arguments.limit)

    site, state = open_run(arguments.run)
    site.model.set(state.shared)
    model = model_functions(site)
    task, _ = task_of(name, suite, questions, model)
    with site.model.using(*site.method.global_model):
        ours, our_seconds = timed(FunctionsLM(model), task)
    weights = next(site.base.model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        export_model(arguments.run, merged, merge=True)
        lm: Any = HFLM(
            pretrained=str(merged), device=str(weights.device), dtype=weights.dtype, batch_size=1
        )
        theirs, their_seconds = timed(lm, task)
    report = {
        "suite": name,
        "questions": len(questions),
        **compare(ours, theirs, suite.metrics),
        "seconds": {"branches": our_seconds, "merged, HFLM": their_seconds},
        "threads": torch.get_num_threads(),
        "dtype": str(weights.dtype),
    }
    for key, value in report.items():
        print(f"{key}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def timed(lm: Any, task: Any) -> tuple[list[dict[str, Any]], float]:
    """Return what a model said, and the seconds that it took."""
    began = time.perf_counter()
    rows = samples(lm, [task])
    return rows, round(time.perf_counter() - began, 1)


def compare(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Return both scores, how many questions have the same choice and the same score, and the
    largest difference between log-likelihoods of a choice, in nats."""
    pairs = list(zip(ours, theirs, strict=True))
    likelihoods = [
        (np.array([said for said, _ in a["filtered_resps"]]),
         np.array([said for said, _ in b["filtered_resps"]]))
        for a, b in pairs
    ]  # fmt: skip
    return {
        "branches": {m: float(np.mean([row[m] for row in ours])) for m in metrics},
        "merged, HFLM": {m: float(np.mean([row[m] for row in theirs])) for m in metrics},
        "same choice": sum(int(a.argmax() == b.argmax()) for a, b in likelihoods),
        "same scores": sum(all(a[m] == b[m] for m in metrics) for a, b in pairs),
        "largest difference, nats": max(float(abs(a - b).max()) for a, b in likelihoods),
    }


if __name__ == "__main__":
    main()
