"""Model folders and .gguf files that are damaged, incomplete, or of another model.

The faults are those that were seen in downloads and hand-made folders; each must be refused in one
line that names the file or tensors, quickly, and before a run folder is made.
"""

import json
import resource
import shutil
import struct
import time

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from tiny import tiny_llama
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config

from fedsdr.config import ModelConfig
from fedsdr.errors import UserError
from fedsdr.models.base_model import choose_device, load_base, load_shape, load_tokenizer
from fedsdr.models.gguf_header import stored_in_gguf

UP = "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


@pytest.fixture
def folder(model_folder, tmp_path):
    """A copy of the tiny model's folder, to be damaged."""
    return shutil.copytree(model_folder, tmp_path / "model")


def config(**changes):
    def change(folder):
        values = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(values))

    return change


def weights(edit):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def sharded(index=None, without=""):
    """Split the weights into two files and an index, the latter with other content, or leave a
    file out."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        files = {
            name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)
        }
        for file in set(files.values()):
            part = {name: tensors[name] for name in tensors if files[name] == file}
            save_file(part, folder / file, metadata={"format": "pt"})
        content = {"metadata": {}, "weight_map": files} if index is None else index
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        if without:
            (folder / without).unlink()

    return change


def refused(call, *arguments):
    """Return the message of a refusal, which is one line and comes quickly."""
    began = time.perf_counter()
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert time.perf_counter() - began < 5
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


FAULTS = {
    "another model's file": (
        lambda folder: save_file(
            {"x": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"}
        ),
        ["21 tensors (lm_head.weight, ", "missing", "1 tensor (x) in its files"],
    ),
    "one tensor missing": (weights(lambda w: w.pop(UP)), [UP, "missing"]),
    "a norm missing": (weights(lambda w: w.pop("model.norm.weight")), ["model.norm.weight"]),
    "no head, not tied": (
        weights(lambda w: w.pop("lm_head.weight")),
        ["lm_head.weight", "tie_word_embeddings = true"],
    ),
    "one tensor more": (
        weights(lambda w: w.update(extra=torch.ones(2))),
        ["(extra)", "not in the"],
    ),
    "one tensor renamed": (
        weights(lambda w: w.update({"model.layers.1.mlp.up.weight": w.pop(UP)})),
        [UP, "model.layers.1.mlp.up.weight"],
    ),
    "a scalar": (weights(lambda w: w.update({UP: torch.tensor(1.0)})), [f"{UP}: [], not [64, 32]"]),
    "not finite": (weights(lambda w: w[UP].fill_(torch.nan)), ["not finite"]),
    "one layer more": (config(num_hidden_layers=3), ["model.layers.2.", "num_hidden_layers"]),
    "one layer less": (config(num_hidden_layers=1), ["model.layers.1.", "num_hidden_layers"]),
    "no layers": (config(num_hidden_layers=0), ["18 tensors (model.layers.0."]),
    "a head that is not tied": (config(tie_word_embeddings=True), ["tie_word_embeddings"]),
    "hidden size": (config(hidden_size=64), ["lm_head.weight: [400, 32], not [400, 64]"]),
    "a smaller vocabulary": (config(vocab_size=100), ["[400, 32], not [100, 32]"]),
    "a larger vocabulary": (config(vocab_size=500), ["[400, 32], not [500, 32]"]),
    "heads": (config(num_key_value_heads=4), ["k_proj.weight: [16, 32], not [32, 32]"]),
    "heads that do not divide": (config(num_attention_heads=3), ["attention heads"]),
    "no heads": (config(num_attention_heads=0), ["cannot be loaded"]),
    "negative size": (config(hidden_size=-1), ["hidden size"]),
    "a size as text": (config(hidden_size="wide"), ["hidden_size", "wide"]),
    "a billion layers": (config(num_hidden_layers=10**9), ["config.json: num_hidden_layers"]),
    "many layers": (config(num_hidden_layers=999), ["much larger"]),
    "layers without width": (
        config(num_hidden_layers=999, hidden_size=0, head_dim=8),
        ["much larger"],
    ),
    "a billion wide": (config(hidden_size=10**9), ["much larger"]),
    "a number of 400 digits": (config(hidden_size=10**400), ["model.name"]),
    "a vocabulary of 10 billion": (config(vocab_size=10**10), ["much larger"]),
    "a nested count": (config(text_config={"num_layers": 10**12}), ["num_layers"]),
    "activation": (config(hidden_act="nosuch"), ["nosuch"]),
    "rope": (config(rope_parameters={"rope_type": "nosuch"}), ["nosuch"]),
    "dtype": (config(dtype="nosuch"), ["nosuch"]),
    "model type": (config(model_type="nosuch"), ["nosuch"]),
    "model type as a list": (config(model_type=["llama"]), ["cannot be loaded"]),
    "an encoder's type": (config(model_type="bert"), ["bert."]),
    "own code": (
        config(model_type="own", auto_map={"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}),
        ["custom code"],
    ),
    "config.json cut": (text("config.json", "{"), ["config.json: not valid JSON"]),
    "config.json is a list": (text("config.json", "[]"), ["config.json: must hold"]),
    "config.json nested deeply": (text("config.json", "[" * 100_000), ["config.json: not valid"]),
    "shard missing": (
        sharded(without="model-00002-of-00002.safetensors"),
        ["model-00002-of-00002.safetensors: missing, 1 of the 2"],
    ),
    "index missing": (sharded(without="model.safetensors.index.json"), ["index.json: missing"]),
    "index without a map": (sharded({}), ["index.json", "weight_map"]),
    "index of nothing": (sharded({"weight_map": {}}), ["index.json", "weight_map"]),
    "index to other folders": (sharded({"weight_map": {UP: "../x.safetensors"}}), ["weight_map"]),
    "weights cut": (cut("model.safetensors", 100_000), ["model.safetensors: not a complete"]),
    "weights cut in the header": (
        cut("model.safetensors", 20),
        ["model.safetensors: not a complete"],
    ),
    "weights empty": (cut("model.safetensors", 0), ["model.safetensors: not a complete"]),
    "weights of a web page": (text("model.safetensors", "<html>"), ["not a complete"]),
    "weights as a pointer": (text("model.safetensors", POINTER), ["model.safetensors", "git lfs"]),
    "tokenizer as a pointer": (text("tokenizer.json", POINTER), ["tokenizer.json", "git lfs"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer"]),
    "tokenizer cut": (text("tokenizer.json", "{"), ["cannot be loaded"]),
    "tokenizer of nothing": (text("tokenizer.json", "{}"), ["cannot be loaded"]),
    "tokenizer's config as a list": (text("tokenizer_config.json", "[]"), ["cannot be loaded"]),
    "generation config as a list": (text("generation_config.json", "[]"), ["cannot be loaded"]),
    "quantised, no package": (
        config(quantization_config={"quant_method": "hqq"}),
        ["HQQ", "install"],
    ),
    "quantised in no way": (config(quantization_config={}), ["quant_method"]),
    "an adapter in it": (text("adapter_config.json", "{}"), ["adapter_config.json"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_model_folder_is_refused_in_one_line(folder, fault):
    damage, expected = FAULTS[fault]
    damage(folder)
    message = refused(load_base, ModelConfig(name=str(folder), device="cpu"))
    assert str(folder) in message
    assert [part for part in expected if part not in message] == []


@pytest.mark.parametrize(
    "fault", ["a billion layers", "many layers", "weights cut", "shard missing"]
)
def test_shapes_and_tokenizer_of_such_a_folder_are_refused_or_loaded_in_bounded_memory(
    folder, fault
):
    FAULTS[fault][0](folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert str(folder) in refused(load_shape, ModelConfig(name=str(folder), device="cpu"))
    if fault != "many layers":
        assert str(folder) in refused(load_tokenizer, ModelConfig(name=str(folder)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_nothing_is_written_when_the_model_is_refused(folder, write_config, fedsdr, tmp_path):
    write_config(f"model.name={folder}")
    weights(lambda w: w.pop(UP))(folder)
    config, out = tmp_path / "config.toml", tmp_path / "run"
    for arguments in (["run", config, "--out", out], ["distill", config, "--out", out]):
        code, _, error = fedsdr(*arguments, "--set", f"model.name={folder}")
        assert (code, out.exists()) == (2, False)
        assert UP in error
        assert "Traceback" not in error


@pytest.mark.parametrize("change", [sharded(), config(vocab_size=400)], ids=["shards", "same"])
def test_a_complete_folder_loads(folder, change):
    change(folder)
    expected = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    loaded = load_base(ModelConfig(name=str(folder), device="cpu", dtype="fp32")).model
    assert all(torch.equal(loaded.get_parameter(name), expected[name]) for name in expected)


def test_a_tied_head_need_not_be_stored_and_old_buffers_may_be(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    tiny_llama(packed=False, vocab_size=400, tie_word_embeddings=True).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    old = "model.layers.0.self_attn.rotary_emb.inv_freq"
    weights(lambda w: w.update({old: torch.ones(4)}))(tmp_path)
    model = load_base(ModelConfig(name=str(tmp_path), device="cpu")).model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_masks_that_gpt2_files_hold_are_not_a_fault(tmp_path):
    shape = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=400, n_positions=16)
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    mask = torch.ones(1, 1, 16, 16)
    weights(lambda w: w.update({"transformer.h.0.attn.bias": mask}))(tmp_path)
    assert load_base(ModelConfig(name=str(tmp_path), device="cpu")).model.config.n_embd == 8


@pytest.mark.parametrize("device", ["mps", "meta", "xpu", "hpu", "cpu:3", "cuda:", "tpu", ""])
def test_a_device_that_cannot_be_used_is_refused(device):
    assert "use auto, cpu, cuda or cuda:1" in refused(choose_device, device)
    assert ("float64" in refused(choose_device, device)) == (device == "mps")


def header(tensors=0, keys=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def string(content):
    return struct.pack("<Q", len(content)) + content


def number(name, kind, value):
    return string(name) + struct.pack("<I", kind) + value


ARCHITECTURE = string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
BILLION = struct.pack("<I", 10**9)
GGUF_FAULTS = {
    "empty": (b"", "ends within the header"),
    "another kind": (bytes(range(256)), "begin with GGUF"),
    "pointer": (POINTER.encode(), "git lfs pull"),
    "version": (header(version=99), "version 99"),
    "tensors": (header(tensors=2**60, keys=1) + ARCHITECTURE, "tensors"),
    "keys": (header(keys=2**60), "keys"),
    "string": (header(keys=1) + struct.pack("<Q", 2**60), "string"),
    "array": (header(keys=1) + number(b"a", 9, struct.pack("<IQ", 4, 2**60)), "array"),
    "arrays in arrays": (header(keys=1) + number(b"a", 9, struct.pack("<IQ", 9, 1)), "arrays"),
    "value": (header(keys=1) + number(b"a", 77, b""), "type 77"),
    "layers": (
        header(keys=2) + ARCHITECTURE + number(b"llama.block_count", 4, BILLION),
        "block_count",
    ),
    "dimensions": (
        header(tensors=1) + string(b"t") + struct.pack("<I4Q", 4, *[2**31] * 4) + bytes(12),
        "t ends at byte",
    ),
    "no weights": (header(keys=1) + ARCHITECTURE, "much larger"),
}


@pytest.mark.parametrize("fault", GGUF_FAULTS)
def test_a_damaged_gguf_file_is_refused_in_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, fault
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    content, expected = GGUF_FAULTS[fault]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    message = refused(load_base, ModelConfig(name=str(path), device="cpu"))
    assert str(path) in message
    assert expected in message
    assert [p.name for p in (tmp_path / "cache").rglob("*")] in ([], ["models", ".lock"])


def test_the_weights_of_a_gguf_file_are_counted_and_a_missing_byte_is_found(tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((5, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert stored_in_gguf(path) == (2, 5 * 32 + 64)
    complete = path.read_bytes().rstrip(b"\0")  # padding after the last tensor
    path.write_bytes(complete[:-1])
    assert "ends" in refused(stored_in_gguf, path)
