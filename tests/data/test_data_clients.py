"""What `data.clients` and `data.source` mean, and what is said when they mean nothing."""

import json
import os
import sys
import tracemalloc
from collections import Counter
from types import SimpleNamespace

import pytest

from fedsdr.config import DataConfig
from fedsdr.data import clients as loading
from fedsdr.errors import UserError
from fedsdr.types import Example


def load_clients(**settings):
    return loading.load_clients(DataConfig(**settings))


def load_one_client(path, name, **settings):
    return loading.load_one_client(DataConfig(**settings), path, name)


def write(path, count=10, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"{path.stem} {i}", "output": f"a{i}", **columns} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("bank", "clinic", "shop"):
        write(tmp_path / "clients" / f"{name}.jsonl")
    return tmp_path / "clients"


def names(clients):
    return [client.client_id for client in clients]


def problem(**settings):
    with pytest.raises(UserError) as caught:
        load_clients(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_gives_one_client_a_file_in_order_of_name_and_other_files_are_ignored(folder):
    (folder / "README.md").write_text("about")
    (folder / "notes.txt").write_text("about")
    (folder / ".hidden.jsonl").write_text("broken")
    (folder / "more").mkdir()
    (folder / "atm.csv").write_text("prompt,completion\na,b\nc,d\n")
    clients = load_clients(clients=str(folder), test_fraction=0.2)
    assert names(clients) == ["atm", "bank", "clinic", "shop"]
    assert [(len(c.raw), len(c.test)) for c in clients] == [(1, 1), (8, 2), (8, 2), (8, 2)]
    assert all(c.rewritten == () for c in clients)
    assert all(e.instruction.startswith("bank") for e in clients[1].raw + clients[1].test)


def test_a_list_gives_one_client_an_entry(folder, tmp_path):
    files = [write(tmp_path / "x" / "zoo.jsonl"), str(folder / "bank.jsonl")]
    assert names(load_clients(clients=files)) == ["bank", "zoo"]


def test_include_keeps_the_named_clients_and_reads_no_other(folder):
    (folder / "shop.jsonl").write_text("broken")
    assert names(load_clients(clients=str(folder), include=["clinic", "bank"])) == [
        "bank",
        "clinic",
    ]
    message = problem(clients=str(folder), include=["clinik"])
    assert "clients: bank, clinic, shop" in message
    assert "did you mean 'clinic'?" in message


def test_a_site_alone_loads_what_it_would_hold_among_the_others(folder, tmp_path):
    settings = {"test_fraction": 0.3, "max_examples": 4, "max_test_examples": 2, "seed": 5}
    clients = {c.client_id: c for c in load_clients(clients=str(folder), **settings)}
    elsewhere = tmp_path / "elsewhere" / "data.jsonl"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((folder / "clinic.jsonl").read_bytes())
    assert load_one_client(str(elsewhere), "clinic", **settings) == clients["clinic"]
    assert load_one_client(str(folder), "clinic", **settings) == clients["clinic"]
    assert load_one_client(str(elsewhere), "bank", **settings).test != clients["clinic"].test
    with pytest.raises(UserError, match=r"no client 'clinics'.*did you mean 'clinic'"):
        load_one_client(str(folder), "clinics", **settings)


def test_repeated_ids_of_a_client_are_numbered_past_the_names_in_use(tmp_path):
    ids = ["a", "a", "a-2", "a", "b"]
    path = tmp_path / "k.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "prompt": f"q{n}", "completion": "y"}) + "\n"
                for n, i in enumerate(ids))
    )  # fmt: skip
    (client,) = load_clients(clients=str(path), test_fraction=0)
    assert [e.id for e in client.raw] == ["a", "a-3", "a-2", "a-4", "b"]


def test_a_source_is_dealt_to_numbered_clients_that_hold_every_row_once(tmp_path):
    source = write(tmp_path / "all.jsonl", 50)
    clients = load_clients(source=source, partition="iid", num_clients=4, test_fraction=0.2)
    assert names(clients) == ["client-00", "client-01", "client-02", "client-03"]
    held = [e.instruction for c in clients for e in c.raw + c.test]
    assert sorted(held) == sorted(f"all {i}" for i in range(50))
    assert all(c.test for c in clients)
    few = load_clients(
        source=source, partition="iid", num_clients=4, include=["client-02"], test_fraction=0.2
    )
    assert few == clients[2:3]


def test_more_than_a_hundred_clients_sort_by_number(tmp_path):
    source = write(tmp_path / "all.jsonl", 101)
    clients = load_clients(source=source, partition="iid", num_clients=101, test_fraction=0)
    assert names(clients)[:2] == ["client-000", "client-001"]
    assert names(clients)[-1] == "client-100"


