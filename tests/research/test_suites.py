"""Suites: the prompts, written out by hand as InstructEval and the harness make them."""

import json
import random

import pytest
from tiny_suites import write_suites

from fedsdr.errors import UserError
from fedsdr.research.suites.catalogue import SUITES, chosen_suites, read_suites, starts_with
from fedsdr.research.suites.questions import Question, limited, prompt_of
from fedsdr.research.suites.tables import tables_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_suites(tmp_path_factory.mktemp("suites"))


def whole(question):
    return prompt_of(question, lambda prompt: True)[0]


def test_mmlu_has_five_shots_of_dev_and_the_subject_after_two_spaces(folder):
    questions = SUITES["mmlu"].read(folder)
    assert len(questions) == 4 * 7
    asked = next(q for q in questions if q.id == "tiny_sums/3")
    shots = "".join(
        f"dev {i}+{i}?\nA. 0\nB. {2 * i}\nC. 9\nD. no, none\nAnswer: B\n\n" for i in range(5)
    )
    assert whole(asked) == (
        "The following are multiple choice questions (with answers) about  tiny sums.\n\n"
        f"{shots}test 3+3?\nA. 0\nB. 6\nC. 9\nD. no, none\nAnswer:"
    )
    assert (asked.answer, asked.choices) == ("B", ("A", "B", "C", "D"))


def test_mmlu_med_is_the_six_medical_subjects(folder):
    assert {q.group for q in SUITES["mmlu-med"].read(folder)} == {
        "anatomy", "clinical_knowledge", "college_biology", "college_medicine",
        "medical_genetics", "professional_medicine",
    }  # fmt: skip


def test_bbh_asks_directly_with_the_first_three_examples_of_its_task(folder):
    questions = SUITES["bbh"].read(folder)
    assert len(questions) == 2 * 4
    assert whole(questions[0]) == (
        "not 0\nAnswer: 0\n\nnot 1\nAnswer: -1\n\nnot 2\nAnswer: -2\n\nnot 3\nAnswer:"
    )
    assert questions[0].answer == "-3"


def test_crass_shuffles_the_options_of_all_questions_by_one_generator_of_seed_0(folder):
    questions = SUITES["crass"].read(folder)
    random.seed(0)  # as InstructEval does
    for number, question in enumerate(questions, 1):
        options = ["He sat.", "He ran.", "No."]
        random.shuffle(options)
        right = "ABC"[options.index("He sat.")]
        lines = "".join(f"\n{letter}. {o}" for letter, o in zip("ABC", options, strict=True))
        assert question.text == f"A man runs. What if he sat {number}?{lines}\nAnswer:"
        assert question.answer == right
    prompt = whole(questions[0])
    assert prompt.startswith(
        "A feather falls from a skyscraper. What would have happened if a comp"
    )
    assert prompt.count("\nAnswer:") == 4
    assert prompt.count("\n\n") == 3


def test_drop_keeps_questions_of_one_answer_and_no_passage_of_a_shot(folder):
    questions = SUITES["drop"].read(folder)
    random.seed(0)
    chosen = random.sample(range(1, 9), k=3)  # question 0 has two answers
    assert [q.id for q in questions] == [f"q{i}" for i in range(1, 9) if i not in chosen]
    shots = "".join(f"{i} men. How many?\nAnswer: {i}\n\n" for i in chosen)
    rest = questions[0].id.removeprefix("q")
    assert whole(questions[0]) == f"{shots}{rest} men. How many?\nAnswer:"


