import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from tiny import tiny_llama
from tiny_tokenizers import tiny_tokenizer
from transformers import AutoModelForCausalLM

from fedsdr.data.clients import load_clients
from fedsdr.distill.prompts import fill, load_prompts, placeholders_of
from fedsdr.distill.records import read_records
from fedsdr.errors import UserError
from fedsdr.evaluation.held_out import greedy
from fedsdr.progress import SILENT
from fedsdr.runs import run as run_module
from fedsdr.runs import teacher_setup
from fedsdr.runs.client_runtime import open_runtime
from fedsdr.runs.rewriting import distill_clients
from fedsdr.runs.run import run_experiment
from fedsdr.runs.teacher_setup import prepare_rewriting
from fedsdr.types import Generation, Turn


def openvino_reading(runtime, monkeypatch, tmp_path, answers):
    """Put a fake in place of OpenVINO that answers as the loaded model ("right"), with other text
    ("wrong") or not at all ("unreadable"), by the end of the file's name; return the paths read.
    """
    read = []

    def openvino(path, *_, **__):
        read.append(path)
        answer = answers[next(part for part in answers if path.name.endswith(part))]
        if answer == "unreadable":
            raise UserError("no such architecture")
        if answer == "right":
            return runtime.generate(3)
        return lambda asked, _: (Generation(r.id, "something else", True, 1, 1) for r in asked)

    choice = "openvino", "fastest"
    monkeypatch.setattr(teacher_setup, "choose_engine", lambda *a, **k: choice)
    monkeypatch.setattr(teacher_setup, "import_extra", lambda *a: None)
    monkeypatch.setattr(teacher_setup, "version", lambda package: "1")
    monkeypatch.setattr("fedsdr.teachers.openvino.openvino_generate", openvino)
    monkeypatch.setattr(teacher_setup, "cache_folder", lambda: tmp_path)
    return read


@pytest.fixture
def gguf_site(write_config, tmp_path):
    """A runtime with the model of a folder, which says that it came from a .gguf file."""

    def open_(engine="auto"):
        runtime = open_runtime(write_config(f"teacher.engine={engine}"), tmp_path / "run")
        base = replace(
            runtime.base, gguf=tmp_path / "model.gguf", name=str(tmp_path / "model.gguf")
        )
        return replace(runtime, base=base)

    return open_


def test_auto_takes_the_fast_engine_where_it_answers_as_the_loaded_model_does(
    gguf_site, monkeypatch, tmp_path
):
    runtime = gguf_site()
    read = openvino_reading(runtime, monkeypatch, tmp_path, {"model.gguf": "right"})
    rewriting = prepare_rewriting(runtime)
    assert (rewriting.teacher.engine, rewriting.why) == ("openvino 1", "fastest")
    assert read == [tmp_path / "model.gguf"]


def test_an_engine_that_was_checked_before_is_loaded_for_a_missing_rewrite_alone(
    gguf_site, monkeypatch, tmp_path
):
    runtime = gguf_site()
    read = openvino_reading(runtime, monkeypatch, tmp_path, {"model.gguf": "right"})
    first, second = prepare_rewriting(runtime), prepare_rewriting(runtime)
    assert (second.teacher, second.why) == (first.teacher, first.why)
    assert len(read) == 1
    assert list(second.generate([], greedy(1))) == []
    assert len(read) == 2


@pytest.mark.parametrize("engine", ["auto", "openvino"])
def test_a_copy_of_the_file_is_taken_where_the_engine_misreads_the_file_itself(
    engine, gguf_site, monkeypatch, tmp_path
):
    runtime = gguf_site(engine)
    answers = {"-fp16.gguf": "right", "model.gguf": "wrong"}
    read = openvino_reading(runtime, monkeypatch, tmp_path, answers)
    monkeypatch.setattr(teacher_setup, "write_fp16_copy", lambda source, to: read.append(source))
    rewriting = prepare_rewriting(runtime)
    assert rewriting.teacher.engine == "openvino 1 fp16 copy"
    assert "fp16 copy" in rewriting.why
    copy = tmp_path / "models" / f"model-{runtime.base.fingerprint[:12]}-fp16.gguf"
    own = tmp_path / "model.gguf"
    assert read == [own, own, copy]  # tried, copied, tried


