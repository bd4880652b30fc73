import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedsdr.algorithms import ALGORITHMS
from fedsdr.config import load_config
from fedsdr.data.clients import load_clients
from fedsdr.errors import UserError
from fedsdr.evaluation.results_file import read_results
from fedsdr.federation.checkpoint import load_state
from fedsdr.progress import SILENT
from fedsdr.research.diagnose.measurements import extra_round
from fedsdr.runs import rounds
from fedsdr.runs import run as run_module
from fedsdr.runs.client_runtime import evaluate_model, open_runtime, train_at
from fedsdr.runs.export import export_model
from fedsdr.runs.rewriting import distill_clients
from fedsdr.runs.run import run_experiment, run_rounds
from fedsdr.runs.run_folder import open_run
from fedsdr.runs.run_plan import announced_by, plan_of
from fedsdr.runs.teacher_setup import prepare_rewriting
from fedsdr.training.methods import METHODS


def learned_bytes(out: Path) -> dict[str, bytes]:
    """Every file of a run that holds what was learned."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix == ".safetensors" or path.name in ("state.json", "adapter_config.json")
    }


def test_a_run_leaves_every_file_that_the_design_names(write_config, tmp_path):
    out = tmp_path / "run"
    results = run_experiment(write_config(), out, SILENT)
    for name in ("config.toml", "rounds.jsonl", "results.json", "distilled/bank.jsonl",
                 "clients/bank/adapter_model.safetensors", "clients/bank/round-0003",
                 "clients/bank/round-0002", "global/adapter_config.json",
                 "checkpoint/round-0003/state.json"):  # fmt: skip
        assert (out / name).exists(), name
    assert not (out / "clients/bank/round-0001").exists()
    records = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [r["round"] for r in records] == [1, 2, 3]
    assert {c["id"] for c in records[0]["clients"]} == {"bank", "clinic", "school"}
    bank = records[0]["clients"][0]
    assert bank["num_examples"] == 9
    assert {"S.rewritten.loss", "R.raw.loss", "S.rewritten.tokens", "R.raw.seconds"} <= bank.keys()
    read = read_results(out, "")
    assert read == json.loads(json.dumps(results))
    assert read["clients"]["bank"]["models"].keys() == {"base", "global", "client"}
    assert read["cost"]["bytes_up"] == sum(r["bytes_up"] for r in records) > 0
    assert read["mean"]["client"]["loss"] < read["mean"]["base"]["loss"]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize(
    "overrides",
    [
        ("algorithm.name=fedadam",),
        ("algorithm.name=scaffold", "federation.update_dtype=bf16"),
        ("method.name=plain", "federation.update_dtype=int8"),
        ("method.name=plain-personal", "algorithm.name=scaffold"),
    ],
)
def test_a_run_that_was_killed_ends_with_the_same_bytes_when_resumed(
    overrides, write_config, tmp_path
):
    config = write_config(*overrides, "federation.clients_per_round=2", "method.s_dropout=0.5")
    whole = tmp_path / "whole"
    run_experiment(config, whole, SILENT)
    for moment in ("in a client", "before the checkpoint", "after the checkpoint"):
        broken = tmp_path / moment
        with pytest.MonkeyPatch.context() as patch:
            kill_in_round_2(moment, patch)
            with pytest.raises(Killed):
                run_experiment(config, broken, SILENT)
        run_experiment(config, broken, SILENT, resume=True)
        assert learned_bytes(broken) == learned_bytes(whole), moment
        assert rounds_of(broken) == rounds_of(whole), moment
        results = [json.loads((out / "results.json").read_text()) for out in (whole, broken)]
        assert results[0]["clients"] == results[1]["clients"], moment
    personal = "method.name=plain-personal" in overrides
    assert rounds_of(whole) == [1, 2, 3, *([4] if personal else [])]


def kill_in_round_2(moment, patch):
    """Raise Killed after the second client of round 2, or around its checkpoint."""
    calls = {"train": 0, "save": 0}
    real_train, real_save = run_module.train_at, rounds.save_state

    def train(*args, **kwargs):
        calls["train"] += 1
        answer = real_train(*args, **kwargs)
        if moment == "in a client" and calls["train"] == 4:  # S of round 2 is written already
            raise Killed
        return answer

    def save(folder, state, **more):
        calls["save"] += 1
        if moment == "before the checkpoint" and calls["save"] == 2:
            raise Killed
        real_save(folder, state, **more)
        if moment == "after the checkpoint" and calls["save"] == 2:
            raise Killed

    patch.setattr(run_module, "train_at", train)
    patch.setattr(rounds, "save_state", save)


def rounds_of(out):
    return [json.loads(line)["round"] for line in (out / "rounds.jsonl").read_text().splitlines()]


def test_a_personal_branch_is_trained_once_after_the_rounds_of_plain_and_changes_no_r(
    write_config, tmp_path
):
    plain = run_experiment(write_config("method.name=plain"), tmp_path / "plain", SILENT)
    config, out = write_config("method.name=plain-personal"), tmp_path / "personal"
    personal = run_experiment(config, out, SILENT)
    name = "global/adapter_model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    tokens = personal["cost"]["tokens"]
    assert tokens["train S.raw"] == tokens["train R.raw"] == plain["cost"]["tokens"]["train R.raw"]
    assert personal["cost"]["bytes_up"] == plain["cost"]["bytes_up"]
    assert personal["mean"]["client"]["loss"] < personal["mean"]["global"]["loss"]
    before = learned_bytes(out), (out / "rounds.jsonl").read_bytes()
    run_experiment(config, out, SILENT, resume=True)
    assert (learned_bytes(out), (out / "rounds.jsonl").read_bytes()) == before
    longer = write_config("method.name=plain-personal", "federation.rounds=5")
    with pytest.raises(UserError, match="phases after the last round were trained after round 3"):
        run_experiment(longer, out, SILENT, resume=True)


def test_a_second_run_and_another_method_rewrite_nothing_again(write_config, tmp_path, monkeypatch):
    first = run_experiment(write_config(), tmp_path / "a", SILENT)
    assert first["cost"]["tokens"]["rewrite"] > 0
    for name, method in (("b", "fedsdr"), ("c", "fedsd")):
        lines = []
        progress = replace(SILENT, log=lines.append)
        again = run_experiment(write_config(f"method.name={method}"), tmp_path / name, progress)
        assert sum(" 0 new tokens, 9 from the cache" in line for line in lines) == 3
        assert again["cost"]["tokens"]["rewrite"] == first["cost"]["tokens"]["rewrite"]
    assert learned_bytes(tmp_path / "a") == learned_bytes(tmp_path / "b")


def method_algorithm_pairs():
    """Every method with every local correction, and every algorithm with about four methods.

    A client sees of an algorithm its correction alone, and a server of a method what it sends.
    """
    for correction in ("none", "fedprox", "scaffold"):
        names = [name for name, a in ALGORITHMS.items() if a.correction == correction]
        yield from ((method, names[i % len(names)]) for i, method in enumerate(METHODS))


def rounds_alone(config, folder):
    """Rewrite and train without evaluating; return the server's state."""
    clients = load_clients(config.data)
    runtime = open_runtime(config, folder)
    if runtime.method.rewrites:
        distill_clients(runtime, prepare_rewriting(runtime), clients, SILENT)
    return run_rounds(runtime, clients, plan_of(config, announced_by(clients)), SILENT)


