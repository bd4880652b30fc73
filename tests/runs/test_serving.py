import io
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedsdr.errors import printable
from fedsdr.progress import SILENT
from fedsdr.runs.export import export_model
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run
from fedsdr.runs.served_models import models_of
from fedsdr.types import Turn


def chat_about(questions, fedsdr, run, monkeypatch, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{q}\n" for q in questions)))
    return fedsdr("chat", run, "--max-new-tokens", 6, *options)


@pytest.mark.parametrize("method", ["plain", "fedsdr", "local", "feddpa"])
def test_a_run_has_the_models_that_its_method_makes(method, write_config, tmp_path):
    run = tmp_path / "run"
    run_experiment(write_config(f"method.name={method}", "federation.rounds=1"), run, SILENT)
    clients = [f"client {name}" for name in ("bank", "clinic", "school")]
    wanted = {
        "plain": ["base", "global"],
        "fedsdr": ["base", "global", *clients],
        "local": ["base", *clients],
        "feddpa": ["base", "global"],
    }
    assert [name for name, _ in models_of(*open_run(run))] == wanted[method]


def test_chat_answers_as_the_exported_models_do_in_plain_peft(
    write_config, tmp_path, fedsdr, monkeypatch, model_folder
):
    run = tmp_path / "run"
    run_experiment(write_config("federation.rounds=2"), run, SILENT)
    question = "what is the rate of the loan"
    code, out, _ = chat_about([question], fedsdr, run, monkeypatch, "--client", "clinic")
    assert code == 0
    export_model(run, tmp_path / "adapter", client_id="clinic")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    runtime, _ = open_run(run)
    prompt = torch.tensor([runtime.renderer.prompt((Turn("user", question),))])
    made = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False,
        eos_token_id=list(runtime.renderer.stop_token_ids), pad_token_id=0,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    text = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    parts = out.split("client clinic:\n")
    assert parts[0].startswith("base:\n")
    assert "global:\n" in parts[0]
    assert parts[1].strip() == printable(text)


def test_chat_ends_at_an_empty_line_and_names_the_nearest_client(
    write_config, tmp_path, fedsdr, monkeypatch
):
    run = tmp_path / "run"
    run_experiment(write_config("federation.rounds=1"), run, SILENT)
    code, out, _ = chat_about(["one", "two", "", "three"], fedsdr, run, monkeypatch)
    assert (code, out.count("base:"), out.count("client bank:")) == (0, 2, 2)
    code, _, said = chat_about(["one"], fedsdr, run, monkeypatch, "--client", "banc")
    assert code == 2
    assert "did you mean 'bank'" in said
