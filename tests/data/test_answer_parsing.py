"""What an answer says, against answers worked by hand."""

import re
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.data.answer_parsing import (
    code_of,
    kind_of,
    kind_of_one,
    parse_call,
    parses,
    python_tree,
)
from fedsdr.data.number_parsing import final_number, is_number, numbers_in

anything = st.text() | st.text(alphabet="0123456789,./-$%()[]{}=`'\"\\# \nansweris:fx")


@settings(max_examples=300)
@given(anything)
def test_no_text_makes_them_raise(text):
    final_number(text)
    parse_call(text)
    parses(code_of(text))
    assert kind_of_one(text) in ("label", "number", "call", "code", "text")
    assert kind_of([text, text]) in ("label", "number", "call", "code", "text")


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000,
        "f(" + "[" * 5000 + "]" * 5000 + ")",
        "f(" + "-" * 5000 + "1)",
        "f(a" + ".b" * 5000 + ")",
        '{"name": "f", "arguments": ' + '{"a":' * 5000 + "1" + "}" * 5001,
        "f(" + "9" * 5000 + ")",
        "9" * 5000 + "/3",
        "f(x\x00)",
        "f('\\d')",
        "f({[1]: 2})",
    ],
)
def test_hostile_text_makes_them_raise_neither(text):
    for read in (final_number, parse_call, parses, kind_of_one):
        read(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Natalia sold 48/2 = 24 clips.\nThe answer is 72.", "72"),
        ("The answer is 1,234.5.", "1234.5"),
        ("so she paid $1,234.50", "1234.5"),
        ("#### -3", "-3"),
        ("It fell to -$3.", "-3"),
        ("It fell to $-3.", "-3"),
        ("10-5", "5"),
        ("about 5 %", "5"),
        ("12 30", "30"),
        ("rooms 12 30, the answer is 12", "12"),
        ("The answer is 48/2 = 24 clips.", "24"),
        ("The answer is 3/4.", "0.75"),
        ("The answer is $\\frac{3}{4}$.", "0.75"),
        ("The answer is **72** clips in 2 months.", "72"),
        ("Answer: 7\nThat took 3 steps.", "7"),
        ("The answer is right there.\nIn all she has 5 apples.", "5"),
        ("The answer is 6. No, the answer is 7.", "7"),
        (r"hence \boxed{42} and 2 more", "42"),
        ("H2O boils at 100", "100"),
        ("[1, 2,3]", "3"),
        (".5", "0.5"),
    ],
)
def test_the_final_number_is_the_one_that_the_answer_ends_at(text, number):
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 48 clips / 2 = 24 clips.", "24"),
        ("48 clips / 2 = 24 clips", "24"),
        ("The answer is (10 apples + 3 pears) x 2 = 26 fruits", "26"),
        ("The answer is 4 if x = 3", "4"),
        ("10{,}000", "10000"),
        (r"\boxed{10,\!000}", "10000"),
        (r"\$1{,}234.50", "1234.50"),
        (r"\frac34", "0.75"),
        (r"\dfrac{3}{4}", "0.75"),
        (r"\boxed{-\tfrac{3}{4}}", "-0.75"),
        ("3 1/2", "3.5"),
        (r"$3\frac{1}{2}$", "3.5"),
        ("-3 1/2", "-3.5"),
        ("3 7/2", "3.5"),  # no mixed number: 3, and then 7/2
        ("1.5e3", "1500"),
        ("2E-3", "0.002"),
        ("The answer is 1.5e3 metres.", "1500"),
        (r"1.5 \times 10^{3}", "1500"),
        ("1.5 x 10^-3", "0.0015"),
        ("6.02 \u00d7 10^23", "6.02E+23"),
        ("1 000", "1000"),
        ("1\u202f234\u202f567,89", "1234567.89"),
        (r"10\,000", "10000"),
        ("0 100", "100"),
        ("1.000,00", "1000"),
        ("1.234.567,8", "1234567.8"),
        ("1.000.000", "1000000"),
        ("1.000", "1"),
        ("1,5", "5"),
        ("\uff11\uff12\uff0e\uff15", "12.5"),
        ("\uff0d\uff15", "-5"),
        ("\u0664\u0662", "42"),
        ("50\\%", "50"),
    ],
)
def test_each_way_to_write_a_number_has_one_reading(text, number):
    assert final_number(text) == Decimal(number)


GSM8K = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")  # lm-evaluation-harness, flexible-extract


def read_by_gsm8k(text):
    last = [first or second for first, second in GSM8K.findall(text)][-1]
    return Decimal(re.sub(r"[$,]", "", last))


