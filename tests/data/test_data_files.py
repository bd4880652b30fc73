"""Files become rows with their place, or one line names the file, the line and the fix."""

import csv
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.data.readers import place, read_rows
from fedsdr.errors import UserError

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problem(path):
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


@given(st.lists(st.dictionaries(text, json_values, max_size=4), min_size=1, max_size=5))
@settings(max_examples=50)
def test_what_json_writes_is_read_back_from_all_three_json_shapes(folder, rows):
    numbered = list(enumerate(rows, 1))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    assert list(read_rows(written(folder, "a.jsonl", lines))) == numbered
    assert list(read_rows(written(folder, "a.json", json.dumps(rows, indent=1)))) == numbered
    assert list(read_rows(written(folder, "b.json", json.dumps({"data": rows})))) == numbered


@given(st.lists(st.tuples(text, text), min_size=1, max_size=5))
@settings(max_examples=50)
def test_what_csv_writes_is_read_back_but_for_empty_rows(folder, rows):
    rows = [("a", "b"), *rows]
    path = folder / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "completion"), *rows])
    kept = [row for row in rows if any(cell.strip() for cell in row)]
    assert [tuple(row.values()) for _, row in read_rows(path)] == kept


@given(st.sampled_from([".jsonl", ".json", ".csv"]), st.binary() | st.text().map(str.encode))
def test_any_bytes_give_rows_or_a_user_error_that_names_the_file(folder, ending, content):
    path = written(folder, f"any{ending}", content)
    try:
        said = [row for _, row in read_rows(path)]
    except UserError as error:
        said = str(error)
    if isinstance(said, str):
        assert said.startswith(str(path))
        assert "\n" not in said
    else:
        assert all(isinstance(row, dict) for row in said)


