"""Generate on the CPU with OpenVINO GenAI, from a .gguf file or an OpenVINO model folder."""

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # supported by its GGUF reader
# The default KV cache is 8-bit with one scale per block of tokens, so a row's text would depend on
# the rest of the batch. Without the precision hint, CPUs with bf16 units compute in bf16.
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


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
    if problem := why_unreadable(model_path):
        raise UserError(
            f"{model_path}: OpenVINO cannot read it ({problem}); it reads a folder with "
            f"openvino_model.xml or a .gguf file of {', '.join(GGUF_ARCHITECTURES)}; "
            "set teacher.engine = 'transformers'"
        )
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 0  # grows as needed; a fixed size would drop requests
    try:
        pipeline = genai.ContinuousBatchingPipeline(str(model_path), scheduler, "CPU", PROPERTIES)
    except (RuntimeError, IndexError) as error:  # raised by its C++ code for unusable files
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{model_path}: OpenVINO cannot load it ({reason}); set teacher.engine = 'transformers'"
        ) from error
    tokenizer, own_stop_ids = pipeline.get_tokenizer(), pipeline.get_config().stop_token_ids
    request_ids = itertools.count()  # unique over all calls

    def config(seed: int, decoding: Decoding) -> Any:
        config = genai.GenerationConfig(
            max_new_tokens=decoding.max_new_tokens, do_sample=decoding.temperature > 0
        )
        config.stop_token_ids = own_stop_ids | set(stop_ids)
        if config.do_sample:
            config.rng_seed = seed
            config.temperature, config.top_p = decoding.temperature, decoding.top_p
            if decoding.top_k:
                config.top_k = decoding.top_k
        return config

    def answer(request: GenerationRequest, prompt_tokens: int, handle: Any) -> Generation:
        if handle.get_status() != genai.GenerationStatus.FINISHED:
            raise UserError(
                f"{model_path}: OpenVINO ran out of memory for its KV cache; "
                "lower teacher.batch_size or teacher.max_new_tokens"
            )
        (output,) = handle.read_all()
        return Generation(
            id=request.id,
            text=tokenizer.decode(output.generated_ids),
            finished=output.finish_reason == genai.GenerationFinishReason.STOP,
            prompt_tokens=prompt_tokens,
            new_tokens=len(output.generated_ids),
        )

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        waiting = iter(requests)
        running: list[tuple[GenerationRequest, int, Any]] = []
        try:
            while True:
                # The scheduler's max_num_seqs is not enforced while prompts are split.
                for request in itertools.islice(waiting, batch_size - len(running)):
                    ids = list(render(request.turns))
                    handle = pipeline.add_request(
                        next(request_ids),
                        tensor(np.array([ids], dtype=np.int64)),
                        config(request.seed, decoding),
                    )
                    running.append((request, len(ids), handle))
                if not running:
                    return
                pipeline.step()
                ended = [
                    job for job in running if job[2].get_status() != genai.GenerationStatus.RUNNING
                ]
                running = [job for job in running if job not in ended]
                for request, prompt_tokens, handle in ended:
                    yield answer(request, prompt_tokens, handle)
        finally:  # the caller may stop early; later calls must not continue these
            for _, _, handle in running:
                handle.cancel()

    return generate
