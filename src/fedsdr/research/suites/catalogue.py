"""Public benchmarks by name: their harness tasks, local files, shots and changed settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsdr.errors import UserError, choose
from fedsdr.research.suites import local_files
from fedsdr.research.suites.local_files import Reader, table

# The six subjects of MultiMedQA (Singhal et al., Nature 2023).
MEDICAL = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine",
           "medical_genetics", "professional_medicine")  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """A benchmark: tasks of lm-evaluation-harness with the harness's prompts and metrics.

    `read` returns the rows of each task from a local folder. `hub` are name patterns of the tasks
    whose data the harness can download; if empty, a folder is required. `changes` override keys of
    the task configuration. `metric` is the one that `fedsdr compare` uses.
    """

    read: Reader
    shots: int = 0
    metric: str = "acc"
    hub: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)
    runs_code: bool = False


# Some tokenizers decode an answer with the space before it, which exact_match counts as wrong.
STRIPPED = [{"function": "remove_whitespace"}, {"function": "take_first"}]

SUITES: dict[str, Suite] = {
    "mmlu": Suite(local_files.mmlu(), 5, hub=("mmlu_*",)),
    "bbh": Suite(
        local_files.bbh, 3, "exact_match", ("bbh_fewshot_*",),
        {"filter_list": [{"name": "none", "filter": STRIPPED}]}),
    "crass": Suite(local_files.crass, 3),
    "drop": Suite(
        table("drop", "drop/*.jsonl*", ("passage", "question"), local_files.drop_answers,
              "validation", shots=3),
        3, "em", ("drop",)),
    "gsm8k": Suite(
        table("gsm8k", "gsm8k/test.jsonl", ("question", "answer"), shots=5),
        5, "exact_match (flexible-extract)", ("gsm8k",),
        {"fewshot_config": {"sampler": "first_n"}}),
    "humaneval": Suite(
        table("humaneval", "humaneval/HumanEval.jsonl*", ("prompt", "entry_point", "test")),
        metric="pass@1", runs_code=True),
    "fpb": Suite(table("fpb", "financial_phrasebank/*.jsonl", ("text", "label"))),
    "mmlu-med": Suite(
        local_files.mmlu(*MEDICAL), 5, hub=tuple(f"mmlu_{subject}" for subject in MEDICAL)),
}  # fmt: skip


def choose_suites(names: str, allow_code: bool) -> dict[str, Suite]:
    """Return the suites of a list "mmlu,bbh". UserError for an unknown name, and for a suite that
    runs generated code if that is not allowed."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    suites = {name: choose(name, SUITES, "--suite") for name in wanted}
    if not suites:
        raise UserError(f"--suite: names no suite (one of: {', '.join(SUITES)})")
    for name, suite in suites.items():
        if suite.runs_code and not allow_code:
            raise UserError(
                f"--suite: {name} runs code that the model writes; add --allow-code-execution to "
                "run it in bubblewrap (docs/suites.md)"
            )
    return suites
