"""Suites over made-up models whose answers are known: scores worked by hand."""

import pytest
from tiny_suites import write_suites

pytest.importorskip("lm_eval")

from lm_eval.api.model import LM

from fedsdr.research.suites.catalogue import SUITES
from fedsdr.research.suites.harness import ask, load_tasks


class Said(LM):
    """`likelihood(context, continuation)` in nats; `words(context)` are what it generates."""

    def __init__(self, likelihood=None, words=None):
        super().__init__()
        self.likelihood, self.words, self.asked = likelihood, words, []

    def loglikelihood(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [(self.likelihood(*request.args), False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [self.words(request.args[0]) for request in requests]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_suites(tmp_path_factory.mktemp("suites"))


@pytest.fixture(scope="module")
def tasks(folder):
    return {name: load_tasks(name, SUITES[name], folder, unsafe=True) for name in SUITES}


def test_the_likeliest_choice_counts(tasks):
    # " positive" is always likeliest; the two labels of the file are positive and neutral.
    model = Said(lambda context, label: {" positive": -1.0, " neutral": -1.5}.get(label, -2.0))
    ids, scores = ask(model, SUITES["fpb"], tasks["fpb"], 0)
    assert ids == ["fpb/0", "fpb/1"]
    assert scores == {"acc": [1, 0]}


def test_a_limit_is_of_the_suite_and_takes_its_tasks_in_turn(tasks):
    model = Said(lambda context, letter: 0.0 if letter == " B" else -1.0)
    ids, scores = ask(model, SUITES["mmlu-med"], tasks["mmlu-med"], 8)
    assert ids == [
        "mmlu_anatomy/0", "mmlu_anatomy/1", "mmlu_clinical_knowledge/0",
        "mmlu_clinical_knowledge/1", "mmlu_college_biology/0", "mmlu_college_medicine/0",
        "mmlu_medical_genetics/0", "mmlu_professional_medicine/0",
    ]  # fmt: skip
    assert scores == {"acc": [1] * 8}
    assert len(model.asked) == 8 * 4
    ids, _ = ask(model, SUITES["mmlu-med"], tasks["mmlu-med"], 0)
    assert len(ids) == 6 * 4


def test_bbh_counts_an_answer_that_is_the_expected_text_but_for_space_around_it(tasks):
    said = {"not 0": " 0\n", "not 1": "-1.", "not 2": "-2"}
    model = Said(words=lambda prompt: said.get(prompt.split("\nA:")[-2].split("Q: ")[-1], ""))
    ids, scores = ask(model, SUITES["bbh"], tasks["bbh"], 6)
    assert ids == [f"bbh_fewshot_{t}/{i}" for t in ("boolean_expressions", "word_sorting")
                   for i in range(3)]  # fmt: skip
    assert scores == {"exact_match": [1, 0, 1] * 2}
    assert model.asked[0][1]["until"] == ["</s>", "Q", "\n\n"]


def test_gsm8k_reads_the_last_number_and_the_strict_answer(tasks):
    said = ["So 5 + 5 is 10.", "Add.\n#### 12", "I do not know"]
    model = Said(words=lambda prompt: said[len(model.asked) - 3 + order.index(prompt)])
    order = [task.fewshot_context(doc, num_fewshot=5) for task in tasks["gsm8k"].values()
             for doc in task.eval_docs]  # fmt: skip
    _, scores = ask(model, SUITES["gsm8k"], tasks["gsm8k"], 0)
    assert list(scores) == ["exact_match (flexible-extract)", "exact_match (strict-match)"]
    assert list(scores.values()) == [[1, 1, 0], [0, 1, 0]]


def test_drop_scores_words_and_takes_each_of_several_answers(tasks):
    model = Said(words=lambda prompt: " the 3 men" if "\n\n3 men." in prompt else " 4")
    _, scores = ask(model, SUITES["drop"], tasks["drop"], 2)
    assert scores["em"] == [0, 1]
    assert scores["f1"] == pytest.approx([0.67, 1], abs=0.005)  # {3, men} and {3}: 2 (1/2) / (3/2)


def test_humaneval_passes_with_its_own_solution_and_fails_with_another(tasks):
    model = Said(words=lambda prompt: "    return x + 1\n")  # of add1, not of add0
    _, scores = ask(model, SUITES["humaneval"], tasks["humaneval"], 0)
    assert scores == {"pass@1": [0, 1]}
    assert model.asked[0][1]["max_gen_toks"] == 1024
