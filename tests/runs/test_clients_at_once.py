"""engine.clients_at_once in whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fedsdr.config import load_config
from fedsdr.errors import UserError
from fedsdr.models import memory
from fedsdr.models.memory import choose_pack
from fedsdr.progress import SILENT
from fedsdr.runs import clients_at_once
from fedsdr.runs import run as run_module
from fedsdr.runs.run import run_experiment


def learned(out):
    return {
        str(path.relative_to(out)): load_file(path) for path in sorted(out.rglob("*.safetensors"))
    }


def assert_near(run, expected, tolerance):
    assert run.keys() == expected.keys()
    for name, tensors in expected.items():
        for key, want in tensors.items():
            error = (run[name][key] - want).norm() / want.norm().clamp(min=1e-6)
            assert float(error) < tolerance, (name, key, float(error))


@pytest.mark.parametrize(
    "overrides",
    [
        ["method.name=fedsdr", "engine.clients_at_once=2"],
        ["method.name=plain-personal", "engine.clients_at_once=0", "algorithm.name=scaffold"],
        ["method.name=local", "engine.clients_at_once=3"],
    ],
)
def test_a_run_of_clients_at_once_comes_to_what_one_by_one_comes_to(
    overrides, write_config, tmp_path
):
    common = ["federation.rounds=2", "train.lr=1e-4", "data.test_fraction=0.3"]
    together = run_experiment(write_config(*overrides, *common), tmp_path / "together", SILENT)
    alone = [o for o in overrides if "at_once" not in o]
    expected = run_experiment(write_config(*alone, *common), tmp_path / "alone", SILENT)
    assert_near(learned(tmp_path / "together"), learned(tmp_path / "alone"), 2e-3)
    for name, client in expected["clients"].items():
        for model, scores in client["models"].items():
            own = together["clients"][name]["models"][model]
            assert own["loss"] == pytest.approx(scores["loss"], rel=1e-4)
            assert own["tokens"] == scores["tokens"]
    answers = [
        [row[model]["new_tokens"] for rows in run["examples"].values() for row in rows
         for model in ("base", "global", "client")]
        for run in (together, expected)
    ]  # fmt: skip
    assert answers[0] == answers[1]


def test_clients_at_once_change_no_measure_by_round_of_transfer_or_of_a_client_left_out(
    write_config, data_folder, tmp_path
):
    names = sorted(path.stem for path in data_folder.iterdir())
    common = [
        "federation.rounds=2", "train.lr=1e-4", "data.test_fraction=0.3", "evaluation.every=1",
        "evaluation.by_round=all", "evaluation.transfer=true", f"data.leave_out=['{names[0]}']",
    ]  # fmt: skip
    runs = {}
    for at_once in (1, 0):
        out = tmp_path / f"at-once-{at_once}"
        runs[at_once] = run_experiment(
            write_config(*common, f"engine.clients_at_once={at_once}"), out, SILENT
        )
        runs[at_once]["by round"] = [
            json.loads(line)["evaluation"]
            for line in (out / "rounds.jsonl").read_text().splitlines()
        ]

    def numbers(part, path=""):
        """Return path -> number of the losses, whatever the nesting."""
        if isinstance(part, dict):
            return {
                k: v for key, of in part.items() for k, v in numbers(of, f"{path}/{key}").items()
            }
        if isinstance(part, list):
            return {
                k: v for i, of in enumerate(part) for k, v in numbers(of, f"{path}/{i}").items()
            }
        return {path: part} if isinstance(part, int | float) else {}

    for what in ("by round", "transfer", "took_no_part", "retention"):
        alone, together = (numbers(runs[at_once][what]) for at_once in (1, 0))
        assert len(alone) > 10
        assert together == pytest.approx(alone, rel=2e-3, abs=2e-5), what


def test_a_run_of_clients_at_once_is_resumed_with_the_same_bytes(
    write_config, tmp_path, monkeypatch
):
    config = write_config("engine.clients_at_once=2", "method.name=dual-raw")
    run_experiment(config, tmp_path / "whole", SILENT)
    real, rounds = run_module.next_round, []

    def killed_after_one(*given):
        if rounds:
            raise KeyboardInterrupt
        rounds.append(1)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "next_round", killed_after_one)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, tmp_path / "stopped", SILENT)
    run_experiment(config, tmp_path / "stopped", SILENT, resume=True)
    whole, stopped = learned(tmp_path / "whole"), learned(tmp_path / "stopped")
    for name, tensors in whole.items():
        for key, value in tensors.items():
            assert torch.equal(stopped[name][key], value), (name, key)


def test_a_client_that_fails_at_once_is_a_fault_and_the_others_go_on(
    write_config, tmp_path, monkeypatch, caplog
):
    real = clients_at_once.training_at

    def failing(runtime, client, *given):
        training = real(runtime, client, *given)
        if client.client_id == "clinic":
            next(training)
            raise ValueError("what a row says")
        return (yield from training)

    monkeypatch.setattr(clients_at_once, "training_at", failing)
    config = write_config("engine.clients_at_once=3", "federation.rounds=1", "method.name=plain")
    run_experiment(config, tmp_path / "run", SILENT)
    (line,) = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert [client["id"] for client in record["clients"]] == ["bank", "school"]
    assert "ValueError (the client's log has the details)" in str(record["refused"])
    assert "what a row says" in caplog.text


def test_rounds_record_the_seconds_of_each_client_and_not_those_of_its_neighbours(
    write_config, tmp_path
):
    config = write_config("engine.clients_at_once=3", "federation.rounds=1", "method.name=plain")
    run_experiment(config, tmp_path / "run", SILENT)
    (line,) = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert sum(client["R.raw.seconds"] for client in record["clients"]) <= record["seconds"]


def test_the_memory_estimate_counts_the_branches_of_every_client(write_config):
    one, several = (
        choose_pack(write_config(f"engine.clients_at_once={n}", "train.pack_tokens=512"))[1]
        for n in (1, 5)
    )
    assert several.adapters == 5 * one.adapters
    assert several.optimizer == 5 * one.optimizer
    assert several.activations == one.activations


def test_no_more_clients_are_counted_than_the_run_has(write_config, tmp_path, monkeypatch):
    config = write_config("engine.clients_at_once=0", "train.pack_tokens=0", "method.name=plain",
                          "federation.rounds=1")  # fmt: skip
    three = choose_pack(write_config("engine.clients_at_once=3", "train.pack_tokens=1024"))[1]
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * three.total + 2)
    assert choose_pack(config)[0] == 512  # 32 clients are more than that
    run_experiment(config, tmp_path / "run", SILENT)
    assert load_config(tmp_path / "run/config.toml").train.pack_tokens == 1024


def test_flower_trains_each_client_alone(write_config, tmp_path):
    config = write_config("engine.clients_at_once=2", "engine.name=flower", "method.name=plain")
    with pytest.raises(UserError, match=r"engine.clients_at_once: 'flower' trains each client al"):
        run_experiment(config, tmp_path / "run", SILENT)
    assert not (tmp_path / "run").exists()