@pytest.mark.parametrize("what", ["wrong", "unreadable"])
def test_auto_rejects_an_engine_that_computes_another_model_or_cannot_read_it(
    what, gguf_site, monkeypatch, tmp_path
):
    runtime = gguf_site()
    openvino_reading(runtime, monkeypatch, tmp_path, {".gguf": what})
    monkeypatch.setattr(teacher_setup, "write_fp16_copy", lambda source, to: None)
    rewriting = prepare_rewriting(runtime)
    assert rewriting.teacher.engine.startswith("transformers")
    assert {"wrong": "differ from those of the loaded model", "unreadable": "no such architecture"}[
        what
    ] in rewriting.why


def test_a_named_engine_is_used_although_it_answers_otherwise_and_the_reason_says_so(
    gguf_site, monkeypatch, tmp_path
):
    runtime = gguf_site("openvino")
    openvino_reading(runtime, monkeypatch, tmp_path, {".gguf": "wrong"})
    monkeypatch.setattr(teacher_setup, "write_fp16_copy", lambda source, to: None)
    rewriting = prepare_rewriting(runtime)
    assert rewriting.teacher.engine == "openvino 1"
    assert "answers differ" in rewriting.why


def test_a_named_engine_that_cannot_read_the_model_says_so_at_once(
    gguf_site, monkeypatch, tmp_path
):
    runtime = gguf_site("openvino")
    openvino_reading(runtime, monkeypatch, tmp_path, {".gguf": "unreadable"})
    monkeypatch.setattr(teacher_setup, "write_fp16_copy", lambda source, to: None)
    with pytest.raises(UserError, match="no such architecture"):
        prepare_rewriting(runtime)


def test_a_model_folder_is_exported_once_and_the_export_is_read(
    write_config, monkeypatch, tmp_path, model_folder
):
    runtime = open_runtime(write_config("teacher.engine=auto"), tmp_path / "run")
    read = openvino_reading(runtime, monkeypatch, tmp_path, {"-openvino": "right"})
    exported = []

    def export(source, target):
        exported.append(source)
        target.mkdir(parents=True)

    monkeypatch.setattr(teacher_setup, "export_folder", export)
    for _ in range(2):
        rewriting = prepare_rewriting(runtime)
        assert rewriting.teacher.engine == "openvino 1 export"
    assert exported == [model_folder]
    assert set(read) == {
        tmp_path / "models" / f"{model_folder.name}-{runtime.base.fingerprint[:12]}-openvino"
    }


def vllm_chosen(monkeypatch):
    monkeypatch.setattr(teacher_setup, "choose_engine", lambda *a, **k: ("vllm", "fastest"))
    monkeypatch.setattr(teacher_setup, "version", lambda package: "1")
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))


def test_vllm_loads_the_weights_of_the_base_in_its_dtype_which_its_rewrites_depend_on(
    write_config, monkeypatch, tmp_path, model_folder
):
    vllm_chosen(monkeypatch)
    loaded, teachers = [], []
    for dtype in ("fp32", "bf16"):
        config = write_config("teacher.engine=auto", f"model.dtype={dtype}")
        runtime = open_runtime(config, tmp_path / "run")

        def vllm(model, *_, dtype, runtime=runtime, **__):
            loaded.append((model, dtype))
            return runtime.generate(3)

        monkeypatch.setattr("fedsdr.teachers.vllm.vllm_generate", vllm)
        rewriting = prepare_rewriting(runtime)
        assert rewriting.why == "fastest"
        teachers.append(rewriting.teacher.engine)
    assert loaded == [(str(model_folder), torch.float32), (str(model_folder), torch.bfloat16)]
    assert teachers == ["vllm 1 torch.float32", "vllm 1 torch.bfloat16"]