@pytest.mark.parametrize(("method", "algorithm"), method_algorithm_pairs())
def test_every_method_runs_with_every_local_correction(method, algorithm, write_config, tmp_path):
    changes = (f"method.name={method}", f"algorithm.name={algorithm}", "federation.rounds=2")
    state = rounds_alone(write_config(*changes, "data.max_examples=4"), tmp_path / "run")
    assert state.round == 2
    assert all(v.any() for n, v in state.shared.items() if n.endswith("lora_B"))
    assert {n[0] for n in state.shared} == set(METHODS[method].sent)
    has_s = (tmp_path / "run/clients/bank/adapter_model.safetensors").exists()
    assert has_s == bool(METHODS[method].private)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_with_int8_updates_in_a_quarter_of_the_bytes(
    method, write_config, tmp_path
):
    changes = (f"method.name={method}", "federation.rounds=2", "data.max_examples=4")
    records = {}
    for dtype in ("fp32", "int8"):
        out = tmp_path / dtype
        rounds_alone(write_config(*changes, f"federation.update_dtype={dtype}"), out)
        lines = (out / "rounds.jsonl").read_text().splitlines()
        records[dtype] = [json.loads(line) for line in lines]
    for full, small in zip(*records.values(), strict=True):
        assert small["refused"] == []
        # A scale for every rank component beside 32 or 16 values of a tiny model.
        assert small["bytes_up"] <= 0.45 * full["bytes_up"]
        assert small["step_norm"] == pytest.approx(full["step_norm"], rel=0.05)


