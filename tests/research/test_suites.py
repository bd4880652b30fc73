"""Suites: the files of a folder as tasks of the harness, and one line for what is wrong in them."""

import gzip
import json
import random
import shutil

import pytest
from tiny_suites import write_suites

pytest.importorskip("lm_eval")

from fedsdr.errors import UserError
from fedsdr.research.suites.catalogue import MEDICAL, SUITES, choose_suites
from fedsdr.research.suites.harness import load_tasks
from fedsdr.research.suites.tables import saved_suites, tables_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_suites(tmp_path_factory.mktemp("suites"))


def tasks_of(name, folder):
    return load_tasks(name, SUITES[name], folder, unsafe=True)


def prompt(task, number=0):
    return task.fewshot_context(task.eval_docs[number], num_fewshot=task.config.num_fewshot)


def test_mmlu_is_the_harness_task_of_each_subject_with_five_shots_of_dev(folder):
    tasks = tasks_of("mmlu", folder)
    assert tasks.keys() == {f"mmlu_{s}" for s in ("abstract_algebra", *MEDICAL)}
    task = tasks["mmlu_abstract_algebra"]
    shots = "".join(
        f"dev {i}+{i}?\nA. 0\nB. {2 * i}\nC. 9\nD. no, none\nAnswer: B\n\n" for i in range(5)
    )
    assert prompt(task, 3) == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        f"{shots}test 3+3?\nA. 0\nB. 6\nC. 9\nD. no, none\nAnswer:"
    )
    assert task.doc_to_target(task.eval_docs[3]) == "B"
    assert tasks_of("mmlu-med", folder).keys() == {f"mmlu_{subject}" for subject in MEDICAL}


def test_bbh_is_asked_directly_after_the_three_examples_of_the_harness(folder):
    task = tasks_of("bbh", folder)["bbh_fewshot_boolean_expressions"]
    assert len(task.eval_docs) == 7
    assert prompt(task) == (
        "Evaluate the result of a random Boolean expression.\n\n"
        "Q: not ( ( not not True ) ) is\nA: False\n\n"
        "Q: True and False and not True and True is\nA: False\n\n"
        "Q: not not ( not ( False ) ) is\nA: True\n\nQ: not 0\nA:"
    )


def test_crass_shuffles_its_options_by_one_generator_and_has_the_three_shots_of_its_paper(folder):
    task = tasks_of("crass", folder)["crass"]
    random.seed(0)  # as instruct-eval does
    for number in range(5):
        options = ["He sat.", "He ran.", "No."]
        random.shuffle(options)
        lines = "".join(f"\n{letter}. {o}" for letter, o in zip("ABC", options, strict=True))
        text = prompt(task, number)
        assert text.endswith(f"\n\nA man runs. What if he sat {number + 1}?{lines}\nAnswer:")
        doc = task.eval_docs[number]
        assert task.doc_to_target(doc) == "ABC"[options.index("He sat.")]
        assert task.doc_to_choice(doc) == ["A", "B", "C"]
    assert text.startswith("A feather falls from a skyscraper. What would have happened if a comp")
    assert text.count("\nAnswer: ") == 3
    assert "Answer: C\n\nA lightning" in text


def test_drop_has_shots_of_three_passages_which_are_not_asked_about(folder):
    task = tasks_of("drop", folder)["drop"]
    shots = "".join(f"{i} men. How many?\nAnswer: {i}\n\n" for i in range(3))
    assert prompt(task) == f"{shots}3 men. How many?\nAnswer:"
    assert [doc["passage"] for doc in task.eval_docs] == [f"{i} men." for i in range(3, 9)]


def test_the_other_prompts_are_those_of_the_harness(folder):
    gsm8k = tasks_of("gsm8k", folder)["gsm8k"]
    assert len(gsm8k.eval_docs) == 3
    text = prompt(gsm8k)
    assert text.startswith("Question: 0 and 0?\nAnswer: Add.\n#### 0\n\nQuestion: 1 and 1?")
    assert text.endswith("#### 8\n\nQuestion: 5 and 5?\nAnswer:")
    assert prompt(tasks_of("humaneval", folder)["humaneval"]) == "def add0(x):\n"
    fpb = tasks_of("fpb", folder)["fpb"]
    assert prompt(fpb).endswith("negative, neutral or positive?\nSales rose .\nAnswer:")
    assert fpb.doc_to_target(fpb.eval_docs[0]) == "positive"


def test_braces_in_a_question_are_text_and_no_template(tmp_path):
    folder = write_suites(tmp_path / "suites")
    row = {"text": "{{ 1 + 1 }} {% if %}", "label": "neutral"}
    (folder / "financial_phrasebank/test.jsonl").write_text(json.dumps(row) + "\n")
    assert "{{ 1 + 1 }} {% if %}" in prompt(tasks_of("fpb", folder)["fpb"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("mlmu", "unknown name 'mlmu'.*did you mean 'mmlu'"),
        (" , ", "names no suite"),
        ("mmlu,humaneval", "humaneval runs code.*--allow-code-execution"),
    ],
)
def test_a_wrong_list_of_suites_is_one_line(names, words):
    with pytest.raises(UserError, match=words):
        choose_suites(names, allow_code=False)


