"""lm-evaluation-harness over a model that is already loaded: its LM class, our tasks, its numbers.

`datasets` and `lm_eval` are imported here and nowhere else in this room.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import datasets
import lm_eval
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from fedsdr.errors import UserError
from fedsdr.research.suites.catalogue import Suite
from fedsdr.research.suites.questions import Question, limited, prompt_of

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class ModelFunctions:
    """The model under test as functions, with its forward as it is when they are called."""

    encode: Callable[[str], list[int]]
    end_token: int  # what stands before a text that has no context
    longest: int  # tokens of a prompt
    likelihoods: Callable[[Sequence[Pair]], list[tuple[float, bool]]]
    complete: Callable[[Sequence[str], Sequence[str], int], list[str]]  # prompts, until, tokens


class FunctionsLM(TemplateLM):
    """The harness's view of `ModelFunctions`. (It asks for a class of its own kind.)"""

    def __init__(self, model: ModelFunctions) -> None:
        super().__init__()
        self.model = model

    @property
    def eot_token_id(self) -> int:
        return self.model.end_token

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: object
    ) -> list[int]:
        return self.model.encode(string)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        longest = self.model.longest
        pairs = []
        for _, context, continuation in requests:
            kept = max(1, longest - len(continuation))  # too long a context loses its beginning
            pairs.append((tuple(context[-kept:]), tuple(continuation)))
        return self.model.likelihoods(pairs)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return scores

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        raise NotImplementedError("no suite asks for the likelihood of whole texts")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = [""] * len(requests)
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for i, request in enumerate(requests):
            asked = normalize_gen_kwargs(request.args[1])
            alike.setdefault((tuple(asked["until"]), asked["max_gen_toks"]), []).append(i)
        for (until, tokens), members in alike.items():
            prompts = [requests[i].args[0] for i in members]
            for i, text in zip(members, self.model.complete(prompts, until, tokens), strict=True):
                answers[i] = text
        return answers


@dataclass(frozen=True)
class SuiteScores:
    """One model on one suite: a score for each question, by metric, in one order."""

    ids: tuple[str, ...]
    shots: int  # the fewest that a prompt had
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return mean and standard error (the harness's: s / sqrt(n)) of each metric.

        The error of a single question is not defined, and left out.
        """
        return {
            metric: {"mean": float(np.mean(values))}
            | ({"stderr": float(mean_stderr(values))} if len(values) > 1 else {})
            for metric, values in self.scores.items()
        }


def run_suite(
    name: str, suite: Suite, questions: Sequence[Question], limit: int, model: ModelFunctions
) -> SuiteScores:
    """Ask a model the questions, or the harness's own tasks where there are none; `limit` of them
    in all (0: every one), spread over subjects."""
    with _quiet():
        if not questions:
            return _run_hub(name, suite, limit, model)
        asked = limited(questions, limit)
        task, shots = task_of(name, suite, asked, model)
        rows = samples(FunctionsLM(model), [task])
    scores = {m: tuple(float(row[m]) for row in rows) for m in suite.metrics}
    return SuiteScores(tuple(q.id for q in asked), shots, scores)


def task_of(
    name: str, suite: Suite, asked: Sequence[Question], model: ModelFunctions
) -> tuple[ConfigurableTask, int]:
    """Return the harness's task of these questions, and the fewest shots that a prompt has."""
    room = model.longest - min(suite.max_new_tokens, model.longest // 2)
    prompts = [prompt_of(q, lambda text: len(model.encode(text)) <= room) for q in asked]
    task = _task(name, suite, asked, [prompt for prompt, _ in prompts])
    return task, min(shots for _, shots in prompts)


def samples(lm: TemplateLM, tasks: Sequence[Any], limit: int | None = None) -> list[dict[str, Any]]:
    """Return what the harness says of each question, task after task: a score for each metric,
    and in "filtered_resps" what the model said of each choice."""
    named = {task.task_name: task for task in tasks}
    wanted: Any = {"tasks": named, "groups": {}, "group_map": {}}
    results: Any = lm_eval.evaluate(lm, wanted, limit=limit, bootstrap_iters=0)
    return [row | {"task": name} for name in named for row in results["samples"][name]]


def _task(
    name: str, suite: Suite, asked: Sequence[Question], prompts: Sequence[str]
) -> ConfigurableTask:
    """Return a task of the harness that asks ready-made prompts."""

    def of(doc: Mapping[str, Any]) -> Question:
        return asked[doc["number"]]

    def dataset(**_: object) -> dict[str, datasets.Dataset]:
        rows = [{"number": i, "prompt": prompt} for i, prompt in enumerate(prompts)]
        return {"test": datasets.Dataset.from_list(rows)}

    def in_words(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        assert suite.score is not None
        return {suite.metrics[0]: suite.score(of(doc), results[0])}

    def truthful(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
        # The log-likelihoods of true answers come first, and the best answer first of them.
        said = np.array([likelihood for likelihood, _ in results])
        true, false = said[: of(doc).right], said[of(doc).right :]
        shares = np.exp(said - said.max())
        return {
            "mc1": float(not len(false) or said[0] > false.max()),
            "mc2": float(shares[: len(true)].sum() / shares.sum()),
        }

    config: dict[str, Any] = {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "num_fewshot": 0,  # the shots are in the prompt
        "doc_to_text": lambda doc: doc["prompt"],
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in suite.metrics
        ],
    }
    if suite.score:
        config |= {
            "output_type": "generate_until",
            "doc_to_target": lambda doc: of(doc).answer,
            "generation_kwargs": {
                "until": list(suite.until),
                "max_gen_toks": suite.max_new_tokens,
                "do_sample": False,
            },
            "process_results": in_words,
        }
    else:
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: list(of(doc).choices),
            "doc_to_target": lambda doc: of(doc).choices.index(of(doc).answer),
        }
        if suite.metrics == ("mc1", "mc2"):
            config["process_results"] = truthful
    return ConfigurableTask(config=config)


def _run_hub(name: str, suite: Suite, limit: int, model: ModelFunctions) -> SuiteScores:
    """Run the harness's own tasks, with its prompts, from the Hugging Face hub."""
    try:
        loaded: Any = TaskManager().load(list(suite.hub))
    except Exception as error:  # each way of not reaching the hub has an exception of its own
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--suite: {name} cannot be loaded from the hub ({reason}); give --suite-data DIR"
        ) from error
    tasks = list(loaded["tasks"].values())
    for task in tasks:
        task.set_config("num_fewshot", suite.shots)
        task.set_fewshot_seed(0)
    each = -(-limit // len(tasks)) if limit else None
    rows = samples(FunctionsLM(model), tasks, each)
    scores: dict[str, list[float]] = {}
    ids: dict[str, None] = {}
    # TruthfulQA's two measures are two tasks of the same questions.
    one_each = len(suite.hub) == len(suite.metrics) > 1
    measure_of = dict(zip(suite.hub, suite.metrics, strict=True)) if one_each else {}
    for row in rows:
        ids[f"{row['doc_id']}" if one_each else f"{row['task']}/{row['doc_id']}"] = None
        for metric in row["metrics"]:
            label = metric if row["filter"] == "none" else f"{metric} ({row['filter']})"
            label = measure_of.get(row["task"], label)
            scores.setdefault(label, []).append(float(row[metric]))
    return SuiteScores(tuple(ids), suite.shots, {m: tuple(v) for m, v in scores.items()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the harness says while it works out of our output; its errors remain."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