def test_parquet_rows_are_read_with_their_lists_and_nulls(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the optional extra 'parquet' is not installed")
    import pyarrow.parquet as pq

    rows = [
        {"messages": [{"role": "user", "content": "é"}], "category": None},
        {"messages": [], "category": "b"},
    ]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert list(read_rows(path)) == [(1, rows[0]), (2, rows[1])]
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in problem(path)
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    assert "no rows" in problem(path)


def test_narrow_floats_of_parquet_are_the_decimals_that_were_written(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the optional extra 'parquet' is not installed")
    import pyarrow.parquet as pq

    numbers = [3.14, 0.1, 1e20, -2.5, 100.0, None]
    turns = pa.struct({"role": pa.string(), "content": pa.float32()})
    table = pa.table(
        {
            "single": pa.array(numbers, pa.float32()),
            "double": pa.array(numbers, pa.float64()),
            "half": pa.array([3.14, 0.1, 1024.0, -2.5, 100.0, None], pa.float16()),
            "turns": pa.array([[{"role": "user", "content": n}] for n in numbers], pa.list_(turns)),
            "pairs": pa.array([[n, n] for n in numbers], pa.list_(pa.float32(), 2)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    rows = [row for _, row in read_rows(tmp_path / "a.parquet")]
    assert [row["single"] for row in rows] == [row["double"] for row in rows] == numbers
    assert [row["half"] for row in rows] == [3.14, 0.1, 1024.0, -2.5, 100.0, None]
    assert [row["turns"][0]["content"] for row in rows] == numbers
    assert [row["pairs"] for row in rows] == [[n, n] for n in numbers]


def test_parquet_columns_that_python_cannot_hold_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the optional extra 'parquet' is not installed")
    import pyarrow.parquet as pq

    columns = [
        pa.array([2**60], pa.timestamp("us")),
        pa.array([1], pa.timestamp("us", "Nowhere/Zone")),
        pa.array([2**62], pa.duration("s")),
        pa.array([2**31 - 1], pa.date32()),
        pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers()),
    ]
    for column in columns:
        pq.write_table(pa.table({"prompt": ["a"], "asked": column}), tmp_path / "a.parquet")
        assert ": column 'asked' cannot be read (" in problem(tmp_path / "a.parquet")


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(tmp_path, ending):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    assert "run: git lfs pull" in problem(written(tmp_path, f"a{ending}", pointer))


@pytest.mark.parametrize("number", ["3.10", "1.50e3", "2.0", "3.14159265358979323846"])
def test_a_number_of_a_json_file_is_written_as_it_stands_there(tmp_path, number):
    ((_, row),) = read_rows(written(tmp_path, "a.jsonl", f'{{"a": {number}}}'))
    assert str(row["a"]) == number
    assert row["a"] == float(number)


def test_an_object_with_two_values_for_one_key_is_refused(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n')
    assert problem(path) == (
        ", line 2: JSON that cannot be read (an object has two values for one key)"
    )


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'fedsdr[parquet]'" in problem(written(tmp_path, "a.parquet", b"PAR1"))


def test_broken_json_is_reported_on_exactly_its_line(tmp_path):
    lines = ["{}"] * 48_300
    for broken in ('{"prompt": "a", "completion": ', "{}}"):
        lines[48_212] = broken
        path = written(tmp_path, "a.jsonl", "\r\n".join(lines))
        assert problem(path).startswith(", line 48213: broken JSON (")


def test_broken_json_of_many_lines_is_reported_on_its_line_too(tmp_path):
    path = written(tmp_path, "a.json", '[\n{"a": 1},\n{"a": }\n]')
    assert problem(path).startswith(", line 3: broken JSON")


def test_rows_on_lines_in_a_json_file_are_told_to_be_called_jsonl(tmp_path):
    assert ".jsonl" in problem(written(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n'))


@pytest.mark.parametrize("row", ["[1]", '"a"', "null", "3"])
def test_a_row_that_is_not_an_object_is_reported_on_its_line(tmp_path, row):
    assert problem(written(tmp_path, "a.jsonl", f'{{"a": 1}}\n\n{row}\n')).startswith(
        ", line 3: a row must be an object"
    )
    assert problem(written(tmp_path, "a.json", f'[{{"a": 1}}, {row}]')).startswith(
        ", row 2: a row must be an object"
    )


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_a_line_that_is_not_utf8_is_named_and_a_byte_order_mark_is_accepted(tmp_path, ending):
    content = {
        ".jsonl": '{"a": "x"}\n{"a": "é"}\n',
        ".json": '[{"a": "x"},\n{"a": "é"}]',
        ".csv": "a\né\n",
    }[ending]
    plain = list(read_rows(written(tmp_path, f"a{ending}", content)))
    marked = written(tmp_path, f"b{ending}", b"\xef\xbb\xbf" + content.encode())
    assert list(read_rows(marked)) == plain
    latin = written(tmp_path, f"c{ending}", content.encode("latin-1"))
    assert problem(latin).startswith(", line 2: not UTF-8")
    assert "line 1: not UTF-8" in problem(written(tmp_path, f"d{ending}", content.encode("utf-16")))


def test_the_line_separators_of_unicode_do_not_end_a_line(tmp_path):
    row = {"prompt": "a\u2028b\u0085c"}
    path = written(tmp_path, "a.jsonl", json.dumps(row, ensure_ascii=False))
    assert list(read_rows(path)) == [(1, row)]


def test_a_csv_row_is_numbered_by_the_line_on_which_it_begins(tmp_path):
    path = written(tmp_path, "a.csv", 'a, b\r\n"1\r\n2",3\r\n\r\n4,5\r\n')
    rows = [(2, {"a": "1\r\n2", "b": "3"}), (5, {"a": "4", "b": "5"})]
    assert list(read_rows(path)) == rows


def test_a_csv_field_of_a_million_characters_is_read(tmp_path):
    path = written(tmp_path, "a.csv", f"a,b\n{'x' * 1_000_000},y\n")
    assert [len(row["a"]) for _, row in read_rows(path)] == [1_000_000]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('a,b\n1,2\n"3,4\n5,6\n', ", line 3: broken CSV"),
        ("a,b\n1,2\n3\n", ", line 3: 1 fields where the header has 2"),
        ("a,a\n1,2\n", ", line 1: two columns have one name"),
    ],
)
def test_broken_csv_is_reported_on_its_line(tmp_path, content, said):
    assert problem(written(tmp_path, "a.csv", content)).startswith(said)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", ""), ("a.json", "[]"), ("a.csv", "a,b\n")],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    assert "no rows" in problem(written(tmp_path, name, content))


@pytest.mark.parametrize("content", ['{"rows": []}', '{"data": {}}', "3"])
def test_json_that_is_no_list_of_rows_is_refused(tmp_path, content):
    assert "expected a list of rows" in problem(written(tmp_path, "a.json", content))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_json_that_python_cannot_hold_is_refused(tmp_path, content):
    assert ", line 1:" in problem(written(tmp_path, "a.jsonl", content))


def test_missing_files_folders_and_unknown_endings_are_refused(tmp_path):
    assert "No such file" in problem(tmp_path / "none.jsonl")
    assert "No such file" in problem(tmp_path / "none.csv")
    (tmp_path / "folder.jsonl").mkdir()
    assert "directory" in problem(tmp_path / "folder.jsonl")
    assert "unknown ending '.xlsx'" in problem(written(tmp_path, "a.xlsx", "a"))


def test_places_count_lines_where_a_row_is_a_line_and_rows_elsewhere(tmp_path):
    assert place(tmp_path / "a.JSONL", 7).endswith("a.JSONL, line 7")
    assert place(tmp_path / "a.parquet", 7).endswith("a.parquet, row 7")


@pytest.mark.parametrize("sign", [";", "\t"])
def test_a_table_with_the_signs_that_excel_uses_reads_as_one_with_commas(tmp_path, sign):
    text = f'instruction{sign}output\r\n"a, b; c"{sign}d\r\n{sign}\r\ne{sign}f\r\n'
    rows = list(read_rows(written(tmp_path, "a.csv", text.encode())))
    assert [row for _, row in rows] == [
        {"instruction": "a, b; c", "output": "d"},
        {"instruction": "e", "output": "f"},
    ]