NEST = "[" * 100_000 + "]" * 100_000
BROKEN = [
    ("mmlu", "mmlu/data/test/anatomy_test.csv", "question,A,B\n", "C is None, not a text"),
    ("mmlu", "mmlu/data/test/anatomy_test.csv", "q,1,2,3,4,answer\n", "'answer' is none of A, B"),
    ("mmlu", "mmlu/data/dev/anatomy_dev.csv", "q,1,2,3,4,2\n" * 5, "'2' is none of A, B, C, D"),
    ("mmlu", "mmlu/data/dev/anatomy_dev.csv", "q,1,2,3,4,A\n", "fewer than 5 worked examples"),
    ("mmlu", "mmlu/data/test/sums_test.csv", "q,1,2,3,4,A\n", "no file dev/sums_dev.csv there"),
    ("bbh", "bbh/bbh/word_sorting.json", '{"rows": []}', "word_sorting.json:.*no 'examples'"),
    ("bbh", "bbh/bbh/word_sorting.json", NEST, "word_sorting.json:.*recursion"),
    ("bbh", "bbh/bbh/word_sorting.json", '{"examples": []}', "no question of bbh_fewshot_word_s"),
    ("bbh", "bbh/bbh/negation.json", '{"examples": [{"input": "1", "target": "2"}]}',
     "the harness has no task bbh_fewshot_negation"),
    ("crass", "crass/CRASS_FTM_main_data_set.csv", "a;b\n1;2\n", "no 'Premise'"),
    ("drop", "drop/drop_dev.jsonl", '{"passage": "p"}\n', "no 'question'"),
    ("drop", "drop/drop_dev.jsonl", NEST, "drop_dev.jsonl, line 1"),
    ("gsm8k", "gsm8k/test.jsonl", '{"question": \n', "line 1"),
    ("gsm8k", "gsm8k/test.jsonl", '{"question": "q", "answer": 5}', "answer is 5, not a text"),
    ("gsm8k", "gsm8k/test.jsonl", '{"question": "q", "answer": "5"}\n', "no question of gsm8k is"),
    ("fpb", "financial_phrasebank/test.jsonl", '{"text": "x", "label": "bad"}', "'bad' is none of"),
    ("fpb", "financial_phrasebank/test.jsonl", "[]\n", "must be an object"),
    ("drop", "drop/drop_dev.jsonl", '{"passage": "p", "question": "q"}', "layout is not that of"),
    ("humaneval", "humaneval/HumanEval.jsonl.gz", "not gzip", "HumanEval.jsonl.gz"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "words"), BROKEN)
def test_a_broken_or_other_file_is_one_line(name, file, content, words, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "suites")
    (copy / file).write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        tasks_of(name, copy)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


def test_a_compressed_file_that_is_cut_short_is_one_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "suites")
    path = copy / "humaneval/HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * 100_000)[:-20])
    with pytest.raises(UserError, match=r"HumanEval\.jsonl\.gz"):
        tasks_of("humaneval", copy)


@pytest.mark.parametrize("name", SUITES)
def test_missing_data_is_one_line(name, tmp_path):
    with pytest.raises(UserError, match=r"--suite-data: .*(no file|cannot be read)"):
        tasks_of(name, tmp_path)


def test_suites_that_the_harness_lacks_need_a_folder(tmp_path):
    for name in ("crass", "fpb", "humaneval"):
        with pytest.raises(UserError, match=f"{name} is read from a folder; give --suite-data"):
            tasks_of(name, None)
    with pytest.raises(UserError, match=r"none.*no file"):
        tasks_of("mmlu", tmp_path / "none")


def test_without_a_folder_the_hub_is_asked_and_its_silence_is_one_line(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    for name in ("mmlu", "drop", "gsm8k"):
        with pytest.raises(UserError, match=rf"{name} cannot be loaded .*reach the Hub.*--suite-d"):
            tasks_of(name, None)


def test_the_tables_never_have_global_and_client_models_in_one_table():
    def entry(mean, seconds=1.0):
        return {"metrics": {"acc": {"mean": mean, "stderr": 0.01}}, "seconds": seconds}

    suite = {"shots": 5, "cut_prompts": 3, "how": "so", "num_questions": 9,
             "models": {"base": entry(0.25), "global": entry(0.5)},
             "clients": {"bank": entry(0.75), "clinic": entry(1.0, 2.0)}}  # fmt: skip
    models, clients = tables_of({"mmlu": suite}).values()
    assert models == [
        ["suite", "shots", "questions", "metric", "base", "global", "seconds"],
        ["mmlu", "5", "9 (3 prompts cut)", "acc", "0.250 ± 0.010", "0.500 ± 0.010", "2"],
    ]
    assert clients == [
        ["suite", "shots", "questions", "metric", "bank", "clinic", "seconds"],
        ["mmlu", "5", "9 (3 prompts cut)", "acc", "0.750 ± 0.010", "1.000 ± 0.010", "3"],
    ]
    assert len(tables_of({"mmlu": suite | {"clients": {}}})) == 1


ENTRY = {"scores": {"acc": [1.0, 0.0]}}
SAVED = {"ids": ["a", "b"], "num_questions": 2, "shots": 0, "how": "so", "rounds": 3,
         "models": {"base": ENTRY}, "clients": {}}  # fmt: skip


def test_saved_results_are_read_back_with_what_else_is_there(tmp_path):
    assert saved_suites(tmp_path) == {}
    (tmp_path / "suites.json").write_text(json.dumps({"mmlu": SAVED}))
    assert saved_suites(tmp_path) == {"mmlu": SAVED}


@pytest.mark.parametrize(
    "content",
    [
        "[[",
        NEST,
        '{"mmlu": 3}',
        '{"mmlu": {"ids": []}}',
        json.dumps({"mmlu": SAVED | {"models": 3}}),
        json.dumps({"mmlu": SAVED | {"models": {"base": {"scores": {}}}}}),
        json.dumps({"mmlu": SAVED | {"ids": ["a"]}}),
        "\udcff".encode("utf-8", "surrogateescape"),
    ],
)
def test_a_broken_file_of_results_is_one_line(content, tmp_path):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "suites.json").write_bytes(content)
    with pytest.raises(UserError, match=r"suites\.json: broken") as caught:
        saved_suites(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
