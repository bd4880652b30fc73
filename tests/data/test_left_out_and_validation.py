import json
from dataclasses import replace

import pytest

from fedsdr.config import DataConfig
from fedsdr.data.clients import load_clients, taking_part
from fedsdr.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("ann", "bob"):
        rows = [{"instruction": f"{name} {i}", "output": f"answer {i}"} for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path)


def ids(rows):
    return {row.instruction for row in rows}


def test_validation_rows_come_out_of_the_training_rows_and_leave_the_test_rows_alone(folder):
    plain = DataConfig(clients=folder, test_fraction=0.2)
    for before, now in zip(
        load_clients(plain), load_clients(replace(plain, validation_fraction=0.25)), strict=True
    ):
        assert now.test == before.test
        assert len(now.validation) == 4  # a quarter of the other 16
        assert ids(now.raw) | ids(now.validation) == ids(before.raw)
        assert not ids(now.raw) & ids(now.validation)
        assert before.validation == ()


def test_the_caps_hold_for_each_part(folder):
    data = DataConfig(
        clients=folder, test_fraction=0.2, validation_fraction=0.5, max_examples=3,
        max_test_examples=2,
    )  # fmt: skip
    for client in load_clients(data):
        assert [len(of) for of in (client.raw, client.test, client.validation)] == [3, 2, 2]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"validation_fraction": 0.99}, "'ann': data.validation_fraction = 0.99 of 10 rows leaves"),
        ({"leave_out": ["bobb"]}, "data.leave_out: no client 'bobb'.*did you mean 'bob'"),
        ({"leave_out": ["ann", "bob"]}, "data.leave_out: leaves no client to train"),
        ({"include": ["ann"], "leave_out": ["bob"]}, "data.leave_out: no client 'bob'"),
    ],
)
def test_what_leaves_nothing_to_train_is_refused_in_one_line(keys, words, folder):
    with pytest.raises(UserError, match=words):
        load_clients(DataConfig(clients=folder, test_fraction=0.5, **keys))


def test_a_client_that_is_left_out_is_loaded_and_takes_no_part(folder):
    data = DataConfig(clients=folder, leave_out=["bob"])
    clients = load_clients(data)
    assert [client.client_id for client in clients] == ["ann", "bob"]
    assert [client.client_id for client in taking_part(clients, data)] == ["ann"]
