"""The held-out split: nothing of the test side, nor a copy of it, is on the training side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.data.split import prompt_groups, split
from fedsdr.errors import UserError
from fedsdr.types import Example, Turn

short = st.sampled_from(["", "a", " a", "b", "b\n", "c"])
turns = st.lists(st.tuples(short, short), max_size=2).map(
    lambda pairs: tuple(turn for q, a in pairs for turn in (Turn("user", q), Turn("assistant", a)))
)
examples = st.lists(
    st.builds(Example, st.uuids().map(str), short, short, short, history=turns),
    min_size=1,
    max_size=30,
)
fractions = st.floats(0, 0.99)


def rows(count, prompt="q{}"):
    return [Example(str(i), prompt.format(i), "", f"a{i}") for i in range(count)]


def prompt_of(example):
    history = tuple((t.role, t.content.strip()) for t in example.history)
    return history, example.instruction.strip(), example.input.strip()


@given(examples, fractions, st.integers(0, 2**40))
def test_both_sides_make_up_the_rows_in_order_and_share_no_prompt(given_rows, fraction, seed):
    try:
        train, test = split(given_rows, fraction, seed, client="k")
    except UserError:
        assert round(fraction * len(given_rows)) == len(given_rows)
        return
    place = {example.id: i for i, example in enumerate(given_rows)}
    order = [[place[e.id] for e in side] for side in (train, test)]
    assert order == [sorted(side) for side in order]
    assert sorted(order[0] + order[1]) == list(range(len(given_rows)))
    assert not {prompt_of(e) for e in train} & {prompt_of(e) for e in test}
    assert train
    sizes = [len(group) for group in prompt_groups(given_rows)]
    assert len(test) <= max(round(fraction * len(given_rows)), min(sizes))
    if fraction > 0 and len(sizes) > 1:
        assert test
    assert (train, test) == split(given_rows, fraction, seed, client="k")


@given(examples, fractions, st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**40))
def test_caps_keep_rows_of_each_side_and_a_larger_cap_those_of_a_smaller(
    given_rows, fraction, most, most_test, seed
):
    try:
        train, test = split(given_rows, fraction, seed)
    except UserError:
        return
    few, few_test = split(given_rows, fraction, seed, most, most_test)
    assert len(few) == (min(most, len(train)) if most else len(train))
    assert len(few_test) == (min(most_test, len(test)) if most_test else len(test))
    assert few == [e for e in train if e in few]
    assert few_test == [e for e in test if e in few_test]
    more, _ = split(given_rows, fraction, seed, most + 1, most_test)
    assert most == 0 or set(few) <= set(more)


def test_distinct_rows_are_split_in_exactly_the_asked_proportion():
    train, test = split(rows(200), 0.1, 0)
    assert (len(train), len(test)) == (180, 20)


def test_every_row_is_held_out_under_some_seed_about_equally_often():
    counts = [0] * 10
    for seed in range(500):
        for example in split(rows(10), 0.2, seed)[1]:
            counts[int(example.id)] += 1
    assert all(60 <= count <= 140 for count in counts)  # mean 100, standard deviation 9


def test_seed_and_client_name_each_change_the_split():
    splits = [split(rows(50), 0.2, s, client=c)[1] for s, c in ((0, "a"), (1, "a"), (0, "b"))]
    assert splits[0] != splits[1]
    assert splits[0] != splits[2]


def test_a_tiny_fraction_still_holds_out_one_row_and_zero_none():
    assert len(split(rows(5), 0.001, 0)[1]) == 1
    assert split(rows(5), 0.0, 0) == (rows(5), [])
    assert split(rows(1), 0.3, 0) == (rows(1), [])
    same = [Example(str(i), "q", "", "a") for i in range(4)]
    assert split(same, 0.5, 0) == (same, [])


def test_a_fraction_that_leaves_no_training_row_names_the_client_and_the_key():
    with pytest.raises(UserError, match=r"client 'bank': data\.test_fraction = 0\.9 of 3 rows"):
        split(rows(3), 0.9, 0, client="bank")
    with pytest.raises(UserError, match="client 'bank' has no rows"):
        split([], 0.1, 0, client="bank")


def test_the_same_prompt_with_another_answer_or_white_space_is_one_group():
    pair = [Example("1", "q ", "x", "a"), Example("2", "q", " x", "b"), Example("3", "q", "", "a")]
    assert prompt_groups(pair) == [[0, 1], [2]]


def test_a_conversation_stays_with_the_row_that_is_its_beginning_and_not_with_its_cousins():
    opening = (Turn("user", "hi"), Turn("assistant", "hello"))
    longer = (*opening, Turn("user", "more"), Turn("assistant", "yes"))
    whole = Example("0", "and?", "", "no", history=longer)
    second = Example("1", "more", "", "yes", history=opening)
    cousin = Example("2", "else", "", "ok", history=opening)
    first = Example("3", "hi", "", "hello")
    assert prompt_groups([whole, second, cousin]) == [[0, 1], [2]]
    assert prompt_groups([whole, second, cousin, first]) == [[0, 1, 2, 3]]
