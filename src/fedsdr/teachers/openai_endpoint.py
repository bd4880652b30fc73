"""Generation by an OpenAI-compatible chat endpoint that the client itself runs."""

import ipaddress
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest

EXAMPLE = "http://localhost:8000/v1"


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine: `localhost` or an address of the loopback range."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: it could lead anywhere
        return False


def openai_generate(
    url: str,
    model: str,
    *,
    api_key_env: str = "",
    allow_remote: bool = False,
    concurrency: int = 8,
    timeout: float = 300.0,
    attempts: int = 5,
    first_wait: float = 1.0,
    setting: str = "teacher.url",
    consent: str = "set teacher.allow_remote = true",
) -> Generate:
    """Return a `Generate` that posts to `url` + "/chat/completions", `concurrency` at a time.

    `url` is the base that OpenAI clients take, as in http://localhost:8000/v1; `timeout` and
    `first_wait` are seconds. The endpoint renders the prompt with its own chat template. A
    timeout, a lost connection, 429, 5xx and an answer that is no chat completion are tried again
    after `first_wait`, then twice that, and so on, `attempts` times in all. The key is read from
    the environment variable `api_key_env`, if that is set. `top_k` is not of OpenAI's own
    interface and is sent only when it cuts. Token counts are the endpoint's (0 if it gives none).

    Raw data goes to the endpoint, so an address that is not this machine's needs `allow_remote`,
    redirects are not followed, and no proxy is used for this machine. Raises UserError, with the
    URL and the status but nothing of what was sent or answered; `setting` and `consent` are what
    the user calls `url` and `allow_remote`.
    """
    httpx = import_extra("httpx", "openai", setting)
    try:
        base = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"{setting}: not a URL ({error}); write it like {EXAMPLE}") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise UserError(f"{setting}: not an http URL with a host; write it like {EXAMPLE}")
    endpoint = base.copy_with(path=base.path.rstrip("/") + "/chat/completions")
    shown = str(endpoint.copy_with(userinfo=b"", query=None))  # these two may hold a password
    local = is_loopback(base.host)
    if not local and not allow_remote:
        raise UserError(
            f"{setting}: {shown} is not this machine, and raw data would go there; "
            f"{consent} if it may"
        )
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def body(request: GenerationRequest, decoding: Decoding) -> dict[str, Any]:
        return {
            "model": model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in request.turns],
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_new_tokens,
            "seed": request.seed % 2**31,  # some servers keep 32 bits, and -1 means random there
            **({"top_k": decoding.top_k} if decoding.top_k else {}),
        }

    def ask(
        client: Any, stopped: threading.Event, request: GenerationRequest, decoding: Decoding
    ) -> Generation:
        problem = ""
        for attempt in range(attempts):
            if attempt and stopped.wait(first_wait * 2 ** (attempt - 1)):
                break
            try:
                response = client.post(endpoint, json=body(request, decoding))
            except httpx.RequestError as error:  # timeouts, lost connections, bad encodings
                problem = f"no answer ({type(error).__name__})"
                continue
            status = response.status_code
            if status == 200:
                try:
                    return _generation(request.id, response.json())
                except (ValueError, LookupError, TypeError, AttributeError):
                    problem = "status 200, but the answer is no chat completion"
            elif status == 429 or status >= 500:
                problem = f"status {status}"
            else:
                hint = f"; is the key in ${api_key_env}?" if status in (401, 403) else ""
                raise UserError(f"{shown}: status {status} for model '{model}'{hint}")
        raise UserError(f"{shown}: {problem}, {attempts} times; is the server well?")

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        stopped = threading.Event()
        with httpx.Client(headers=headers, timeout=timeout, trust_env=not local) as client:
            pool = ThreadPoolExecutor(max_workers=concurrency)
            try:
                jobs = [pool.submit(ask, client, stopped, each, decoding) for each in requests]
                for job in as_completed(jobs):
                    yield job.result()
            finally:  # on an error, or when the caller stops early, what waits is dropped
                stopped.set()
                pool.shutdown(cancel_futures=True)

    return generate


def _generation(request_id: str, answer: Any) -> Generation:
    """Read a chat completion; one of the four errors that `ask` knows when it is none."""
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    text = choice["message"]["content"] or ""  # null when the model answered nothing
    if not isinstance(text, str):
        raise TypeError("content is not text")
    return Generation(
        id=request_id,
        text=text,
        finished=choice.get("finish_reason") == "stop",
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        new_tokens=int(usage.get("completion_tokens") or 0),
    )