@given(
    st.decimals(-(10**6), 10**6, places=2) | st.integers(-(10**6), 10**6),
    st.sampled_from(["It is {}", "She paid ${} in all", "3 + 4 and {} km", "#### {}"]),
    st.booleans(),
)
def test_ordinary_numbers_are_read_as_the_scorer_of_gsm8k_reads_them(number, frame, grouped):
    text = frame.format(f"{number:,}" if grouped else f"{number}")
    assert final_number(text) == read_by_gsm8k(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-5", -5),
        ("It fell to $-5", -5),
        ("a loss (-5)", -5),
        ("x = -5", -5),
        ("The answer is -5", -5),
        ("[1, -5]", -5),
        ("She has:\n- 7 apples from Ann\n- 12 apples in total", 12),
        ("Answer - 42", 42),
        ("10 - 5", 5),
        ("12 - 7, which makes 5", 5),
        ("a profit of $1,200 - 15", 15),
        ("on 05/10/2024", 2024),
    ],
)
def test_a_dash_is_a_minus_where_the_scorer_of_gsm8k_reads_one(text, number):
    assert final_number(text) == read_by_gsm8k(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("\u22125", -5),
        ("it is \u20135", -5),
        ("3\u20135", 5),
        ("10-5", 5),
        ("10 -5", 5),
        ("(4 + 6) -5", 5),
        ("\u2212 12 apples", 12),
    ],
)
def test_a_minus_of_typography_counts_and_one_that_subtracts_does_not(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize("date", ["05/10/2024", "5/10/2024", "2024/10/5"])
def test_a_date_is_three_numbers_and_no_fraction(date):
    assert sorted(numbers_in(f"due on {date}.")) == [5, 10, 2024]
    assert not is_number(date)


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1 000", "1000"), (r"\$5", "5"), (r"50\%", "50"), ("x = 7", "7"), (r"\frac34", "3/4")],
)
def test_forms_that_the_scorer_of_math_takes_for_one_are_one_number(text, plain):
    scorer = pytest.importorskip("lm_eval.tasks.hendrycks_math.utils")
    assert scorer.strip_string(text) == scorer.strip_string(plain)
    assert final_number(text) == final_number(plain)


@pytest.mark.parametrize(
    "piece",
    [
        "#### ",
        "The answer is ",
        "a = ",
        "x=(",
        "1 ",
        "1/",
        "(",
        "  ",
        "```",
        "1 a / ",
        "=",
        "import ",
    ],
)
def test_long_texts_take_no_quadratic_time(piece):
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    for read in (final_number, parse_call, kind_of_one, lambda text: parses(code_of(text))):
        read(text)
        read(f"The answer is {text}")
        read(f"```\n{text}")
    assert time.process_time() - began < 10


@pytest.mark.parametrize("text", ["", "no digits", "twelve", "H2O"])
def test_a_text_without_a_number_has_no_final_number(text):
    assert final_number(text) is None


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["The answer is {}.", "#### {}", "so {} it is"])
)
def test_a_number_written_with_thousands_separators_is_read_back(number, frame):
    assert final_number(frame.format(f"{number:,}")) == number


def test_calls_are_equal_up_to_keyword_order_quotes_spacing_and_number_type():
    one = parse_call("geo.area(base=10, unit='cm', at=[1, 2])")
    assert one is not None
    assert one.name == "geo.area"
    assert one == parse_call('geo.area( unit="cm", at=(1.0, 2), base=10.0 )')
    assert one == parse_call(
        '{"name": "geo.area", "arguments": {"unit": "cm", "at": [1, 2], "base": 10}}'
    )
    assert one == parse_call(
        "```python\ngeo.area(base=10, unit='cm', at=[1, 2])\n```\nThis calls it."
    )
    assert one == parse_call(
        "The call is:\n`geo.area(base=10, unit='cm', at=[1, 2])`\nand no other."
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("f(1, 2)", "f(2, 1)"),
        ("f(a=1)", "f(a='1')"),
        ("f(a=1)", "f(a=True)"),
        ("f(a=None)", "f(a='None')"),
        ("f(a=int)", "f(a='int')"),
        ("f(a=1)", "g(a=1)"),
        ("f(a=1)", "f(1)"),
        ("f(a=1)", "f(a=1, b=2)"),
        ("f({'a': 1})", "f({'a': 2})"),
    ],
)
def test_calls_that_say_different_things_differ(one, other):
    assert parse_call(one) is not None
    assert parse_call(other) is not None
    assert parse_call(one) != parse_call(other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no call here",
        "f(a=<value>)",
        "f(a=1)\ng(a=1)",
        "f(a=1, a=2)",
        '{"name": "f"}',
        '<tool_call>{"name": "f", "arguments": {}}',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>f(1)</tool_call>',
        "10 (ten)",
        "f(1)(2)",
    ],
)
def test_what_is_not_one_call_is_none(text):
    assert parse_call(text) is None


