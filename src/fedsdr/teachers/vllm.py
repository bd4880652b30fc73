"""Generate on CUDA with vLLM's offline engine."""

from collections.abc import Callable, Iterator, Sequence

import torch

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest, Turn


def vllm_generate(
    model: str,
    render: Callable[[Sequence[Turn]], Sequence[int]],
    *,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    chunk_size: int = 512,
    stop_ids: Sequence[int] = (),
) -> Generate:
    """Load the model (a hub id or a transformers folder) and return a `Generate` over vLLM.

    `render` returns the token ids of a prompt. `dtype` is vLLM's ("auto", "bfloat16", "float16",
    "float32"). Answers are yielded after every `chunk_size` requests. Each request has its own
    random generator, but GPU rounding depends on the batch, so near ties may resolve differently in
    another batch; recent vLLM avoids this with VLLM_BATCH_INVARIANT=1, at some cost in speed.
    UserError if vllm or a CUDA device is missing.
    """
    vllm = import_extra("vllm", "vllm")
    if not torch.cuda.is_available():
        raise UserError(
            "teacher.engine: 'vllm' needs a CUDA device, and PyTorch finds none; "
            "set teacher.engine = 'auto'"
        )
    llm = vllm.LLM(
        model=model,
        revision=revision,
        dtype=dtype,
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