def test_several_sources_lend_their_names_as_categories_to_rows_without_one(tmp_path):
    sources = [
        write(tmp_path / "law.jsonl", 6),
        write(tmp_path / "art.jsonl", 6),
        write(tmp_path / "mixed.jsonl", 6, category="own"),
    ]
    clients = load_clients(source=sources, partition="category", num_clients=3, test_fraction=0)
    assert [Counter(e.category for e in c.raw) for c in clients] == [
        {"art": 6},
        {"law": 6},
        {"own": 6},
    ]
    assert "no 'category'" in problem(source=sources[0], partition="category", num_clients=2)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "quantity"])
def test_no_clients_test_prompt_is_another_clients_training_prompt(tmp_path, partition):
    path = tmp_path / "all.jsonl"
    rows = [
        {"prompt": f"q{i % 40}", "completion": f"a{i % 80}", "category": "xyz"[i % 3]}
        for i in range(160)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    clients = load_clients(
        source=str(path), partition=partition, num_clients=5, test_fraction=0.3, alpha=1.0
    )
    train = {e.instruction for c in clients for e in c.raw}
    test = {e.instruction for c in clients for e in c.test}
    assert test
    assert not train & test
    assert sum(len(c.raw) + len(c.test) for c in clients) == 160


def test_the_same_settings_load_the_same_and_the_seed_matters(folder):
    settings = {"source": str(folder), "num_clients": 3, "alpha": 1.0}
    assert load_clients(**settings) == load_clients(**settings)
    assert load_clients(**settings, seed=1) != load_clients(**settings)


def test_the_embedded_set_gives_one_client_a_domain(monkeypatch):
    def embedded_rows(name, seed):
        assert name == "five-domains"
        return {
            name: [Example(f"{name}-{seed}-{i}", f"{name} {i}", "", "a") for i in range(4)]
            for name in ("talk", "code")
        }

    fake = SimpleNamespace(embedded_rows=embedded_rows, EMBEDDED_SETS={"five-domains": {}})
    monkeypatch.setitem(sys.modules, "fedsdr.data.embedded", fake)
    clients = load_clients(clients="embedded:five-domains", seed=3)
    assert names(clients) == ["code", "talk"]
    assert clients[0].test[0].id.startswith("code-3-")
    assert load_one_client("embedded:five-domains", "talk", seed=3) == clients[1]
    assert "five-domains" in problem(clients="embedded:five")


def hub_of(monkeypatch, load_dataset):
    datasets = pytest.importorskip("datasets", reason="the optional extra 'hub' is not installed")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return datasets


def test_a_hub_name_asks_for_its_configuration_and_split_and_names_the_client(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}])

    datasets = hub_of(monkeypatch, load_dataset)
    specs = ["hub:org/one", "hub:org/two:main@test[:10%]", "hub:org/three@validation"]
    assert names(load_clients(clients=specs)) == ["one", "three", "two"]
    assert sorted(asked) == [
        ("org/one", None, "train"),
        ("org/three", None, "validation"),
        ("org/two", "main", "test[:10%]"),
    ]


def test_hub_faults_are_one_line_that_names_the_set(monkeypatch):
    def offline(name, config, split):
        raise ConnectionError("Couldn't reach 'org/x' on the Hub\nTraceback")

    datasets = hub_of(monkeypatch, offline)
    assert problem(clients="hub:org/x").startswith("hub:org/x: cannot be loaded: Couldn't reach")
    hub_of(monkeypatch, lambda name, config, split: datasets.Dataset.from_list([{"q": 1}]))
    assert problem(clients="hub:org/x").startswith("hub:org/x, row 1: columns q fit no format")
    assert "hub:ORG/NAME" in problem(clients="hub:org")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'fedsdr[hub]'" in problem(clients="hub:org/x")


def test_the_rows_of_a_hub_set_are_those_of_datasets_with_narrow_floats_as_they_were_meant(
    monkeypatch,
):
    rows = [{"prompt": f"price {i}?", "completion": 3.14 + i, "id": i} for i in range(1500)]
    datasets = hub_of(monkeypatch, lambda *args, **kwargs: narrow)
    narrow = datasets.Dataset.from_list(rows).cast_column("completion", datasets.Value("float32"))
    (client,) = load_clients(clients="hub:org/x", test_fraction=0)
    assert [e.instruction for e in client.raw] == narrow["prompt"][:]
    assert client.raw[0].response == "3.14"
    assert [e.id for e in client.raw] == [str(i) for i in range(1500)]


def test_both_and_neither_of_clients_and_source_are_refused(folder):
    assert "set one of 'clients' and 'source'" in problem()
    assert "set only one of" in problem(clients=str(folder), source=str(folder))


def test_places_that_hold_no_data_are_refused(tmp_path):
    assert "data.clients: no such file or folder" in problem(clients=str(tmp_path / "none"))
    assert "data.source: no such file or folder" in problem(source=str(tmp_path / "none.csv"))
    (tmp_path / "README.md").write_text("about")
    assert "data.clients: no .jsonl, .json" in problem(clients=str(tmp_path))