def test_one_faulty_client_does_not_end_the_run(write_config, tmp_path, monkeypatch, caplog):
    real = run_module.train_at

    def train(runtime, client, task, after_step):
        if client.client_id == "clinic" and task.round == 2:
            raise RuntimeError("the disk of the clinic is gone")
        return real(runtime, client, task, after_step)

    monkeypatch.setattr(run_module, "train_at", train)
    run_experiment(write_config(), tmp_path / "run", SILENT)
    lines = (tmp_path / "run/rounds.jsonl").read_text().splitlines()
    refused = [json.loads(line)["refused"] for line in lines]
    assert refused[0] == refused[2] == []
    assert refused[1] == [
        {"id": "clinic", "reason": "RuntimeError (the client's log has the details)"}
    ]
    assert load_state(tmp_path / "run/checkpoint").accepted["clinic"] == 3
    assert "the disk of the clinic is gone" in caplog.text


def test_resume_starts_a_run_where_there_is_none_and_ends_at_once_where_it_is_finished(
    write_config, tmp_path, monkeypatch
):
    lines = []
    progress = replace(SILENT, log=lines.append)
    config = write_config("federation.rounds=1")
    first = run_experiment(config, tmp_path / "new", progress, resume=True)
    assert any("no run there yet" in line for line in lines)
    monkeypatch.setattr(run_module, "run_rounds", None)  # would fail if called again
    again = run_experiment(
        config, tmp_path / "new", progress, resume=True, open_runtime=lambda *_: pytest.fail("load")
    )
    assert again == first
    assert any("finished already" in line for line in lines)


def test_a_folder_that_holds_another_run_is_left_alone(write_config, tmp_path):
    out = tmp_path / "run"
    run_experiment(write_config("federation.rounds=1"), out, SILENT)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="--resume"):
        run_experiment(write_config("federation.rounds=1"), out, SILENT)
    with pytest.raises(UserError, match=r"train\.lr.*was 0\.01 and is now 0\.5"):
        run_experiment(write_config("train.lr=0.5"), out, SILENT, resume=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run folder"):
        run_experiment(write_config(), tmp_path / "full", SILENT)


def test_scaffold_accepts_every_update_at_the_lower_rates_of_a_schedule(write_config, tmp_path):
    config = write_config(
        "algorithm.name=scaffold", "method.name=plain", "federation.rounds=5",
        "train.batch_size=64", "train.schedule=cosine", "train.warmup_rounds=2",
    )  # fmt: skip
    run_experiment(config, tmp_path / "run", SILENT)
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["clients"]) for line in lines] == [3] * 5


