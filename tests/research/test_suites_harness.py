"""The harness over made-up models whose answers are known: scores worked by hand."""

import math
from statistics import stdev
from types import SimpleNamespace

import pytest

from fedsdr.errors import UserError
from fedsdr.research.suites import harness
from fedsdr.research.suites.catalogue import SUITES
from fedsdr.research.suites.harness import ModelFunctions, run_suite, task_of
from fedsdr.research.suites.questions import Question


def model(said=None, words=None, longest=2048):
    """A model whose tokens are characters: `said(prompt, continuation)` is (log-likelihood, whether
    greedy), `words(prompt)` what it generates."""

    def likelihoods(pairs):
        return [said("".join(map(chr, context)), "".join(map(chr, c))) for context, c in pairs]

    return ModelFunctions(
        encode=lambda text: [ord(letter) for letter in text],
        end_token=0,
        longest=longest,
        likelihoods=likelihoods,
        complete=lambda prompts, until, tokens: [words(prompt) for prompt in prompts],
    )


def letters(answers):
    return [
        Question(f"q{i}", f"s{i % 2}", f"{i}?\nAnswer:", answer, choices=("A", "B"))
        for i, answer in enumerate(answers)
    ]


def test_the_likeliest_letter_counts_and_whether_greedy_says_it():
    # A is always likelier; greedy decoding says it in questions 0 and 1 alone.
    def said(prompt, continuation):
        return (-1.0, prompt[0] in "01") if continuation == " A" else (-2.0, False)

    found = run_suite("mmlu", SUITES["mmlu"], letters("AABA"), 0, model(said))
    assert found.ids == ("q0", "q1", "q2", "q3")
    assert found.scores == {"acc": (1, 1, 0, 1), "exact_match": (1, 1, 0, 0)}
    summary = found.summary()
    assert summary["acc"]["mean"] == 0.75
    assert summary["acc"]["stderr"] == pytest.approx(stdev([1, 1, 0, 1]) / 2)
    one = run_suite("mmlu", SUITES["mmlu"], letters("A"), 0, model(said)).summary()
    assert one["acc"] == {"mean": 1.0}


def test_a_limit_is_of_the_suite_and_takes_each_subject_in_turn():
    found = run_suite("mmlu", SUITES["mmlu"], letters("AAAAAA"), 3, model(lambda p, c: (0.0, True)))
    assert found.ids == ("q0", "q1", "q2")


def test_truthfulqa_compares_the_best_answer_and_the_share_of_true_ones():
    likelihoods = {" best": 0.2, " true": 0.3, " false": 0.25, " wrong": 0.05}
    question = Question(
        "q", "g", "Q: ?\nA:", "best", choices=("best", "true", "false", "wrong"), right=2
    )

    def said(prompt, continuation):
        return math.log(likelihoods[continuation]), False

    found = run_suite("truthfulqa", SUITES["truthfulqa"], [question], 0, model(said))
    assert found.scores["mc1"] == (0.0,)  # 0.2 < 0.25
    assert found.scores["mc2"] == (pytest.approx(0.5 / 0.8),)
    likelihoods[" best"] = 0.26
    assert run_suite("truthfulqa", SUITES["truthfulqa"], [question], 0, model(said)).scores[
        "mc1"
    ] == (1,)


def test_answers_in_words_are_generated_as_the_suite_says():
    asked = {}

    def complete(prompts, until, tokens):
        asked.update(prompts=prompts, until=until, tokens=tokens)
        return [" 7, as I said", "It is 8"]

    functions = ModelFunctions(lambda text: [1] * len(text), 0, 2048, None, complete)
    questions = [Question("a", "t", "x?\nAnswer:", "7"), Question("b", "t", "y?\nAnswer:", "8")]
    found = run_suite("bbh", SUITES["bbh"], questions, 0, functions)
    assert found.scores == {"starts_with": (1.0, 0.0)}
    assert list(asked["prompts"]) == ["x?\nAnswer:", "y?\nAnswer:"]
    assert (list(asked["until"]), asked["tokens"]) == (["\n\n"], 32)


def test_braces_in_a_question_are_text_and_no_template():
    def said(prompt, continuation):
        assert prompt == "{{ 1 + 1 }} {% if %}\nAnswer:"
        return (-1.0, False)

    question = Question("q", "g", "{{ 1 + 1 }} {% if %}\nAnswer:", "A", choices=("A", "B"))
    assert run_suite("crass", SUITES["crass"], [question], 0, model(said)).scores["acc"] == (1.0,)


def test_too_long_a_context_loses_its_beginning():
    seen = []

    def said(prompt, continuation):
        seen.append((prompt, continuation))
        return (-1.0, False)

    question = Question("q", "g", "0123456789", "A", choices=("A", "BBB"))
    run_suite("crass", SUITES["crass"], [question], 0, model(said, longest=8))
    assert seen == [("456789", " A"), ("6789", " BBB")]


def test_without_a_folder_the_tasks_of_the_harness_are_pooled_over_questions(monkeypatch):
    def said(prompt, continuation):
        return (-1.0, True) if continuation == " A" else (-2.0, False)

    functions = model(said)
    parts = {
        name: task_of(name, SUITES["medqa"], letters(answers), functions)[0]
        for name, answers in (("one", "AAAB"), ("two", "BB"))
    }
    hub = SimpleNamespace(load=lambda names: {"tasks": parts})
    monkeypatch.setattr(harness, "TaskManager", lambda: hub)
    found = run_suite("medqa", SUITES["medqa"], (), 0, functions)
    assert found.scores == {"acc": (1, 1, 1, 0, 0, 0)}
    assert found.ids == ("one/0", "one/1", "one/2", "one/3", "two/0", "two/1")
    assert run_suite("medqa", SUITES["medqa"], (), 3, functions).ids == (
        "one/0", "one/1", "two/0", "two/1")  # fmt: skip


def test_two_tasks_of_the_same_questions_are_two_measures_of_each(monkeypatch):
    functions = model(lambda prompt, continuation: (-1.0, False))
    parts = {
        name: task_of(name, SUITES["medqa"], letters("AB"), functions)[0]
        for name in SUITES["truthfulqa"].hub
    }
    monkeypatch.setattr(
        harness, "TaskManager", lambda: SimpleNamespace(load=lambda names: {"tasks": parts})
    )
    found = run_suite("truthfulqa", SUITES["truthfulqa"], (), 0, functions)
    assert found.scores.keys() == {"mc1", "mc2"}
    assert found.ids == ("0", "1")
    assert [len(values) for values in found.scores.values()] == [2, 2]


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(monkeypatch):
    def unreachable(names):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(harness, "TaskManager", lambda: SimpleNamespace(load=unreachable))
    with pytest.raises(UserError, match=r"mmlu cannot be loaded .*reach the Hub.*--suite-data"):
        run_suite("mmlu", SUITES["mmlu"], (), 0, model())