def test_vllm_that_cannot_start_leaves_rewriting_to_transformers_or_says_so_if_it_was_named(
    write_config, monkeypatch, tmp_path
):
    # The message of vLLM 0.9.1, issue 20305 of vllm-project/vllm.
    reason = "Free memory on device (31.44/47.38 GiB) on startup is less than desired GPU memory"

    def fail(**arguments):
        raise ValueError(f"{reason}\nutilization")

    runtimes = {
        engine: open_runtime(write_config(f"teacher.engine={engine}"), tmp_path / "run")
        for engine in ("auto", "vllm")
    }
    vllm_chosen(monkeypatch)
    sys.modules["vllm"].LLM = fail
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 2))
    rewriting = prepare_rewriting(runtimes["auto"])
    assert rewriting.teacher.engine.startswith("transformers 1 ")
    assert reason in rewriting.why
    with pytest.raises(UserError, match=r"cannot start \(ValueError: Free memory") as error:
        prepare_rewriting(runtimes["vllm"])
    assert "\n" not in rewriting.why + str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["teacher.engine=openai"], "'url' and 'model'"),
        (["teacher.url=http://localhost:1"], "'url' and 'model'"),
        (["teacher.model=./gpt"], r"teacher\.model: .*gpt: no such folder"),
        (["teacher.model=x", "teacher.engine=vllm"], "set teacher.engine = 'transformers'"),
        (["teacher.refresh=1", "teacher.model=x"], "teacher.refresh: the global model rewrites"),
        (["teacher.refresh=1", "teacher.engine=openvino"], "or teacher.refresh = 0"),
        (
            ["teacher.engine=openai", "teacher.model=m", "teacher.url=http://example.org/v1"],
            "allow_remote",
        ),
        (["teacher.prompts=none.toml"], "none.toml: no such file"),
    ],
)
def test_a_wrong_teacher_is_reported_before_anything_is_written(
    overrides, words, write_config, tmp_path
):
    with pytest.raises(UserError, match=words):
        run_experiment(write_config(*overrides), tmp_path / "run", SILENT)
    assert not (tmp_path / "run").exists()


def test_a_run_follows_distill_in_the_same_folder(write_config, tmp_path):
    config = write_config("federation.rounds=1")
    runtime, clients = open_runtime(config, tmp_path / "run"), load_clients(config.data)
    audits = distill_clients(runtime, prepare_rewriting(runtime), clients, SILENT)
    assert {a.generated for a in audits.values()} == {9}
    results = run_experiment(config, tmp_path / "run", SILENT)
    assert results["cost"]["tokens"]["rewrite"] == sum(a.new_tokens for a in audits.values())
    facts = json.loads((tmp_path / "run/distilled/audit.json").read_text())
    assert facts["clients"].keys() == {"bank", "clinic", "school"}


def test_test_rows_are_never_rewritten(write_config, tmp_path):
    config = write_config("federation.rounds=1")
    run_experiment(config, tmp_path / "run", SILENT)
    for client in load_clients(config.data):
        lines = (tmp_path / "run/distilled" / f"{client.client_id}.jsonl").read_text()
        ids = {json.loads(line)["id"] for line in lines.splitlines()}
        assert ids == {example.id for example in client.raw}
        assert not any(example.response in lines for example in client.test)


