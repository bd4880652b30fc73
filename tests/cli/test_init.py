"""`fedsdr init` writes a configuration that loads, and data to start with."""

import pytest

from fedsdr.cli.init import EXAMPLE, PRESETS
from fedsdr.config import Config, load_config, value_of
from fedsdr.data.clients import load_clients
from fedsdr.runs.config_schema import check_names
from fedsdr.runs.run_plan import announced_by, plan_of


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_a_preset_changes_its_keys_alone_and_is_a_configuration_that_can_run(
    preset, fedsdr, tmp_path
):
    options = ("--preset", preset) if preset else ()
    assert fedsdr("init", tmp_path / "a", *options)[0] == 0
    config = load_config(tmp_path / "a" / "fedsdr.toml")
    check_names(config)
    plan_of(config, {"one": 3, "two": 4, "three": 5})
    wanted = PRESETS[preset] if preset else {}
    for key in ("method.name", "privacy.mode", "train.local_epochs", "algorithm.aggregation",
                "method.s_dropout", "train.anchor_beta", "federation.rounds"):  # fmt: skip
        assert value_of(config, key) == wanted.get(key, value_of(Config(), key))


def test_the_example_has_three_clients_of_24_rows_in_different_layouts(fedsdr, tmp_path):
    code, out, _ = fedsdr("init", tmp_path / "a", "--example")
    assert code == 0
    assert "atlas.jsonl, grammar.jsonl, shop.csv" in out
    config = load_config(tmp_path / "a" / "fedsdr.toml")
    assert {key: value_of(config, key) for key in EXAMPLE} == EXAMPLE
    clients = load_clients(config.data)
    assert announced_by(clients) == {"atlas": 18, "grammar": 18, "shop": 18}
    rows = {row.instruction: row.response for c in clients for row in (*c.raw, *c.test)}
    assert len(rows) == 72
    assert rows["What is the capital of Peru?"] == "It is Lima."
    assert rows["One lamp costs 24 euros. What do 3 cost?"] == "3 x 24 = 72, so it costs 72 euros."
    assert clients[1].raw[0].history[0].content == "Answer with one word."


def test_an_existing_file_is_never_overwritten(fedsdr, tmp_path):
    (tmp_path / "a/data/clients").mkdir(parents=True)
    (tmp_path / "a/data/clients/shop.csv").write_text("mine")
    code, _, err = fedsdr("init", tmp_path / "a", "--example")
    assert (code, err.count("\n")) == (2, 1)
    assert "shop.csv: exists already" in err
    assert not (tmp_path / "a/fedsdr.toml").exists()
