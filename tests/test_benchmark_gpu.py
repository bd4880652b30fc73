"""benchmarks/gpu.py on the CPU: its checks hold, and its results survive the end of the time."""

import json
import subprocess
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


def part(gpu, name, out, assets=None):
    gpu.run_part(name, gpu.Task(cuda=False, assets=assets, deadline=time.time() + 60), out)
    return list(gpu.kept(out / f"{name}.jsonl"))


def test_every_check_holds_on_the_cpu(gpu, tmp_path):
    # Four architectures in two dtypes, each built for us and for PEFT: 3 s.
    rows = part(gpu, "checks", tmp_path)
    assert [row for row in rows if not row["ok"]] == []
    assert len(rows) > 40
    assert not any("FlashAttention" in row["check"] for row in rows)


def test_the_step_and_all_settings_of_peft_start_from_the_same_loss(gpu, tmp_path):
    rows = part(gpu, "step", tmp_path)
    losses = [row["loss"] for row in rows if row["who"] in ("fedsdr", "PEFT")]
    assert len(losses) == 8
    assert losses == pytest.approx([losses[0]] * 8, rel=1e-5)
    best = {who: max(r["tokens/s"] for r in rows if r["who"] == who) for who in ("fedsdr", "PEFT")}
    assert rows[-1]["ratio"] == pytest.approx(best["fedsdr"] / best["PEFT"])


def test_four_n_operations_are_counted_for_each_token_and_the_head_at_labels_alone(gpu):
    import gpu_step
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gpu_step.TINY)
    rows = gpu_step.random_rows(200, 300)
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128  # q, k, v, o; gate, up, down
    labels = sum(sum(row.supervised[1:]) for row in rows)
    assert sum(len(row.tokens) for row in rows) == 200
    assert gpu_step.flops(model, rows) == 4 * (2 * layer * 200 + 300 * 64 * labels)


def test_a_part_that_runs_out_of_time_keeps_its_rows_and_the_next_one_runs(
    gpu, tmp_path, monkeypatch
):
    def run(command, timeout, **_):
        name = command[command.index("--part") + 1]
        (tmp_path / f"{name}.jsonl").write_text('{"who": "first"}\n{"who": "cut o')
        if name == "step":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "none"})
    gpu.run_all(["step", "clients"], cuda=False, assets=None, out=tmp_path)
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert {name: p["status"] for name, p in parts.items()} == {
        "step": "out of time",
        "clients": "done",
    }
    assert all(p["rows"] == [{"who": "first"}] for p in parts.values())
    assert "| first |" in gpu.report({"machine": {}, "parts": parts})


def test_all_parts_together_take_at_most_nine_minutes(gpu):
    assert sum(gpu.SECONDS.values()) <= 9 * 60


@pytest.mark.embedded
def test_the_models_file_travels_in_parts_under_48_mib(gpu, tmp_path):
    from gpu_study import joined

    from fedsdr.embedded_packages import embedded_model_file

    gpu.split(embedded_model_file(), tmp_path)
    parts = list(tmp_path.glob("model.gguf.*"))
    assert len(parts) == 2
    assert all(path.stat().st_size < 48 * 2**20 for path in parts)
    assert joined(tmp_path) == embedded_model_file().read_bytes()
