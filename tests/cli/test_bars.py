import string

from fedsdr.cli.bars import client_bars


def test_a_bar_is_as_long_as_the_clients_share_of_the_largest_with_a_letter_a_category():
    counts = {"bank": {"sums": 30, "talk": 10}, "zoo": {"talk": 20}}
    assert client_bars(counts, width=8) == [
        "rows of each client; a full bar of 8 letters is 40 rows",
        "bank  aaaaaabb  40",
        "zoo   bbbb      20",
        "a sums 30; b talk 30",
    ]


def test_a_client_with_few_rows_has_a_letter_and_rows_without_category_are_named():
    lines = client_bars({"a": {"": 1000}, "b": {"": 1}}, width=10)
    assert lines[1:] == ["a  aaaaaaaaaa  1,000", "b  a           1", "a no category 1,001"]


def test_categories_beyond_the_letters_share_a_star():
    names = [f"{i:03d}" for i in range(70)]
    lines = client_bars({"one": dict.fromkeys(names, 1)}, width=70)
    letters = string.ascii_letters + string.digits
    assert lines[1] == f"one  {letters}{'*' * 8}  70"
    assert lines[2].endswith("; * 8 others 8")
