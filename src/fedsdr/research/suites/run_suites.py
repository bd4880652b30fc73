"""Public suites on the models of a run: base, global and clients, over one loaded base."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsdr.errors import UserError
from fedsdr.files import write_atomically
from fedsdr.models.continuations import score_continuations
from fedsdr.models.generation import transformers_generate
from fedsdr.progress import Progress
from fedsdr.research.suites.catalogue import Suite
from fedsdr.research.suites.harness import ModelFunctions, SuiteScores, run_suite
from fedsdr.research.suites.questions import Question
from fedsdr.research.suites.sandbox import runs_well
from fedsdr.research.suites.tables import saved_suites
from fedsdr.runs.client_runtime import Site
from fedsdr.runs.served_models import models_of
from fedsdr.types import Decoding, GenerationRequest, ServerState, Turn

LONGEST = 2048  # tokens of a prompt, as in InstructEval


def run_suites(
    site: Site,
    state: ServerState,
    suites: Mapping[str, Suite],
    questions: Mapping[str, Sequence[Question]],
    limit: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure the models, write suites.json after each suite, and return what was added to it.

    Of each suite its shots, prompt, ids and questions; of each model the mean and standard error of
    each metric, the scores by question, and seconds.
    """
    saved_suites(site.folder)  # a broken file is found before the work that it would lose
    if any(suite.runs_code for suite in suites.values()) and not runs_well("pass"):
        raise UserError("--suite: generated code cannot be run here: its bounds are refused")
    models = list(models_of(site, state))
    functions = model_functions(site)
    results: dict[str, Any] = {}
    with progress.bar("suites", len(suites) * len(models)) as advance:
        for name, suite in suites.items():
            measured: dict[str, Any] = {}
            scores = None
            for model, forward in models:
                progress.log(f"{name}: {model}")
                began = time.perf_counter()
                with forward():
                    scores = run_suite(name, suite, questions[name], limit, functions)
                measured[model] = _entry(scores, time.perf_counter() - began)
                advance(1)
            assert scores is not None
            results[name] = {
                "shots": suite.shots,
                "fewest_shots": scores.shots,
                "how": suite.how if questions[name] else "the harness's task, from the hub",
                "rounds": state.round,
                "num_questions": len(scores.ids),
                "models": {key: measured[key] for key in ("base", "global") if key in measured},
                "clients": {
                    key.removeprefix("client "): entry
                    for key, entry in measured.items()
                    if key.startswith("client ")
                },
                "ids": list(scores.ids),
            }
            save_suites(site.folder, {name: results[name]})
    return results


def _entry(scores: SuiteScores, seconds: float) -> dict[str, Any]:
    return {
        "metrics": scores.summary(),
        "seconds": round(seconds, 3),
        "scores": {metric: list(values) for metric, values in scores.scores.items()},
    }


def save_suites(run: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """Add results to RUN/suites.json, in the place of those of the same suite; return all."""
    merged = {**saved_suites(run), **results}
    write_atomically(run / "suites.json", json.dumps(merged) + "\n")
    return merged


def model_functions(site: Site) -> ModelFunctions:
    """Return the functions that the harness asks, over the forward as it is when they are called.

    Prompts are plain text, not in the chat template: that is how InstructEval asks.
    """
    tokenizer, model = site.base.tokenizer, site.model.model
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    stops = sorted({*site.renderer.stop_token_ids, *ends})

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text))

    def complete(prompts: Sequence[str], until: Sequence[str], tokens: int) -> list[str]:
        tokens = min(tokens, longest // 2)  # a small window is left to the prompt, too
        generate = transformers_generate(
            model,
            tokenizer,
            lambda turns: encode(turns[0].content)[-(longest - tokens) :],
            stops,
            site.config.evaluation.batch_size,
            until,
        )
        greedy = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=tokens)
        asked = [GenerationRequest(str(i), (Turn("user", p),)) for i, p in enumerate(prompts)]
        said = {made.id: made.text for made in generate(asked, greedy)}
        return [said[request.id] for request in asked]

    window = getattr(model.config, "max_position_embeddings", None) or LONGEST
    longest = min(LONGEST, window)
    first = tokenizer.bos_token_id
    return ModelFunctions(
        encode=encode,
        end_token=tokenizer.eos_token_id if first is None else first,
        longest=longest,
        likelihoods=lambda pairs: score_continuations(model, pairs),
        complete=complete,
    )
