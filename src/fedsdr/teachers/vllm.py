"""Generate on CUDA with vLLM's offline engine."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fedsdr.errors import UserError, one_line
from fedsdr.extras import import_extra
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn

# Fraction of the GPU's free memory for weights and KV cache; vLLM's CUDA context needs some too.
USABLE = 0.9


def vllm_generate(
    model: str,
    render: Callable[[Sequence[Turn]], Sequence[int]],
    *,
    dtype: torch.dtype,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chunk_size: int = 512,
    stop_ids: Sequence[int] = (),
) -> Generate:
    """Load the model (a hub id or a transformers folder) and return a `Generate` over vLLM.

    `render` returns the token ids of a prompt. `dtype` is that of the weights. vLLM runs on the
    first visible GPU, in `USABLE` of what is free there now. Answers are yielded after every
    `chunk_size` requests. Each request has its own random generator, but GPU rounding depends on
    the batch, so near ties may resolve differently in another batch; recent vLLM avoids this with
    VLLM_BATCH_INVARIANT=1, at some cost in speed. UserError if vllm or a CUDA device is missing, or
    vLLM cannot start.
    """
    vllm = import_extra("vllm", "vllm")
    if not torch.cuda.is_available():
        raise UserError(
            "teacher.engine: 'vllm' needs a CUDA device, and PyTorch finds none; "
            "set teacher.engine = 'auto'"
        )
    llm = _start(
        vllm,
        model=model,
        revision=revision,
        dtype=str(dtype).removeprefix("torch."),
        trust_remote_code=trust_remote_code,
    )

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        for start in range(0, len(requests), chunk_size):
            batch = requests[start : start + chunk_size]
            prompts = [{"prompt_token_ids": list(render(request.turns))} for request in batch]
            params = [
                vllm.SamplingParams(
                    temperature=decoding.temperature,
                    top_p=decoding.top_p,
                    top_k=decoding.top_k or -1,
                    max_tokens=decoding.max_new_tokens,
                    seed=request.seed,
                    stop_token_ids=list(stop_ids),
                )
                for request in batch
            ]
            answers = llm.generate(prompts, params, use_tqdm=False)
            for request, prompt, answer in zip(batch, prompts, answers, strict=True):
                output = answer.outputs[0]
                yield Generation(
                    id=request.id,
                    text=output.text,
                    finished=output.finish_reason == "stop",
                    prompt_tokens=len(prompt["prompt_token_ids"]),
                    new_tokens=len(output.token_ids),
                )

    return generate


def _start(vllm: Any, **arguments: Any) -> Any:
    """Return vLLM's engine in `USABLE` of the free GPU memory; UserError if it cannot start."""
    torch.cuda.empty_cache()  # vLLM's process cannot use what PyTorch keeps here
    free, total = torch.cuda.mem_get_info(0)
    try:
        return vllm.LLM(**arguments, gpu_memory_utilization=USABLE * free / total)
    except Exception as error:  # it has no exception of its own for this
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(
            f"teacher.engine: vllm cannot start ({reason}); set teacher.engine = 'transformers'"
        ) from error