def test_arguments_given_as_json_text_are_read_too():
    assert parse_call('{"name": "f", "arguments": "{\\"a\\": 1}"}') == parse_call("f(a=1)")


def test_calls_in_blocks_are_those_of_the_same_json_and_several_count_together():
    one, two = (f'{{"name": "{name}", "arguments": {{"a": 1, "b": [2]}}}}' for name in "fg")
    block = "<tool_call>\n{}\n</tool_call>".format
    assert parse_call(block(one)) == parse_call(f"<tool_call>{one}</tool_call>") == parse_call(one)
    assert parse_call(f"I look.\n{block(one)}") == parse_call("f(b=[2.0], a=1)")
    both = parse_call(f"{block(one)}\n{block(two)}")
    assert both == parse_call(f"{block(one)} {block(two)}")
    assert both not in (None, parse_call(one), parse_call(f"{block(two)}\n{block(one)}"))
    assert kind_of_one(block(one)) == kind_of_one(f"{block(one)}\n{block(two)}") == "call"


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{2,6}_", fullmatch=True),
        st.integers() | st.text(max_size=8) | st.booleans(),
        max_size=5,
    )
)
def test_a_printed_call_is_read_back_whatever_the_order_of_its_keywords(kwargs):
    def written(items):
        return "f(" + ", ".join(f"{k}={v!r}" for k, v in items) + ")"

    call = parse_call(written(kwargs.items()))
    assert call is not None
    assert len(call.kwargs) == len(kwargs)
    assert call == parse_call(written(reversed(kwargs.items())))


def test_the_first_code_block_is_the_code_closed_or_not():
    assert code_of("Here:\n```python\n  x = 1\ny = 2\n```\nand\n```\nz\n```") == "  x = 1\ny = 2"
    assert code_of("```\nx = 1\ny =") == "x = 1\ny ="
    assert code_of("`f(1)`") == "f(1)"
    assert code_of("  x = 1") == "  x = 1"


@pytest.mark.parametrize(
    "code", ["x = 1", "    for i in y:\n        return i", "[x for x in y]", "f(1)"]
)
def test_python_code_and_the_body_of_a_function_parse(code):
    assert parses(code)


@pytest.mark.parametrize(
    "text",
    ["", "positive", "Answer: yes", "well-known", "'a quote'", "def f(:", "let x = 1;", "pass"],
)
def test_words_and_other_languages_do_not_parse(text):
    assert not parses(text)
    assert python_tree(text) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("positive", "label"),
        ("Direction Up", "label"),
        ("She sold 24 more.\nThe answer is 72.", "number"),
        ("She has 3 + 4 = 7.\n#### 7", "number"),
        ("$1,200", "number"),
        ("area.of(base=10)", "call"),
        ('{"name": "area", "arguments": {}}', "call"),
        ("def f(x):\n    return x", "code"),
        ("    return [x for x in y]", "code"),
        ("SELECT name FROM people WHERE age > 3;", "code"),
        ("for (let i = 0; i < 3; i++) {\n  go(i);\n}", "code"),
        ("Use this:\n```js\nlet x\n```", "code"),
        ("The short answer is no. I had 3 of them in 2019.", "text"),
        ("if you can, take the bus: it is cheaper than a car (by far)", "text"),
        ("A tree;\nanother tree;\nand a bush;", "text"),
        ("", "text"),
    ],
)
def test_the_kind_of_one_answer_is_seen_in_its_text(text, kind):
    assert kind_of_one(text) == kind


def test_a_clients_kind_is_that_of_more_than_half_of_its_answers():
    talk = "I would rather walk there on foot today"
    assert kind_of(["7", "#### 3", talk]) == "number"
    assert kind_of(["7", talk, "f(1)", "x = 1"]) == "text"
    assert kind_of([]) == "text"


def test_short_answers_are_labels_only_where_they_repeat():
    assert kind_of(["yes", "no", "Yes", "no"]) == "label"
    assert kind_of(["Hello", "I am fine", "Of course", "Not today"]) == "text"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 5 (a = 2, b = 3).", 5),
        ("The answer is 7, since x = 3", 7),
        ("The answer is 48/2 = 24.", 24),
        ("The answer is x = 5*3 = 15", 15),
    ],
)
def test_an_equals_sign_leads_to_the_result_only_after_a_sum(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "Import of the drug: allowed (see note)",
        "from here on: rest and fluids.",
        "return to clinic in 2 weeks; call if worse",
    ],
)
def test_prose_that_begins_like_code_is_text(text):
    assert kind_of_one(text) == "text"