def test_the_other_prompts_are_those_of_the_harness(folder):
    gsm8k = SUITES["gsm8k"].read(folder)
    assert len(gsm8k) == 3
    assert whole(gsm8k[0]).startswith("Question: 0 and 0?\nAnswer: Add.\n#### 0\n\nQuestion: 1 ")
    assert whole(gsm8k[0]).endswith("#### 8\n\nQuestion: 5 and 5?\nAnswer:")
    score = SUITES["gsm8k"].score
    assert [score(gsm8k[0], said) for said in ("5 + 5 is 10.", " 1.0\n#### 11", "")] == [1, 0, 0]
    medqa = SUITES["medqa"].read(folder)[0]
    assert whole(medqa) == ("Question: 0 ill?\nA. rest\nB. run\nC. eat\nD. read\nE. wait\nAnswer:")
    assert medqa.answer == "E"
    pubmedqa = SUITES["pubmedqa"].read(folder)[0]
    assert whole(pubmedqa) == "Abstract: We saw.\nIt is.\nQuestion: Is it?\nAnswer:"
    truthful = SUITES["truthfulqa"].read(folder)[0]
    assert whole(truthful).startswith(
        "Q: What is human life expectancy in the United States?\nA: Hu"
    )
    assert whole(truthful).endswith("held in Barcelona, Spain.\n\nQ: Is it?\nA:")
    assert truthful.choices == ("It is", "Yes", "No", "Never", "Maybe")
    assert truthful.right == 2
    fpb = SUITES["fpb"].read(folder)[0]
    assert (fpb.answer, fpb.choices) == ("positive", ("negative", "neutral", "positive"))


def test_the_prompts_equal_those_of_the_harness_where_it_is_installed(folder):
    yaml = pytest.importorskip("yaml")
    tasks = pytest.importorskip("lm_eval.tasks")
    from pathlib import Path

    from lm_eval.utils import apply_template

    root = Path(tasks.__file__).parent
    text = (root / "truthfulqa" / "truthfulqa_mc1.yaml").read_text()
    template = yaml.safe_load(text)["doc_to_text"]
    truthful = SUITES["truthfulqa"].read(folder)[0]
    assert apply_template(template, {"question": "Is it?"}).strip() == whole(truthful)
    text = (root / "mmlu" / "default" / "_default_template_yaml").read_text()
    row = {"question": "test 3+3?", "choices": ["0", "6", "9", "no, none"]}
    asked = next(q for q in SUITES["mmlu"].read(folder) if q.id == "tiny_sums/3")
    assert apply_template(yaml.safe_load(text)["doc_to_text"], row) == asked.text


def test_as_many_shots_are_kept_as_fit_the_last_ones_leave_first():
    question = Question("q", "g", "text", "a", head="head ", shots=("one ", "two ", "three "))
    assert prompt_of(question, lambda p: True) == ("head one two three text", 3)
    assert prompt_of(question, lambda p: len(p) <= 18) == ("head one two text", 2)
    assert prompt_of(question, lambda p: False) == ("head text", 0)


def test_a_limit_takes_one_question_of_each_group_in_turn():
    questions = [Question(f"{g}{i}", g, "", "") for g, n in (("a", 5), ("b", 1), ("c", 3))
                 for i in range(n)]  # fmt: skip
    assert [q.id for q in limited(questions, 5)] == ["a0", "a1", "b0", "c0", "c1"]
    assert limited(questions, 0) == questions
    assert limited(questions, 99) == questions


def test_an_answer_counts_when_it_starts_with_the_expected_text():
    question = Question("q", "g", "", "False")
    said = ["False", "  False, because", "\n\nFalse", "It is False", ""]
    assert [starts_with(question, text) for text in said] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("mlmu", "unknown name 'mlmu'.*did you mean 'mmlu'"),
        (" , ", "names no suite"),
        ("mmlu,humaneval", "humaneval runs code.*--allow-code-execution"),
    ],
)
def test_what_is_wrong_with_the_names_is_said(names, words):
    with pytest.raises(UserError, match=words):
        chosen_suites(names, allow_code_execution=False)


BROKEN = {
    "mmlu": ("mmlu/data/test/tiny_sums_test.csv", "question,A,B\n", "6 columns.*row 1 has 3"),
    "bbh": ("bbh/bbh/order.json", '{"rows": []}', "order.json: another layout.*'examples'"),
    "crass": ("crass/CRASS_FTM_main_data_set.csv", "a;b\n1;2\n", "no 'CorrectAnswer'"),
    "drop": ("drop/drop_dev.jsonl", '{"passage": "p"}\n', "another layout.*no 'query_id'"),
    "gsm8k": ("gsm8k/test.jsonl", '{"question": \n', "line 1"),
    "fpb": ("financial_phrasebank/test.jsonl", '{"text": "x", "label": "bad"}', "'bad' is none of"),
    "medqa": ("medqa/test.jsonl", '{"question": 3}', "another layout"),
    "pubmedqa": ("pubmedqa/test.jsonl", "[]\n", "must be an object"),
    "truthfulqa": ("truthfulqa/TruthfulQA.csv", "Question\nwhat\n", "no 'Best Answer'"),
    "humaneval": ("humaneval/HumanEval.jsonl.gz", "not gzip", "HumanEval.jsonl.gz"),
}


