"""The suites by name: what each asks, how its answers are scored, and the harness's own tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsdr.errors import UserError, choose
from fedsdr.evaluation.metrics import number_equal
from fedsdr.research.suites import layouts
from fedsdr.research.suites.questions import Question
from fedsdr.research.suites.sandbox import runs_well

Score = Callable[[Question, str], float]  # of an answer in words, in [0, 1]


@dataclass(frozen=True)
class Suite:
    """One suite. Where `score` is None an answer is the likeliest of the question's choices.

    `metrics` of choices: "acc", the share where the right choice is the likeliest; "exact_match",
    where it is also what the model would say first (InstructEval's score); "mc1" and "mc2" of
    TruthfulQA. Of answers in words: one name, for `score`.
    """

    read: Callable[[Path], list[Question]]
    shots: int
    how: str  # whose prompt, and what is scored; printed beside the number
    metrics: tuple[str, ...]
    score: Score | None = None
    max_new_tokens: int = 0
    until: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()  # the harness's tasks of the same questions; none: a folder is needed
    runs_code: bool = False


def starts_with(question: Question, said: str) -> float:
    """Return 1 when the answer, without white space before it, starts with the expected text."""
    return float(said.strip().startswith(question.answer))


def passes(question: Question, said: str) -> float:
    """Return 1 when the completed function passes its tests. This runs code of the model's."""
    return float(runs_well(f"{question.text}{said}\n{question.test}"))


LETTER = "the likeliest letter"
SUITES: dict[str, Suite] = {
    "mmlu": Suite(
        layouts.read_mmlu, 5, f"InstructEval's prompt, {LETTER}", ("acc", "exact_match"),
        hub=("mmlu",)),
    "bbh": Suite(
        layouts.read_bbh, 3, "InstructEval's prompt, direct answer", ("starts_with",),
        starts_with, 32, ("\n\n",), ("bbh_fewshot",)),
    "crass": Suite(
        layouts.read_crass, 3, f"InstructEval's prompt, {LETTER}", ("acc", "exact_match")),
    "drop": Suite(
        layouts.read_drop, 3, "InstructEval's prompt, direct answer", ("starts_with",),
        starts_with, 8, hub=("drop",)),
    "gsm8k": Suite(
        layouts.read_gsm8k, 5, "the harness's prompt, final number", ("final_number",),
        lambda question, said: number_equal(question.answer, said), 256, ("Question:",),
        ("gsm8k",)),
    "humaneval": Suite(
        layouts.read_humaneval, 0, "the function's head alone, greedy", ("pass@1",),
        passes, 512, ("\nclass", "\ndef", "\n#", "\nif", "\nprint"), runs_code=True),
    "fpb": Suite(
        layouts.read_fpb, 0, "our prompt, the likeliest label", ("acc",)),
    "medqa": Suite(
        layouts.read_medqa, 0, f"the harness's prompt, {LETTER} of five", ("acc",),
        hub=("medqa_4options",)),
    "pubmedqa": Suite(
        layouts.read_pubmedqa, 0, "the harness's prompt, the likeliest of yes, no, maybe",
        ("acc",), hub=("pubmedqa",)),
    "truthfulqa": Suite(
        layouts.read_truthfulqa, 0, "the harness's prompt, likelihood of true and false answers",
        ("mc1", "mc2"), hub=("truthfulqa_mc1", "truthfulqa_mc2")),
    "mmlu-med": Suite(
        layouts.read_mmlu_medical, 5, f"InstructEval's prompt, {LETTER}", ("acc", "exact_match"),
        hub=tuple(f"mmlu_{subject}" for subject in layouts.MEDICAL)),
}  # fmt: skip


def chosen_suites(names: str, allow_code_execution: bool) -> dict[str, Suite]:
    """Return the suites of a list "mmlu,bbh". UserError for an unknown name, and for a suite that
    runs generated code where that was not allowed."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    suites = {name: choose(name, SUITES, "--suite") for name in wanted}
    if not suites:
        raise UserError(f"--suite: names no suite (one of: {', '.join(SUITES)})")
    for name, suite in suites.items():
        if suite.runs_code and not allow_code_execution:
            raise UserError(
                f"--suite: {name} runs code that the model writes; "
                "add --allow-code-execution when you want that here (docs/suites.md)"
            )
    return suites


def read_suites(suites: dict[str, Suite], folder: Path | None) -> dict[str, Sequence[Question]]:
    """Return the questions of each suite from a folder; without one, none for those that the
    harness can load. UserError for what is missing or in another layout."""
    if folder is None:
        for name, suite in suites.items():
            if not suite.hub:
                raise UserError(f"--suite: {name} is read from a folder; give --suite-data DIR")
        return dict.fromkeys(suites, ())
    if not folder.is_dir():
        raise UserError(f"--suite-data: {folder}: no such folder")
    questions = {name: suite.read(folder) for name, suite in suites.items()}
    for name, asked in questions.items():
        if not asked:
            raise UserError(
                f"--suite-data: {folder}: no question of {name} is left beside its examples"
            )
    return dict(questions)
