"""Ask the models of a run public suites: the tasks, prompts and metrics of lm-evaluation-harness.

`lm_eval` and `datasets` are imported here and nowhere else in this room.
"""

import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

from fedsdr.errors import UserError
from fedsdr.evaluation.held_out import greedy
from fedsdr.files import write_atomically
from fedsdr.models.continuations import score_continuations
from fedsdr.models.generation import transformers_generate
from fedsdr.progress import Progress
from fedsdr.research.suites.catalogue import Suite
from fedsdr.research.suites.local_files import Row
from fedsdr.research.suites.sandbox import passes, sandbox_prefix
from fedsdr.research.suites.tables import saved_suites
from fedsdr.runs.client_runtime import ClientRuntime
from fedsdr.runs.served_models import models_of
from fedsdr.types import GenerationRequest, ServerState, Turn

VERSION = version("lm_eval")
# The folders of the harness that hold the tasks used here; indexing all takes many seconds.
FOLDERS = ("mmlu/default", "bbh/fewshot", "gsm8k")


class TwoBranchLM(TemplateLM):
    """The harness's interface to a model, with the branches active at the time of the call.

    Texts are encoded as in the harness's HFLM, without the chat template. A context that exceeds
    the model's window loses its beginning and is added to `cut`.
    """

    def __init__(self, runtime: ClientRuntime) -> None:
        super().__init__()
        self.runtime, self.tokenizer = runtime, runtime.base.tokenizer
        self.max_length = resolve_max_length(runtime.model.model.config, self.tokenizer)
        self.cut: set[tuple[int, ...]] = set()

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        return list(
            self.tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)
        )

    def _fitting(self, context: list[int], new_tokens: int) -> list[int]:
        kept = context[-max(1, self.max_length - new_tokens) :]
        if len(kept) < len(context):
            self.cut.add(tuple(context))
        return kept

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        pairs = [
            (tuple(self._fitting(context, len(continuation))), tuple(continuation))
            for _, context, continuation in requests
        ]
        return score_continuations(self.runtime.model.model, pairs)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        raise NotImplementedError("no suite asks for the likelihood of whole texts")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked = normalize_gen_kwargs(requests[0].args[1])  # the tasks of a suite generate alike
        # In a small window, half is left to the prompt.
        tokens = min(asked["max_gen_toks"], self.max_length // 2)
        generate = transformers_generate(
            self.runtime.model.model,
            self.tokenizer,
            lambda turns: self._fitting(self.tok_encode(turns[0].content), tokens),
            sorted({self.tokenizer.eos_token_id, *self.runtime.renderer.stop_token_ids} - {None}),
            self.runtime.config.evaluation.batch_size,
            asked["until"],
        )
        prompts = [
            GenerationRequest(str(i), (Turn("user", request.args[0]),))
            for i, request in enumerate(requests)
        ]
        texts = {answer.id: answer.text for answer in generate(prompts, greedy(tokens))}
        return [texts[prompt.id] for prompt in prompts]


def load_tasks(
    name: str, suite: Suite, folder: Path | None, unsafe: bool = False
) -> dict[str, Any]:
    """Return task name -> task of a suite, over local files, or over the hub without a folder.

    Generated code runs in bubblewrap; if bubblewrap fails and `unsafe` is set, without a sandbox.
    UserError for missing or differently laid out files, an unreachable hub, a failing sandbox.
    """
    if not folder and not suite.hub:
        raise UserError(f"--suite: {name} is read from a folder; give --suite-data DIR")
    rows = suite.read(folder) if folder else {}
    changes: dict[str, Any] = {"num_fewshot": suite.shots, **suite.changes}
    if suite.runs_code:
        changes["process_results"] = partial(_pass_at_1, sandbox_prefix(unsafe))
    root = Path(lm_eval.tasks.__file__).parent
    paths = [*(root / path for path in FOLDERS), Path(__file__).with_name("tasks")]
    manager = lm_eval.tasks.TaskManager(include_defaults=False, include_path=paths)
    known = manager.all_subtasks
    names = list(rows) or [n for n in known if any(fnmatch(n, pattern) for pattern in suite.hub)]
    if unknown := set(names) - set(known):
        raise UserError(f"--suite-data: {folder}: the harness has no task {min(unknown)}")
    local = {task: _local(task, splits, suite.shots) for task, splits in rows.items()}
    wanted = [{"task": task, **changes, **local.get(task, {})} for task in names]
    try:
        tasks: dict[str, Any] = manager.load([{"group": name, "task": wanted}])["tasks"]
    except Exception as error:  # each way of not reaching the hub has a class of its own
        reason = " ".join(str(error).split())[:200]
        hint = "check its files" if folder else "give --suite-data DIR"
        raise UserError(f"--suite: {name} cannot be loaded ({reason}); {hint}") from error
    for task in tasks.values():
        _check_answers(task)
    return tasks


def _local(task: str, splits: Mapping[str, list[Row]], shots: int) -> dict[str, Any]:
    """Return the settings that make a task read these rows. UserError for too few of them."""
    *examples, asked = splits.values()
    if not asked:
        raise UserError(f"--suite-data: no question of {task} is left to ask")
    if any(len(rows) < shots for rows in examples):
        raise UserError(f"--suite-data: {task} has fewer than {shots} worked examples")

    def dataset(**_: object) -> dict[str, datasets.Dataset]:
        return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    return {"custom_dataset": dataset, "process_docs": None}


def _check_answers(task: Any) -> None:
    """UserError if a right answer is not among the choices; the harness would score it as wrong."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    examples = task.fewshot_docs() if task.config.num_fewshot else ()
    for doc in [*examples, *task.eval_docs]:
        right, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
        if right not in choices and right not in range(len(choices)):
            listed = ", ".join(choices)
            raise UserError(f"--suite: {task.task_name}: answer {right!r} is none of {listed}")


def _pass_at_1(prefix: tuple[str, ...], doc: Row, answers: list[str]) -> dict[str, float]:
    program = f"{doc['prompt']}{answers[0]}\n{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass@1": float(passes(program, prefix))}


def ask(
    lm: LM, suite: Suite, tasks: Mapping[str, Any], limit: int
) -> tuple[list[str], dict[str, list[float]]]:
    """Ask a model at most `limit` questions of a suite (0: all), taken from its tasks in turn.

    Return the question ids, and metric -> one score per question.
    """
    turns = sorted((i, name) for name, task in tasks.items() for i in range(len(task.eval_docs)))
    counts = Counter(name for _, name in turns[: limit or None])
    first: Any = {name: range(count) for name, count in counts.items()}
    found: Any = lm_eval.evaluate(
        lm, {"tasks": {name: tasks[name] for name in counts}}, samples=first, bootstrap_iters=0
    )
    scores: dict[str, list[float]] = {suite.metric: []}
    for row in (row for name in counts for row in found["samples"][name]):
        for metric in row["metrics"]:
            label = metric if row["filter"] == "none" else f"{metric} ({row['filter']})"
            scores.setdefault(label, []).append(float(row[metric]))
    return [f"{name}/{i}" for name, count in counts.items() for i in range(count)], scores


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
    saved = saved_suites(runtime.folder)
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
            saved[name] = results[name] = {
                "shots": suite.shots,
                "how": f"lm-evaluation-harness {VERSION}, {source}",
                "cut_prompts": len(lm.cut),
                "rounds": state.round,
                "num_questions": len(ids),
                **measured,
                "ids": ids,
            }
            write_atomically(runtime.folder / "suites.json", json.dumps(saved) + "\n")
    return results


def _summary(scores: list[float]) -> dict[str, float]:
    """Return the mean and, of more than one score, its standard error s / sqrt(n)."""
    count = len(scores)
    error = {"stderr": statistics.stdev(scores) / count**0.5} if count > 1 else {}
    return {"mean": statistics.fmean(scores), **error}
