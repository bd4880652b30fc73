"""What `fedsdr site check` reports before a site joins."""

import json
import socket

import pytest
from tiny import tiny_llama
from tiny_tokenizers import tiny_tokenizer


@pytest.fixture
def site(tmp_path, fedsdr):
    """Return a function that runs `fedsdr site check` for a bank whose affairs are in order, but
    for what is changed."""
    tokenizer = tiny_tokenizer()
    tiny_llama(packed=False, vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(10)]
    (tmp_path / "bank.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.toml").write_text(f'[model]\nname = "{tmp_path}/model"\n')
    with socket.create_server(("127.0.0.1", 0)) as superlink:
        given = {
            "client": "bank",
            "data": tmp_path / "bank.jsonl",
            "state-dir": tmp_path / "state",
            "superlink": f"127.0.0.1:{superlink.getsockname()[1]}",
        }

        def check(*more, **changes):
            words = {**given, **{name.replace("_", "-"): value for name, value in changes.items()}}
            options = [part for name, value in words.items() for part in (f"--{name}", value)]
            return fedsdr("site", "check", tmp_path / "config.toml", *options, *more)

        yield check


def test_a_site_in_order_hears_so_line_by_line(site, tmp_path):
    code, out, _ = site()
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "ok     disk", "ok     connection", "ok     data", "ok     model",
    ]  # fmt: skip
    assert "9 training rows (0 truncated), 1 test rows" in out
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "more", "wrong", "words"),
    [
        ({"data": "nowhere.jsonl"}, (), "data", "no such file"),
        ({"superlink": "127.0.0.1:1"}, (), "connection", "127.0.0.1:1 cannot be reached"),
        ({"superlink": "127.0.0.1"}, (), "connection", "is not HOST:PORT"),
        ({"root_certificates": "ca.crt"}, (), "connection", "no such file: ca.crt"),
        ({"state_dir": "/dev/null/x"}, (), "disk", "/dev/null/x: cannot be written"),
        ({}, ("--set", "model.name=./nowhere"), "data, model", "no such folder"),
        ({}, ("--set", "data.max_length=8"), "data", "no token of its 9 training rows"),
    ],
)
def test_what_is_wrong_is_named_and_the_other_checks_go_on(changes, more, wrong, words, site):
    code, out, err = site(*more, **changes)
    assert code == 2
    assert err.endswith(f"fedsdr: site 'bank' is not ready: {wrong}\n")
    assert words in out
    assert len(out.splitlines()) == 4