@pytest.mark.parametrize(
    ("part", "rows"), [("test", "q,1,2,3,4,answer\n"), ("dev", "q,1,2,3,4,2\n")]
)
def test_an_mmlu_file_with_a_header_or_numbers_for_letters_is_said(part, rows, tmp_path):
    folder = write_suites(tmp_path / "suites")
    (folder / f"mmlu/data/{part}/tiny_sums_{part}.csv").write_text(rows)
    with pytest.raises(UserError, match=rf"tiny_sums_{part}.csv: another layout .*is none of A, B"):
        read_suites({"mmlu": SUITES["mmlu"]}, folder)


def test_a_folder_with_nothing_left_to_ask_is_said_and_the_hub_is_not_asked(tmp_path):
    folder = write_suites(tmp_path / "suites")
    path = folder / "gsm8k/test.jsonl"
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:5]))
    with pytest.raises(UserError, match="no question of gsm8k is left beside its examples"):
        read_suites({"gsm8k": SUITES["gsm8k"]}, folder)


@pytest.mark.parametrize(
    ("name", "file", "row", "words"),
    [
        ("gsm8k", "gsm8k/test.jsonl", {"question": "q", "answer": 5}, "answer is 5, not a text"),
        (
            "pubmedqa",
            "pubmedqa/test.jsonl",
            {"id": 1, "question": "q", "contexts": "one text", "final_decision": "yes"},
            "contexts is no list",
        ),
    ],
)
def test_a_value_of_another_kind_is_said(name, file, row, words, tmp_path):
    folder = write_suites(tmp_path / "suites")
    (folder / file).write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=words):
        read_suites({name: SUITES[name]}, folder)


@pytest.mark.parametrize("name", BROKEN)
def test_another_layout_is_said_with_the_file_and_what_it_lacks(name, tmp_path):
    file, content, words = BROKEN[name]
    folder = write_suites(tmp_path / "suites")
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=words):
        read_suites({name: SUITES[name]}, folder)


@pytest.mark.parametrize("name", SUITES)
def test_missing_data_is_said(name, tmp_path):
    with pytest.raises(UserError, match=r"--suite-data: .*(no such file|no file|cannot be read)"):
        read_suites({name: SUITES[name]}, tmp_path)


def test_suites_that_the_harness_lacks_need_a_folder(tmp_path):
    for name in ("crass", "fpb", "humaneval"):
        with pytest.raises(UserError, match=f"{name} is read from a folder; give --suite-data"):
            read_suites({name: SUITES[name]}, None)
    assert read_suites({"mmlu": SUITES["mmlu"]}, None) == {"mmlu": ()}
    with pytest.raises(UserError, match="no such folder"):
        read_suites({"mmlu": SUITES["mmlu"]}, tmp_path / "none")


def test_the_tables_never_have_global_and_client_models_in_one_column():
    def entry(mean, seconds=1.0):
        return {"metrics": {"acc": {"mean": mean, "stderr": 0.01}}, "seconds": seconds}

    suite = {"shots": 5, "fewest_shots": 3, "how": "so", "num_questions": 9,
             "models": {"base": entry(0.25), "global": entry(0.5)},
             "clients": {"bank": entry(0.75), "clinic": entry(1.0, 2.0)}}  # fmt: skip
    models, clients = tables_of({"mmlu": suite}).values()
    assert models == [
        ["suite", "how", "metric", "questions", "base", "global", "seconds"],
        [
            "mmlu",
            "5-shot (long questions 3), so",
            "acc",
            "9",
            "0.250 ± 0.010",
            "0.500 ± 0.010",
            "5",
        ],
    ]
    assert clients == [
        ["client", "mmlu acc"],
        ["bank", "0.750 ± 0.010"],
        ["clinic", "1.000 ± 0.010"],
    ]
    suite["clients"] = {}
    assert len(tables_of({"mmlu": suite})) == 1
