"""What is exported loads in plain libraries and says how it was made, without any row."""

import json
import stat

import gguf
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from fedsdr.config import load_config
from fedsdr.progress import SILENT
from fedsdr.runs import export
from fedsdr.runs.export import export_model
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run
from fedsdr.types import TokenRow


@pytest.fixture(scope="module")
def module_config(tmp_path_factory, data_folder, model_folder):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(f"""
[model]
name = "{model_folder}"
dtype = "fp32"
[data]
clients = "{data_folder}"
max_length = 128
[federation]
rounds = 1
[train]
local_epochs = 1
batch_size = 4
lr = 1e-2
[lora]
rank = 2
alpha = 4
rank_pattern = {{"layers.1.self_attn.v_proj" = 3}}
[teacher]
engine = "transformers"
max_new_tokens = 4
filter = "none"
[evaluation]
max_new_tokens = 4
retention = false
""")
    return load_config(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory, module_config):
    folder = tmp_path_factory.mktemp("run") / "run"
    run_experiment(module_config, folder, SILENT)
    return folder


@pytest.mark.parametrize("client", ["", "clinic"])
def test_an_adapter_loads_by_its_folder_alone_with_the_loss_of_the_branches(client, run, tmp_path):
    said = export_model(run, tmp_path / "a", client_id=client)
    assert f'AutoPeftModelForCausalLM.from_pretrained("{tmp_path / "a"}")' in said
    assert f"--lora-modules a={tmp_path / 'a'}" in said
    assert "--max-lora-rank 8 " in said
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    tokens = tuple(tokenizer("what is the rate of the loan").input_ids)
    runtime, state = open_run(run)
    runtime.model.set(dict(state.shared) | runtime.private_of("clinic", state))
    row = TokenRow("row", tokens, (True,) * len(tokens))
    with runtime.model.using(*(("R", "S") if client else ("R",))):
        ((expected, count),) = runtime.losses_of([row])
    ids = torch.tensor([tokens])
    with torch.no_grad():
        loss = float(loaded(ids, labels=ids).loss)
    assert loss == pytest.approx(expected / count, rel=1e-5)
    for path in (tmp_path / "a").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o044, path


@pytest.mark.parametrize("merge", [False, True])
def test_the_card_has_the_numbers_of_the_run_and_neither_rows_nor_names(
    merge, run, tmp_path, data_folder
):
    export_model(run, tmp_path / "a", merge=merge)
    text = (tmp_path / "a" / "README.md").read_text()
    data = ModelCard(text).data
    assert data.library_name == ("transformers" if merge else "peft")
    assert data.pipeline_tag == "text-generation"
    results = json.loads((run / "results.json").read_text())
    for model in ("base", "global", "client"):
        entry = results["mean"][model]
        assert f"| {entry['loss']:.3f} | {entry['score']:.3f} |" in text
    total = sum(client["num_train"] for client in results["clients"].values())
    assert f"| training rows | {total:,} (" in text
    assert "No differential privacy" in text
    assert not any(name in text for name in ("bank", "clinic", "school"))
    for path in data_folder.iterdir():
        for line in path.read_text().splitlines():
            assert json.loads(line)["output"] not in text


def test_the_base_is_named_by_its_hub_id(run, tmp_path, model_folder, monkeypatch):
    monkeypatch.setitem(export.HUB_IDS, str(model_folder), "org/small")
    said = export_model(run, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/small"
    assert "vllm serve org/small --enable-lora" in said
    assert ModelCard((tmp_path / "a" / "README.md").read_text()).data.base_model == "org/small"
    assert export.HUB_IDS["embedded:smollm2-135m-instruct"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_gguf_adapter_holds_the_products_of_the_branches_as_llama_cpp_reads_them(run, tmp_path):
    said = export_model(run, tmp_path / "a", client_id="clinic", gguf=True)
    assert f"--lora {tmp_path / 'a' / 'adapter.gguf'}" in said
    reader = gguf.GGUFReader(tmp_path / "a" / "adapter.gguf")
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert facts["general.type"] == "adapter"
    assert facts["adapter.type"] == "lora"
    assert facts["general.architecture"] == "llama"
    found = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    runtime, state = open_run(run)
    values = dict(state.shared) | runtime.private_of("clinic", state)
    config = runtime.model.model.config
    names = {"q_proj": "attn_q", "v_proj": "attn_v"}
    assert len(found) == 2 * len(runtime.model.layers) == 8
    for layer, scale in runtime.model.scales.items():
        number, leaf = layer.split(".")[2], layer.rpartition(".")[2]
        a, b = (found[f"blk.{number}.{names[leaf]}.weight.lora_{kind}"] for kind in "ab")
        change = facts["adapter.lora.alpha"] / len(a) * (b @ a)  # as llama.cpp scales it
        if leaf == "q_proj":
            undo = LlamaTensorProcessor(config)._reverse_permute_weights
            heads = config.num_attention_heads
            change = torch.tensor(undo(change.numpy(), heads, heads))
        expected = sum(
            scale * values[f"{br}/{layer}.lora_B"] @ values[f"{br}/{layer}.lora_A"] for br in "RS"
        )
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)


def test_a_gguf_of_merged_weights_is_refused_with_the_tool_that_makes_one(run, tmp_path, fedsdr):
    code, _, err = fedsdr("export", run, "--out", tmp_path / "a", "--merge", "--gguf")
    assert (code, err.count("\n")) == (2, 1)
    assert "convert_hf_to_gguf.py" in err
    assert not (tmp_path / "a").exists()