def test_a_run_on_changed_data_is_not_resumed(write_config, tmp_path, data_folder):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in data_folder.iterdir():
        (copy / file.name).write_text(file.read_text())
    overrides = (f"data.clients={copy}", "method.name=plain")
    run_experiment(write_config("federation.rounds=1", *overrides), tmp_path / "run", SILENT)
    with (copy / "bank.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "new", "input": "", "output": "row"}) + "\n")
    with pytest.raises(UserError, match="data of client 'bank' have changed"):
        run_experiment(write_config(*overrides), tmp_path / "run", SILENT, resume=True)


def test_another_local_model_can_rewrite(write_config, tmp_path, model_folder):
    other = tmp_path / "other"
    tokenizer = tiny_tokenizer()
    tiny_llama(seed=7, packed=False, vocab_size=len(tokenizer)).save_pretrained(other)
    tokenizer.save_pretrained(other)
    texts = {}
    for name in ("other", str(model_folder), ""):  # the last: the seed model
        config = write_config("federation.rounds=1", f"teacher.model={name and tmp_path / name}")
        runtime = open_runtime(config, tmp_path / f"run{len(texts)}")
        rewriting = prepare_rewriting(runtime)
        clients = load_clients(config.data)
        distill_clients(runtime, rewriting, clients, SILENT)
        texts[name] = [record.rewrite for record in read_records(runtime.distilled("bank"))]
    own, again, others = texts[""], texts[str(model_folder)], texts["other"]
    assert own == again != others


def test_rewrites_are_made_anew_by_the_then_global_model_and_a_resumed_run_has_the_same(
    write_config, tmp_path, monkeypatch
):
    config = write_config("teacher.refresh=1", "teacher.temperature=0.0", "train.lr=0.1",
                          "data.max_examples=3")  # fmt: skip
    out = tmp_path / "whole"
    results = run_experiment(config, out, SILENT)
    names = ("bank", "clinic", "school")
    first = [Path(f"distilled/{name}.jsonl") for name in names]
    anew = [Path(f"distilled/round-000{r}/{name}/rewrites.jsonl") for r in (1, 2) for name in names]
    files = [*first, *anew]
    assert set(files) == {p.relative_to(out) for p in out.glob("distilled/**/*.jsonl")}
    tokens = sum(record.new_tokens for path in files for record in read_records(out / path))
    assert results["cost"]["tokens"]["rewrite"] == tokens
    # The answer of the adapter after round 1 to the first request, by PEFT and transformers.
    run_experiment(replace(config, federation=replace(config.federation, rounds=1)),
                   tmp_path / "one", SILENT)  # fmt: skip
    runtime = open_runtime(config, tmp_path / "other")
    plain = AutoModelForCausalLM.from_pretrained(config.model.name)
    tuned = PeftModel.from_pretrained(plain, tmp_path / "one/global").eval()
    raw = load_clients(config.data)[0].raw[0]
    (values,) = placeholders_of(raw)
    prompt = runtime.renderer.prompt((Turn("user", fill(load_prompts()["general"], values)),))
    with torch.no_grad():
        new = tuned.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
    text = runtime.base.tokenizer.decode(new[0, len(prompt) :], skip_special_tokens=True)
    old, record = (read_records(out / path)[0] for path in (first[0], anew[0]))
    assert record.rewrite == text.strip() != old.rewrite
    # Killed while the clients of round 2 rewrite: one is done.
    real, calls = run_module.train_at, []

    def train(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(run_module, "train_at", train)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, tmp_path / "cut", SILENT)
    monkeypatch.setattr(run_module, "train_at", real)
    run_experiment(config, tmp_path / "cut", SILENT, resume=True)
    for path in (*files, Path("global/adapter_model.safetensors")):
        assert (tmp_path / "cut" / path).read_bytes() == (out / path).read_bytes()
    assert (
        runtime.distilled("bank", 3) == tmp_path / "other/distilled/round-0002/bank/rewrites.jsonl"
    )


def test_repair_asks_again_and_the_audit_says_so(write_config, tmp_path):
    config = write_config("teacher.filter=repair", "teacher.attempts=2", "federation.rounds=1")
    results = run_experiment(config, tmp_path / "run", SILENT)
    facts = json.loads((tmp_path / "run/distilled/audit.json").read_text())["clients"]["bank"]
    assert facts["attempts"] == 2 * (facts["answers"] - facts["rewritten"])
    assert facts["all_new_tokens"] > facts["attempt_tokens"] > 0
    assert results["cost"]["tokens"]["rewrite"] >= facts["all_new_tokens"]