def test_two_clients_with_one_name_are_refused_with_both_files(folder, tmp_path):
    other = write(tmp_path / "other" / "bank.jsonl")
    message = problem(clients=[str(folder), other])
    assert "two are called 'bank'" in message
    assert other in message
    assert str(folder / "bank.jsonl") in message
    (folder / "bank.csv").write_text("prompt,completion\na,b\n")
    assert "two are called 'bank'" in problem(clients=str(folder))


@pytest.mark.parametrize("name", ["my bank", "bänk", ".bank", "a\nb", "b" * 201])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path, name):
    path = write(tmp_path / "x" / f"{name}.jsonl")
    message = problem(clients=[path])
    assert f"client name {name!r} cannot name a folder" in message or len(name) > 200
    assert "cannot name a folder; use at most 200 letters" in message


def test_an_unknown_partition_is_refused_with_the_nearest(folder):
    message = problem(source=str(folder), partition="direchlet")
    assert "did you mean 'dirichlet'?" in message


def test_faults_in_a_clients_file_name_the_file_and_the_line(folder):
    rows = (folder / "shop.jsonl").read_text().splitlines()
    rows[6] = '{"instruction": "a", "output": " "}'
    (folder / "shop.jsonl").write_text("\n".join(rows))
    assert problem(clients=str(folder)).startswith(f"{folder / 'shop.jsonl'}, line 7: the response")


def test_a_client_left_without_training_rows_is_named(folder):
    write(folder / "tiny.jsonl", 1)
    message = problem(clients=str(folder), test_fraction=0.9)
    assert "client 'tiny': data.test_fraction" in message


def test_columns_that_are_not_read_are_named_once_a_file(tmp_path):
    one = write(tmp_path / "a.jsonl", 3, rejected="b", url="x")
    two = write(tmp_path / "b.jsonl", 4, category="c")
    with pytest.warns(UserWarning, match="not read") as said:
        load_clients(clients=[one, two])
    assert [str(warning.message) for warning in said] == [
        f"{one}: columns that are not read: rejected (3 rows), url (3 rows)"
        "; of preference data the chosen answers are trained"
    ]


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path, folder):
    os.mkfifo(folder / "pipe.jsonl")
    assert problem(clients=str(folder)) == (
        f"{folder / 'pipe.jsonl'}: is a pipe or a device; write its rows into a file"
    )
    assert "is a pipe" in problem(clients=[str(folder / "pipe.jsonl")])
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    assert "is a pipe or a device" in problem(source=str(tmp_path / "zero.jsonl"))
    (folder / "pipe.jsonl").unlink()
    (folder / "gone.csv").symlink_to(tmp_path / "nowhere.csv")
    assert "gone.csv: cannot be read: No such file" in problem(clients=str(folder))
    (folder / "gone.csv").unlink()
    (folder / "old.json").mkdir()
    assert "old.json: is a directory" in problem(clients=str(folder))


@pytest.mark.parametrize(
    ("path", "said"),
    [("x" * 5000, "File name too long"), ("a\0b.jsonl", "no such file or folder"),
     ("\ud83d.jsonl", "no such file or folder")],
)  # fmt: skip
def test_paths_that_no_file_can_have_are_one_line(path, said):
    message = problem(clients=[path])
    assert said in message
    assert len(message) < 200


def test_a_conversation_of_thousands_of_turns_takes_memory_in_proportion(tmp_path):
    def peak(turns):
        roles = [{"from": ("human", "gpt")[i % 2], "value": f"turn {i}"} for i in range(turns)]
        path = tmp_path / "long.jsonl"
        path.write_text("".join(json.dumps({"id": i, "conversations": roles}) + "\n" for i in "ab"))
        tracemalloc.start()
        try:
            load_clients(clients=str(path), test_fraction=0.5)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(4_000) < 2.5 * peak(2_000)


def test_test_rows_that_another_client_trains_on_are_named_in_one_line(folder, recwarn):
    (folder / "copy.jsonl").write_bytes((folder / "bank.jsonl").read_bytes())
    bank, _, copy, _ = load_clients(clients=str(folder), test_fraction=0.3)
    [said] = [str(warning.message) for warning in recwarn]
    for one, other in ((bank, copy), (copy, bank)):
        trained = {row.instruction for row in other.raw}
        common = sum(row.instruction in trained for row in one.test)
        assert 0 < common < 3
        assert f"{one.client_id} ({common} rows)" in said
    assert "clinic" not in said
    load_clients(clients=str(folder), test_fraction=0.3, include=["bank", "clinic"])
    assert len(recwarn) == 1
    load_clients(clients=str(folder), test_fraction=0.3, leave_out=["bank"])
    said = str(recwarn.pop().message), str(recwarn.pop().message)
    assert "bank (" in said[1]  # it is measured, and copy trains on its rows
    assert "copy (" not in said[1]
