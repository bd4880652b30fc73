"""A row becomes an Example by what its columns are, or one line says why it cannot."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.data.formats import example_from_row, row_from_example, unread_columns
from fedsdr.errors import UserError
from fedsdr.types import Example, Turn

WHERE = "a.jsonl, line 7"
text = st.text(st.characters(exclude_categories=["Cs"]))
filled = text.filter(str.strip)


def parsed(row):
    return example_from_row(row, WHERE)


def problem(row):
    with pytest.raises(UserError) as caught:
        parsed(row)
    message = str(caught.value)
    assert message.startswith(WHERE)
    assert "\n" not in message
    return message


@given(filled, text, filled)
def test_every_single_turn_layout_gives_the_same_example_with_its_text_untouched(c, x, y):
    alpaca = parsed({"instruction": c, "input": x, "output": y})
    assert (alpaca.instruction, alpaca.input, alpaca.response) == (c, x, y)
    assert alpaca == parsed({"instruction": c, "context": x, "response": y})
    plain = parsed({"prompt": c, "completion": y})
    assert plain == parsed({"instruction": c, "output": y})
    assert (plain.instruction, plain.input, plain.response, plain.history) == (c, "", y, ())


@given(st.lists(st.tuples(filled, filled), min_size=1, max_size=4), filled)
def test_both_conversation_layouts_put_the_last_exchange_in_front_and_the_rest_in_history(
    exchanges, system
):
    roles = [("system", system)]
    for question, answer in exchanges:
        roles += [("user", question), ("assistant", answer)]
    sharegpt = {"system": "system", "user": "human", "assistant": "gpt"}
    openai = parsed({"messages": [{"role": r, "content": c} for r, c in roles]})
    assert openai == parsed(
        {"conversations": [{"from": sharegpt[r], "value": c} for r, c in roles]}
    )
    assert [(t.role, t.content) for t in openai.history] == roles[:-2]
    assert (openai.instruction, openai.response) == exchanges[-1]
    assert openai.input == ""


def test_the_keys_of_the_turns_decide_not_the_name_of_the_column():
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert parsed({"messages": turns}) == parsed({"conversations": turns})


def test_a_conversation_written_as_json_text_is_read_as_csv_files_need_it():
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert parsed({"messages": json.dumps(turns)}) == parsed({"messages": turns})


def turns_of(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


def test_turns_after_the_last_assistant_and_before_the_first_user_are_dropped():
    example = parsed(
        turns_of(("assistant", "Welcome"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    )
    assert (example.history, example.instruction, example.response) == ((), "a", "b")


def test_tool_results_are_user_turns_and_function_calls_assistant_turns():
    example = parsed(
        turns_of(
            ("system", "s"), ("user", "q"), ("function_call", "f(1)"), ("tool", "2"),
            ("assistant", "It is 2"),
        )
    )  # fmt: skip
    assert example.history == (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "f(1)"))
    assert (example.instruction, example.response) == ("2", "It is 2")


def test_neighbours_of_one_role_are_joined_and_later_system_turns_join_the_user():
    example = parsed(
        turns_of(("user", "a"), ("system", "b"), ("assistant", "c"), ("assistant", "d"))
    )
    assert (example.history, example.instruction, example.response) == ((), "a\n\nb", "c\n\nd")


def test_null_and_nan_columns_are_empty():
    example = parsed(
        {"instruction": "a", "input": None, "category": float("nan"), "id": None, "output": "b"}
    )
    assert (example.input, example.category) == ("", "")
    assert len(example.id) == 16


def test_a_union_of_layouts_is_read_by_the_columns_that_are_not_null():
    example = parsed({"messages": None, "instruction": "a", "output": "b"})
    assert (example.instruction, example.response) == ("a", "b")


def test_an_integer_of_hundreds_of_digits_is_an_answer():
    assert parsed({"prompt": "10**400?", "completion": 10**400}).response == "1" + "0" * 400


def test_id_category_and_numbers_are_kept_as_text():
    example = parsed({"id": 12, "category": " qa ", "prompt": "one or two?", "completion": 1})
    assert (example.id, example.category, example.response) == ("12", "qa", "1")


def test_the_id_of_a_row_without_one_is_a_hash_of_its_content_alone():
    row = {"instruction": "é", "output": "b"}
    # printf '[[], "\\u00e9", "", "b"]' | sha256sum
    assert parsed(row).id == "bdd1c08bd87ae768"
    assert parsed(row).id == parsed({**row, "category": "x", "url": "y"}).id
    assert parsed(row).id != parsed({**row, "output": "c"}).id


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "a", "input": "b"}, "row without a response"),
        ({"instruction": "a", "output": None}, "row without a response"),
        ({"instruction": "a", "output": " \n"}, "'output' is blank"),
        ({"instruction": " ", "output": "a"}, "'instruction' is blank"),
        ({"instruction": "a", "output": ["b"]}, "'output' must be text, not list"),
        ({"instruction": "a", "output": True}, "'output' must be text, not bool"),
        ({"instruction": "a", "output": "\ud83d"}, "surrogate"),
        ({"query": "a", "reply": "b"}, "columns query, reply fit no format"),
        ({"a\nb": "c"}, "columns a b fit no format"),
        (turns_of(("a\nb", "c")), "unknown role 'a b'"),
        ({}, "columns none fit no format"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": "Hi"}, "not JSON"),
        ({"messages": '{"role": "user"}'}, "must be a list of turns, not dict"),
        ({"messages": 3}, "must be a list of turns, not int"),
        ({"messages": ["Hi"]}, "turn 1: expected an object"),
        (turns_of(("user", "a")), "no assistant turn"),
        (turns_of(("assistant", "a")), "no assistant turn that answers a user turn"),
        (turns_of(("user", "a"), ("assistent", "b")), "did you mean 'assistant'?"),
        (turns_of(("user", "a"), ("assistant", None)), "turn 2 has no text"),
        (turns_of(("user", "a"), ("assistant", "b"), ("user", [])), "'content' must be text"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_in_one_line_that_says_why(row, said):
    assert said in problem(row)


def test_an_unknown_format_lists_the_columns_found_and_the_formats_known():
    message = problem({"query": "a", "reply": "b"})
    for part in ("query, reply", "messages", "instruction, output", "data.columns"):
        assert part in message


turn_keys = st.sampled_from(["role", "content", "from", "value", "x"])
words = st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool", " "])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(turn_keys, inner, max_size=3),
    max_leaves=8,
)
columns = st.sampled_from(
    ["instruction", "input", "output", "prompt", "completion", "messages", "id", "category", "x",
     "system", "history", "tools", "chosen", "conversations"]
)  # fmt: skip


@given(st.dictionaries(columns, values))
def test_any_row_gives_an_example_with_a_prompt_and_a_response_or_a_user_error(row):
    try:
        example = parsed(row)
    except UserError:
        return
    assert isinstance(example, Example)
    assert example.id
    assert example.response.strip()
    assert (example.instruction + example.input).strip()
    assert parsed(row_from_example(example)) == example
    assert unread_columns(row) <= {
        *row,
        *(
            f"{name}[].{key}"
            for key in ["role", "content", "from", "value", "x"]
            for name in ["messages", "prompt", "completion", "chosen", "conversations", "output"]
        ),
    }


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Add.", "input": "1 2", "output": " 3\n", "category": "sums"},
        {"prompt": "Who?", "completion": "Ada."},
        {
            "instruction": "Add.",
            "input": "1",
            "output": "2",
            "system": "s",
            "history": [["a", "b"]],
        },
        {
            "id": "talk",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "One?"},
                {"role": "assistant", "content": "1"},
                {"role": "user", "content": "Two?"},
                {"role": "assistant", "content": "2"},
            ],
        },
    ],
)
def test_a_row_that_is_written_out_is_read_as_the_same_example(row):
    example = parsed(row)
    assert parsed(json.loads(json.dumps(row_from_example(example)))) == example


def talk(*extra, **columns):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    return {"messages": [*turns, *extra], **columns}


def test_a_system_column_is_the_first_turn_in_every_format():
    system = Turn("system", "You answer as the desk of the pool.")
    rows = [
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        talk(),
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ]
    for row in rows:
        example = parsed({**row, "system": system.content})
        assert example.history == (system,)
        assert parsed({**row, "system": None}) == parsed({**row, "system": " "}) == parsed(row)
    both = {"messages": [{"role": "system", "content": "s"}, *talk()["messages"]], "system": "t"}
    assert "'system' and a system turn" in problem(both)


def test_a_history_column_is_read_as_the_earlier_turns():
    pairs = [["When?", "At nine."], ["And on Sunday?", "At ten."]]
    row = {"instruction": "How much?", "input": "", "output": "Four.", "system": "s"}
    example = parsed({**row, "history": pairs})
    said = [("system", "s"), ("user", "When?"), ("assistant", "At nine."),
            ("user", "And on Sunday?"), ("assistant", "At ten.")]  # fmt: skip
    assert [(t.role, t.content) for t in example.history] == said
    assert parsed({**row, "history": json.dumps(pairs)}) == example
    assert parsed({**row, "history": []}).history == (Turn("system", "s"),)
    turns = [{"role": role, "content": content} for role, content in said]
    last = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "Four."}]
    assert parsed({"messages": [*turns, *last]}).history == example.history


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ("ancient Rome", "'history' is text but not JSON"),
        ({"a": 1}, "'history' must be a list of [user, assistant] pairs, not dict"),
        ([["a", "b"], ["c"]], "'history' entry 2: expected a [user, assistant] pair"),
        ([["a", None]], "'assistant' must be text"),
        ([["a", " "]], "entry 1: a turn without text"),
    ],
)
def test_a_history_that_is_something_else_is_refused(history, said):
    assert said in problem({"instruction": "q", "output": "a", "history": history})


def test_columns_with_content_that_are_not_read_are_named_with_the_keys_of_turns():
    row = talk(system="s", tools='[{"name": "f"}]', url="", score=0.5, extra=None, tags=[])
    assert unread_columns(row) == {"score"}
    turns = [
        {"role": "user", "content": "q", "name": "Ann"},
        {"role": "assistant", "content": "a", "reasoning_content": "r", "weight": 0, "x": None},
    ]
    assert unread_columns({"messages": turns, "prompt": "q"}) == {
        "prompt", "messages[].name", "messages[].reasoning_content", "messages[].weight",
    }  # fmt: skip
    pair = {"instruction": "q", "input": "x", "context": "y", "output": "a", "history": []}
    assert unread_columns(pair) == {"context"}
    assert unread_columns({**pair, "input": ""}) == set()


@pytest.mark.parametrize("content", ["", " \n", None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_turn_without_text_is_refused_and_never_joined_to_its_neighbour(place, content):
    turns = [("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")]
    turns[place] = (turns[place][0], content)
    assert f"'messages' turn {place + 1} has no text" in problem(turns_of(*turns))
    # What is dropped anyway may be empty.
    kept = ("assistant", content), ("user", "a"), ("assistant", "c"), ("user", content)
    assert parsed(turns_of(*kept)).response == "c"


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a"},
        {"prompt": [{"role": "user", "content": "q"}],
         "completion": [{"role": "assistant", "content": "a"}]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "user", "content": "q"}],
         "chosen": [{"role": "assistant", "content": "a"}]},
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}]},
        {"prompt": "q", "chosen": talk()["messages"], "rejected": talk()["messages"]},
        {"chosen": talk()["messages"], "rejected": talk()["messages"]},
        {"conversations": [{"from": "human", "value": "q"}],
         "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
    ],
)  # fmt: skip
def test_each_layout_of_trl_and_llama_factory_gives_the_same_example(row):
    assert parsed(row) == parsed({"instruction": "q", "output": "a"})
    assert unread_columns(row) == {"rejected"} & row.keys()


def test_turns_of_a_prompt_come_before_those_of_the_completion_and_places_are_named():
    row = {"prompt": talk()["messages"] + [{"role": "user", "content": "r"}],
           "completion": [{"role": "assistant", "content": "b"}], "system": "s"}  # fmt: skip
    assert parsed(row).history == (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"))
    row["completion"][0]["content"] = ""
    assert "'completion' turn 1 has no text" in problem(row)


def test_columns_have_the_names_that_the_configuration_gives_them():
    row = {"query": "q", "reply": "a", "rules": "s", "kind": "sums", "past": [["b", "c"]], "n": 1}
    columns = {"prompt": "query", "response": "reply", "system": "rules", "category": "kind",
               "history": "past"}  # fmt: skip
    pairs = {"system": "s", "category": "sums", "history": [["b", "c"]]}
    assert example_from_row(row, WHERE, columns) == parsed(
        {"instruction": "q", "output": "a", **pairs}
    )
    assert unread_columns(row, columns) == {"n"}
    said = {"dialogue": talk()["messages"]}
    assert example_from_row(said, WHERE, {"messages": "dialogue"}) == parsed(talk())


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": "query", "response": "replies"}, "'replies' is missing or null"),
        ({"prompt": "frage", "response": "antwort"}, "fit no format (known: frage, antwort"),
        ({"prompt": "query"}, "data.columns: has prompt; name prompt and response"),
        ({"prompt": "query", "response": "reply", "category": "n"}, "'n' must be text, not list"),
    ],
)
def test_names_of_columns_that_do_not_fit_are_refused_in_one_line(columns, said):
    row = {"query": "q", "n": [1], "reply": "a"}
    with pytest.raises(UserError) as caught:
        example_from_row(row, WHERE, columns)
    assert said in str(caught.value)


def test_text_parts_of_a_content_are_read_and_others_refused():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]
    assert parsed({"messages": turns}).instruction == "What is this?"
    parts.append({"type": "image_url", "image_url": {"url": "cat.png"}})
    assert "a part that is not text" in problem({"messages": turns})


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_no_answers(value):
    assert "not a finite number" in problem({"prompt": "q", "completion": value})


def test_a_conversation_of_thousands_of_turns_of_one_role_is_joined_in_linear_time():
    turns = [("user", "q" * 100)] * 50_000 + [("assistant", "a")]
    assert len(parsed(turns_of(*turns)).instruction) == 50_000 * 102 - 2