def test_the_number_of_threads_is_kept_in_a_resume(write_config, tmp_path):
    before = torch.get_num_threads()
    try:
        config = write_config("engine.threads=2", "federation.rounds=1")
        run_experiment(config, tmp_path / "run", SILENT)
        assert torch.get_num_threads() == 2
        run_experiment(write_config("federation.rounds=2"), tmp_path / "run", SILENT, resume=True)
        assert load_config(tmp_path / "run" / "config.toml").engine.threads == 2
        run_experiment(write_config(), tmp_path / "new", SILENT)
        assert load_config(tmp_path / "new" / "config.toml").engine.threads == before
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_the_chosen_pack_size_is_kept_and_checkpointing_may_be_switched_on_in_a_resume(
    write_config, tmp_path, monkeypatch
):
    from fedsdr.runs import client_runtime as runtime

    first = write_config("federation.rounds=1", "train.pack_tokens=0")
    run_experiment(first, tmp_path / "a", SILENT)
    assert load_config(tmp_path / "a/config.toml").train.pack_tokens == 1024
    monkeypatch.setattr(runtime, "choose_pack", None)  # would fail if called again
    more = write_config("federation.rounds=2", "train.pack_tokens=0", "train.checkpointing=true")
    run_experiment(more, tmp_path / "a", SILENT, resume=True)
    assert load_config(tmp_path / "a/config.toml").train.checkpointing
    run_experiment(
        write_config("federation.rounds=2", "train.pack_tokens=1024"), tmp_path / "b", SILENT
    )
    assert learned_bytes(tmp_path / "a") == learned_bytes(tmp_path / "b")


def test_a_finished_run_is_extended_by_more_rounds(write_config, tmp_path):
    run_experiment(write_config("federation.rounds=1"), tmp_path / "a", SILENT)
    run_experiment(write_config("federation.rounds=3"), tmp_path / "a", SILENT, resume=True)
    run_experiment(write_config("federation.rounds=3"), tmp_path / "b", SILENT)
    assert learned_bytes(tmp_path / "a") == learned_bytes(tmp_path / "b")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.target_modules=['qproj']"], "matches no layer"),
        (["data.max_length=8"], "no token of its .* training rows is supervised"),
        (["model.name=./nowhere"], "no such folder"),
        (["data.include=['banc']"], "did you mean 'bank'"),
        (["method.name=fedsdrr"], "did you mean 'fedsdr'"),
        (["algorithm.name=fedavgg"], "did you mean 'fedavg'"),
        (["algorithm.beta=0.5"], "no such hyperparameter"),
        (["teacher.engine=opnvino"], "did you mean 'openvino'"),
        (["model.quantize=4bit"], "needs a CUDA device"),
        (["model.device=cuda"], "no CUDA device"),
    ],
)
def test_what_the_user_can_fix_is_reported_before_anything_is_written(
    overrides, words, write_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=words) as error:
        run_experiment(write_config(*overrides), tmp_path / "run", SILENT)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_folder_without_weights_is_named(write_config, tmp_path, model_folder):
    hollow = tmp_path / "hollow"
    hollow.mkdir()
    (hollow / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(UserError, match=r"hollow.*no \*\.safetensors"):
        run_experiment(write_config(f"model.name={hollow}"), tmp_path / "run", SILENT)


def logits_of(model, tokenizer):
    ids = tokenizer("the patient takes 3 tablets", return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids).logits


def test_exports_load_in_plain_peft_and_plain_transformers(write_config, tmp_path, model_folder):
    out = tmp_path / "run"
    run_experiment(write_config("model.dtype=bf16"), out, SILENT)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)

    def base():
        return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)

    export_model(out, tmp_path / "adapter", client_id="bank")
    export_model(out, tmp_path / "merged", client_id="bank", merge=True)
    export_model(out, tmp_path / "global")
    # R+S by PEFT's own means: the two adapters of the run, both active.
    both = PeftModel.from_pretrained(base(), out / "global", adapter_name="R")
    both.load_adapter(out / "clients" / "bank", adapter_name="S")
    both.base_model.set_adapter(["R", "S"])
    expected = logits_of(both.eval(), tokenizer)
    one = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits_of(one, tokenizer), expected, rtol=1e-4, atol=1e-4)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert merged.dtype == torch.float32  # that of the base's files
    torch.testing.assert_close(logits_of(merged, tokenizer), expected, rtol=1e-4, atol=1e-4)
    shared = PeftModel.from_pretrained(base(), tmp_path / "global").eval()
    alone = PeftModel.from_pretrained(base(), out / "global").eval()
    torch.testing.assert_close(logits_of(shared, tokenizer), logits_of(alone, tokenizer))
    with pytest.raises(UserError, match="did you mean 'bank'"):
        export_model(out, tmp_path / "x", client_id="banc")
    with pytest.raises(UserError, match="exists already"):
        export_model(out, tmp_path / "global")


