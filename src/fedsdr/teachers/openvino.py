"""Generate on the CPU with OpenVINO GenAI, from a .gguf file or an OpenVINO model folder."""

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # supported by its GGUF reader
# OpenVINO's defaults make a row's text depend on the rest of the batch: an 8-bit KV cache with one
# scale per block of tokens, and on CPUs with AVX-512 VNNI activations quantised per matmul. CPUs
# with bf16 units would compute in bf16.
PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}


def why_unreadable(path: str | Path) -> str:
    """Return why OpenVINO cannot read the model at `path`, or '' if it seems readable."""
    path = Path(path)
    if path.is_dir():
        exported = (path / "openvino_model.xml").is_file()
        return "" if exported else "a folder without openvino_model.xml"
    if not path.is_file():
        return "no such file"
    architecture = gguf_architecture(path)
    if not architecture:
        return "not a GGUF file"
    return "" if architecture in GGUF_ARCHITECTURES else f"its architecture is {architecture}"


def gguf_architecture(path: Path) -> str:
    """Return `general.architecture` of a GGUF file, or '' if `path` is not one.

    Reads only the header: magic, version (u32), counts of tensors and keys (u64), then the first
    key, by convention this one: length (u64), name, type (u32, 8 is string), length, string.
    """
    key = b"general.architecture"
    start = struct.Struct(f"<4sIQQQ{len(key)}sIQ")
    with path.open("rb") as file:
        head = file.read(start.size)
        if len(head) < start.size:
            return ""
        magic, _, _, _, _, name, kind, length = start.unpack(head)
        if magic != b"GGUF" or name != key or kind != 8:
            return ""
        return file.read(min(length, 64)).decode("utf-8", "replace")


@dataclass(frozen=True)
class _Job:
    """A request in OpenVINO's scheduler."""

    request: GenerationRequest
    prompt_tokens: int
    handle: Any


def openvino_generate(
    model_path: str | Path,
    render: Callable[[Sequence[Turn]], Sequence[int]],
    *,
    batch_size: int = 32,
    stop_ids: Sequence[int] = (),
) -> Generate:
    """Load the model and return a `Generate` over OpenVINO's continuous batching.

    `render` returns the token ids of a prompt. At most `batch_size` conversations run at once; each
    token of their KV cache takes 2 * layers * KV heads * head size * 4 bytes (46 kB for
    SmolLM2-135M). Generation ends at the model's end tokens and at `stop_ids`. The model's own
    sampling defaults are ignored. A seed gives the same text in any batch and order. UserError if
    the package is missing or cannot read the model.
    """
    genai = import_extra("openvino_genai", "openvino")
    tensor = import_extra("openvino", "openvino").Tensor
    pipeline = _load(genai, model_path)
    all_stop_ids = pipeline.get_config().stop_token_ids | set(stop_ids)
    request_ids = itertools.count()  # unique over all calls

    def submit(request: GenerationRequest, decoding: Decoding) -> _Job:
        ids = list(render(request.turns))
        config = _sampling(genai, request.seed, decoding)
        config.stop_token_ids = all_stop_ids
        prompt = tensor(np.array([ids], dtype=np.int64))
        return _Job(request, len(ids), pipeline.add_request(next(request_ids), prompt, config))

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        waiting = iter(requests)
        running: list[_Job] = []
        try:
            while True:
                # The scheduler's max_num_seqs is not enforced while prompts are split.
                for request in itertools.islice(waiting, batch_size - len(running)):
                    running.append(submit(request, decoding))
                if not running:
                    return
                pipeline.step()
                active = genai.GenerationStatus.RUNNING
                ended = [job for job in running if job.handle.get_status() != active]
                running = [job for job in running if job not in ended]
                for job in ended:
                    yield _answer(genai, pipeline.get_tokenizer(), job)
        finally:  # the caller may stop early; later calls must not continue these
            for job in running:
                job.handle.cancel()

    return generate


def _load(genai: Any, model_path: str | Path) -> Any:
    """Return OpenVINO's pipeline for the model; UserError if it cannot be read."""
    if problem := why_unreadable(model_path):
        raise UserError(
            f"{model_path}: OpenVINO cannot read it ({problem}); it reads a folder with "
            f"openvino_model.xml or a .gguf file of {', '.join(GGUF_ARCHITECTURES)}; "
            "set teacher.engine = 'transformers'"
        )
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 0  # grows as needed; a fixed size would drop requests
    try:
        return genai.ContinuousBatchingPipeline(str(model_path), scheduler, "CPU", PROPERTIES)
    except (RuntimeError, IndexError) as error:  # raised by its C++ code for unusable files
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{model_path}: OpenVINO cannot load it ({reason}); set teacher.engine = 'transformers'"
        ) from error


def _answer(genai: Any, tokenizer: Any, job: _Job) -> Generation:
    """Return the answer of a job that is no longer running."""
    if job.handle.get_status() != genai.GenerationStatus.FINISHED:
        raise UserError(
            "teacher.engine: OpenVINO ran out of memory for its KV cache; "
            "lower teacher.batch_size or teacher.max_new_tokens"
        )
    (output,) = job.handle.read_all()
    return Generation(
        id=job.request.id,
        text=tokenizer.decode(output.generated_ids),
        finished=output.finish_reason == genai.GenerationFinishReason.STOP,
        prompt_tokens=job.prompt_tokens,
        new_tokens=len(output.generated_ids),
    )


def _sampling(genai: Any, seed: int, decoding: Decoding) -> Any:
    """Return OpenVINO's form of a decoding."""
    config = genai.GenerationConfig(
        max_new_tokens=decoding.max_new_tokens, do_sample=decoding.temperature > 0
    )
    if config.do_sample:
        config.rng_seed = seed
        config.temperature, config.top_p = decoding.temperature, decoding.top_p
        if decoding.top_k:
            config.top_k = decoding.top_k
    return config
