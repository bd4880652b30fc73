"""Agreement: our suites over branches against the harness's own HF model on the merged export.

    python benchmarks/agreement.py RUN --suite-data DIR [--suite mmlu] [--limit 200] [--out FILE]

Both are asked the same tasks: ours is the global model of RUN with its branches in the forward, the
other what `fedsdr export RUN --merge` writes, loaded by lm-eval's HFLM.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from fedsdr.research.suites.catalogue import choose_suites
from fedsdr.research.suites.harness import TwoBranchLM, ask, load_tasks
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
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    ((name, suite),) = choose_suites(arguments.suite, allow_code=False).items()
    tasks = load_tasks(name, suite, arguments.suite_data)

    def answers(lm: LM) -> tuple[dict[str, list[float]], float]:
        """Return the scores of each question by metric, and the seconds that they took."""
        began = time.perf_counter()
        _, scores = ask(lm, suite, tasks, arguments.limit)
        return scores, round(time.perf_counter() - began, 1)

    runtime, state = open_run(arguments.run)
    runtime.model.set(state.shared)
    with runtime.model.using(*runtime.method.global_model):
        ours, our_seconds = answers(TwoBranchLM(runtime))
    weights = next(runtime.base.model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        export_model(arguments.run, merged, merge=True)
        lm: Any = HFLM(
            pretrained=str(merged), device=str(weights.device), dtype=weights.dtype, batch_size=1
        )
        theirs, their_seconds = answers(lm)
    report = {
        "suite": name,
        "questions": len(ours[suite.metric]),
        "branches": {metric: float(np.mean(scores)) for metric, scores in ours.items()},
        "merged, HFLM": {metric: float(np.mean(scores)) for metric, scores in theirs.items()},
        "same score": {
            metric: int(np.isclose(scores, theirs[metric], atol=1e-3).sum())
            for metric, scores in ours.items()
        },
        "seconds": {"branches": our_seconds, "merged, HFLM": their_seconds},
        "threads": torch.get_num_threads(),
        "dtype": str(weights.dtype),
    }
    for key, value in report.items():
        print(f"{key}: {value}")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