def test_a_run_without_test_rows_ends_with_its_cost_alone(write_config, tmp_path):
    config = write_config("data.test_fraction=0", "federation.rounds=1")
    results = run_experiment(config, tmp_path / "run", SILENT)
    assert results["clients"] == {}
    assert results["cost"]["tokens"]["train R.raw"] > 0
    assert (tmp_path / "run/global/adapter_model.safetensors").exists()


def test_a_model_that_diverged_is_named_and_not_scored(write_config, tmp_path):
    config = write_config()
    runtime, client = open_runtime(config, tmp_path), load_clients(config.data)[0]
    runtime.model.set({n: torch.full_like(v, torch.nan) for n, v in runtime.model.get("S").items()})
    evaluate_model(runtime, [client], ("R",))
    with pytest.raises(UserError, match=r"client 'bank': the loss of base\+R\+S .* not finite"):
        evaluate_model(runtime, [client], ("R", "S"))


def test_a_private_run_reports_its_epsilon_each_round_and_at_the_end(write_config, tmp_path):
    lines = []
    config = write_config("privacy.mode=central", "privacy.noise_multiplier=2", "method.name=plain")
    results = run_experiment(config, tmp_path / "run", replace(SILENT, log=lines.append))
    records = [json.loads(x) for x in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    spent = [record["epsilon"] for record in records]
    assert spent == sorted(spent)
    assert results["privacy"]["epsilon"] == spent[-1] > 0
    assert results["privacy"]["neighbours"] == "one client replaced"
    assert sum(f"epsilon {spent[i]:.3g}" in line for i in range(3) for line in lines) == 3


def test_a_run_with_local_noise_keeps_no_losses_of_the_clients(write_config, tmp_path):
    config = write_config("privacy.mode=local", "method.name=plain", "federation.rounds=1")
    run_experiment(config, tmp_path / "run", SILENT)
    (record,) = map(json.loads, (tmp_path / "run/rounds.jsonl").read_text().splitlines())
    assert [set(client) for client in record["clients"]] == [{"id", "num_examples"}] * 3


def test_with_local_noise_a_run_stopped_after_the_last_round_can_be_resumed(
    write_config, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def killed_in_the_end(runtime, client, task, after_step=None):
        update = train_at(runtime, client, task, after_step)
        if task.settings.afterwards:
            raise Killed
        return update

    config = write_config("method.name=plain-personal", "privacy.mode=local")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train_at", killed_in_the_end)
        with pytest.raises(Killed):
            run_experiment(config, tmp_path / "run", SILENT)
    assert run_experiment(config, tmp_path / "run", SILENT, resume=True)["rounds"] == 3
    runtime, state = open_run(tmp_path / "run")
    rows = {c.client_id: c.raw for c in load_clients(runtime.config.data)}
    found = extra_round(runtime, load_clients(runtime.config.data), state, rows, lambda rows: None)
    assert found["rows"] == len(rows)  # with local noise each counts as one


def test_a_run_is_not_resumed_without_a_client_that_it_began_with(
    write_config, tmp_path, data_folder
):
    rows = shutil.copytree(data_folder, tmp_path / "rows")
    overrides = f"data.clients={rows}", "method.name=plain"
    run_experiment(write_config(*overrides, "federation.rounds=1"), tmp_path / "run", SILENT)
    (rows / "school.jsonl").unlink()
    with pytest.raises(UserError, match="data of client 'school' have changed"):
        run_experiment(write_config(*overrides), tmp_path / "run", SILENT, resume=True)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.update_dtype=int8", "federation.update_dtype"),
        ("algorithm.name=scaffold", "control variates"),
        ("method.name=local", "sends nothing"),
        ("privacy.noise_multiplier=0", "privacy.noise_multiplier.*0.001"),
    ],
)
def test_privacy_that_the_noise_would_not_cover_is_refused(override, words, write_config, tmp_path):
    with pytest.raises(UserError, match=words):
        run_experiment(write_config("privacy.mode=central", override), tmp_path / "run", SILENT)
    assert not (tmp_path / "run").exists()
