"""Generation on the CPU with OpenVINO GenAI, from a .gguf file or an exported OpenVINO folder."""

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

GGUF_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # what its GGUF reader builds a graph for
# By default the KV cache is 8-bit with one scale for each block of tokens, so how a prompt is cut
# into steps, and with it the rest of the batch, changes the text; fp32 has no scale to share.
# On CPUs with bf16 units the arithmetic would be bf16 without the first hint.
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def why_unreadable(path: str | Path) -> str:
    """Return why OpenVINO cannot read the model at `path`, '' when nothing speaks against it."""
    path = Path(path)
    if path.is_dir():
        exported = (path / "openvino_model.xml").is_file()
        return "" if exported else "a folder without openvino_model.xml"
    if not path.is_file():
        return "there is no such file"
    architecture = gguf_architecture(path)
    if not architecture:
        return "not a GGUF file"
    return "" if architecture in GGUF_ARCHITECTURES else f"its architecture is {architecture}"


def gguf_architecture(path: Path) -> str:
    """Return `general.architecture` of a GGUF file, '' when `path` is none.

    Reads only the head: magic, version (u32), number of tensors and of keys (u64), then the first
    key, which by convention is this one: length (u64), name, type (u32, 8 is text), length, text.
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

    `render` makes the token ids of a prompt, so that it is the same prompt as in other engines.
    `batch_size` bounds the conversations in flight, and so the KV cache: it grows with them, at
    2 * layers * KV heads * head size * 4 bytes a token (46 kB for SmolLM2-135M).
    Generation ends at the model's own end tokens and at `stop_ids`. Only `Decoding` counts:
    sampling defaults that came with the model are not used. The same seed gives the same text in
    any batch and order. Raises UserError when the package is missing or cannot read the model.
    """
    genai = import_extra("openvino_genai", "openvino")
    tensor = import_extra("openvino", "openvino").Tensor
    if problem := why_unreadable(model_path):
        raise UserError(
            f"{model_path}: OpenVINO reads a folder with openvino_model.xml or a .gguf file of "
            f"{', '.join(GGUF_ARCHITECTURES)}, but this is not one ({problem}); "
            "set teacher.engine = 'transformers'"
        )
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 0  # grows as needed; what does not fit a fixed size is dropped
    try:
        pipeline = genai.ContinuousBatchingPipeline(str(model_path), scheduler, "CPU", PROPERTIES)
    except (RuntimeError, IndexError) as error:  # what its C++ throws for a file it cannot use
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{model_path}: OpenVINO cannot load it ({reason}); set teacher.engine = 'transformers'"
        ) from error
    tokenizer, own_stop_ids = pipeline.get_tokenizer(), pipeline.get_config().stop_token_ids
    numbers = itertools.count()  # of requests, over all calls

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
                f"{model_path}: OpenVINO dropped a request, its KV cache is out of memory; "
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
                # The scheduler's max_num_seqs does not bind while prompts are split, so we count.
                for request in itertools.islice(waiting, batch_size - len(running)):
                    ids = list(render(request.turns))
                    handle = pipeline.add_request(
                        next(numbers),
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
        finally:  # the caller may stop early; the next call must not go on with these
            for _, _, handle in running:
                handle.cancel()

    return generate
