"""Whole runs with every aggregation: resumed, over Flower, and what cannot be combined."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fedsdr.algorithms.aggregation import AGGREGATIONS
from fedsdr.models.adapters import load_adapter
from fedsdr.progress import SILENT
from fedsdr.runs.run import run_experiment

PLAIN = ("method.name=plain", "data.max_examples=4", "evaluation.max_new_tokens=1")
RANKS = ("clients.bank.rank=1",)


def learned_bytes(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.safetensors"))
    }


def records_of(out):
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def keys_of(name):
    return (f"algorithm.aggregation={name}", *(RANKS if name == "product" else ()))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_resumed_run_ends_with_the_same_bytes(name, write_config, tmp_path):
    keys = (*PLAIN, *keys_of(name), "algorithm.name=fedadam")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_experiment(write_config(*keys, "federation.rounds=2"), whole, SILENT)
    run_experiment(write_config(*keys, "federation.rounds=1"), broken, SILENT)
    run_experiment(write_config(*keys, "federation.rounds=2"), broken, SILENT, resume=True)
    assert learned_bytes(broken) == learned_bytes(whole)
    state = load_file(whole / "checkpoint/round-0002/shared.safetensors")
    unsent = AGGREGATIONS[name].unsent
    assert all(x.any() for n, x in state.items() if not n.endswith(unsent))


def test_ffa_sends_half_the_bytes_and_serves_the_common_a(write_config, tmp_path):
    for name in ("mean", "ffa"):
        keys = (*PLAIN, f"algorithm.aggregation={name}", "federation.rounds=1",
                "lora.target_modules=[\"q_proj\", \"o_proj\"]")  # fmt: skip
        run_experiment(write_config(*keys), tmp_path / name, SILENT)
    mean, ffa = (records_of(tmp_path / name)[0] for name in ("mean", "ffa"))
    for way in ("bytes_up", "bytes_down"):  # the tiny model's q_proj and o_proj are square
        assert ffa[way] == mean[way] / 2
    adapter = load_adapter(tmp_path / "ffa/global", "R")
    assert all(x.any() for x in adapter.values())


def test_with_share_a_each_client_has_its_own_b_and_the_global_model_is_the_base(
    write_config, tmp_path
):
    keys = (*PLAIN, "algorithm.aggregation=share-a", "train.local_epochs=3")
    results = run_experiment(write_config(*keys), tmp_path / "run", SILENT)
    mean = results["mean"]
    assert mean["global"]["loss"] == pytest.approx(mean["base"]["loss"], abs=1e-6)
    assert mean["client"]["loss"] < mean["base"]["loss"]
    own = [
        load_file(tmp_path / f"run/clients/{c}/round-0003/unsent.safetensors")
        for c in ("bank", "clinic")
    ]
    assert all(n.endswith("lora_B") for n in own[0])
    assert not any(torch.equal(own[0][n], own[1][n]) for n in own[0])


def test_a_smaller_rank_sends_fewer_bytes_and_the_lost_part_is_recorded(write_config, tmp_path):
    keys = (*PLAIN, "algorithm.aggregation=product", "federation.rounds=2")
    run_experiment(write_config(*keys), tmp_path / "all", SILENT)
    clients = run_experiment(write_config(*keys, *RANKS), tmp_path / "one", SILENT)["clients"]
    every, one = records_of(tmp_path / "all"), records_of(tmp_path / "one")
    assert one[0]["bytes_up"] == pytest.approx(every[0]["bytes_up"] * 2.5 / 3)  # ranks 2, 2, 1
    assert all(0 < r["aggregation"]["product_lost"] < 1 for r in (*every, *one))
    assert one[0]["update_cosine"] is None
    for name, client in clients.items():  # the bank serves the part that it can hold
        models = client["models"]
        assert (models["client"] == models["global"]) == (name != "bank")


def test_who_was_left_out_is_in_the_record_and_counted_in_the_results(
    write_config, tmp_path, monkeypatch
):
    from fedsdr.runs import run as run_module

    real = run_module.train_at

    def train(runtime, client, task, after_step):
        update = real(runtime, client, task, after_step)
        if client.client_id == "clinic":
            for x in update.delta.values():
                x.mul_(50)
        return update

    monkeypatch.setattr(run_module, "train_at", train)
    keys = (*PLAIN, "algorithm.aggregation=median", "federation.rounds=2",
            "federation.max_norm_ratio=0")  # fmt: skip
    results = run_experiment(write_config(*keys), tmp_path / "run", SILENT)
    for record in records_of(tmp_path / "run"):
        assert [entry["id"] for entry in record["left_out"]] == ["clinic"]
        assert "product" in record["left_out"][0]["reason"]
        used = {c["id"]: c["used"] for c in record["clients"]}
        assert used["clinic"] == 0.0
        assert used["bank"] > 0
    assert results["left_out"] == {"clinic": 2}


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (["algorithm.name=scaffold", "algorithm.aggregation=product"],
         ["algorithm.aggregation: 'product'", "algorithm.name = 'scaffold'"]),
        (["algorithm.name=scaffold", "algorithm.aggregation=median"],
         ["algorithm.aggregation: 'median'", "algorithm.name = 'scaffold'"]),
        (["privacy.mode=central", "algorithm.aggregation=multi-krum"],
         ["algorithm.aggregation: 'multi-krum'", "privacy.mode = 'central'"]),
        (["method.name=local", "algorithm.aggregation=trimmed-mean"],
         ["algorithm.aggregation: 'trimmed-mean'", "method.name = 'local'"]),
        (["algorithm.aggregation=share-a", "method.name=fedsd", "teacher.refresh=1"],
         ["algorithm.aggregation: 'share-a'", "teacher.refresh"]),
        (["algorithm.aggregation=product", "clients.bank.rank=3"],
         ["clients.bank.rank: is 3, above lora.rank = 2"]),
        (["clients.bank.rank=1"],
         ["clients.bank.rank: cannot go with algorithm.aggregation = 'mean'", "'product'"]),
        (["algorithm.aggregation=product", "clients.bnak.rank=1"],
         ["clients.bnak.rank: no client 'bnak'", "did you mean 'bank'?"]),
        (["clients.bank.rnak=1"], ["unknown key 'clients.bank.rnak'"]),
        (["clients.bank.rank=-1"], ["'clients.bank.rank' is -1"]),
        (["clients.bank=4"], ["'clients.bank' is a section"]),
        (["clients=4"], ["'clients' is 4"]),
        (["algorithm.malicious_share=0.5"], ["less than 0.5"]),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_one_line_before_anything_runs(
    keys, parts, fedsdr, write_config, tmp_path
):
    write_config()
    sets = [part for key in keys for part in ("--set", key)]
    code, _, err = fedsdr("run", tmp_path / "config.toml", "--out", tmp_path / "run", *sets)
    assert code == 2
    assert err.count("\n") == 1
    assert all(part in err for part in parts), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["ffa", "share-a"])
@pytest.mark.parametrize("algorithm", ["scaffold", "fedprox"])
def test_means_of_one_factor_go_with_local_corrections(name, algorithm, write_config, tmp_path):
    keys = (*PLAIN, f"algorithm.aggregation={name}", f"algorithm.name={algorithm}")
    run_experiment(write_config(*keys, "federation.rounds=2"), tmp_path / "run", SILENT)
    assert all(not r["refused"] for r in records_of(tmp_path / "run"))


def test_ffa_goes_with_central_privacy(write_config, tmp_path):
    pytest.importorskip("dp_accounting")
    keys = (*PLAIN, "algorithm.aggregation=ffa", "privacy.mode=central", "federation.rounds=1")
    results = run_experiment(write_config(*keys), tmp_path / "run", SILENT)
    assert results["privacy"]["epsilon"] > 0
