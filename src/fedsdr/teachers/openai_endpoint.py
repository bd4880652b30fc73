"""Generation by an OpenAI-compatible chat endpoint, through the `openai` client library."""

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from fedsdr.errors import UserError
from fedsdr.extras import import_extra
from fedsdr.types import Decoding, Generate, Generation, GenerationRequest

EXAMPLE = "http://localhost:8000/v1"
# All others are removed: the library adds OPENAI_* variables and facts about this machine.
HEADERS = {
    "accept", "accept-encoding", "connection", "content-length", "content-type", "host",
    "x-stainless-raw-response",  # the library reads it again when the reply comes
}  # fmt: skip
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


class Address(NamedTuple):
    """A parsed endpoint URL. `base` holds neither credentials nor the query."""

    base: str
    host: str
    query: dict[str, str]
    credentials: tuple[str, str] | None  # user, password


def openai_generate(
    url: str,
    model: str,
    *,
    api_key_env: str = "",
    allow_remote: bool = False,
    concurrency: int = 8,
    timeout: float = 300.0,
    attempts: int = 6,
    setting: str = "teacher.url",
    consent: str = "set teacher.allow_remote = true",
) -> Generate:
    """Return a `Generate` that posts to `url` + "/chat/completions", `concurrency` at a time.

    `timeout` is in seconds. The library repeats a request after a timeout, a lost connection or
    status 408, 409, 429 or 5xx, with exponential backoff; a reply that is not a chat completion is
    requested again at once; `attempts` bounds both. The environment variable `api_key_env` holds
    the key. `top_k` is not part of OpenAI's API and is sent only when it is not 0. Token counts are
    the endpoint's (0 if it reports none).

    The requests hold raw data. Any address but this machine therefore needs `allow_remote`,
    redirects are not followed, and this machine is reached without a proxy. UserError shows the
    URL without credentials and query, and nothing of a request or a reply; `setting` and `consent`
    are the user's names of `url` and `allow_remote`.
    """
    openai = import_extra("openai", "openai", setting)
    address = parse_address(url, setting)
    shown = f"{address.base}/chat/completions"
    if not allow_remote and not is_loopback(address.host):
        raise UserError(
            f"{setting}: {shown} is not this machine, and raw data would be sent there; "
            f"{consent} if that is intended"
        )
    key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"${api_key_env}: not a key (it must be printable ASCII)")

    def complete(client: Any, request: GenerationRequest, decoding: Decoding) -> Generation:
        for _ in range(attempts):
            try:
                return _generation(request.id, _post(client, model, request, decoding))
            except openai.APIError as error:  # raised after the last attempt
                reason = _reason(error, model, api_key_env)
                raise UserError(f"{shown}: {reason}") from None
            except MALFORMED:
                continue
        raise UserError(f"{shown}: {attempts} replies of status 200, but no chat completion")

    def generate(requests: Sequence[GenerationRequest], decoding: Decoding) -> Iterator[Generation]:
        with _client(address, key, timeout, attempts) as client:
            pool = ThreadPoolExecutor(max_workers=concurrency)
            try:
                jobs = [pool.submit(complete, client, each, decoding) for each in requests]
                for job in as_completed(jobs):
                    yield job.result()
            finally:  # after an error, or when the caller stops early, drop the queued requests
                pool.shutdown(cancel_futures=True)

    return generate


def parse_address(url: str, setting: str) -> Address:
    """Split a URL. UserError, which names `setting`, if it is not http(s) with a host."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:  # its text may hold a password
        raise UserError(f"{setting}: not a URL; write it like {EXAMPLE}") from None
    # `base` is rebuilt from checked parts, so that the host that is checked is the one called.
    valid = re.fullmatch(r"[A-Za-z0-9._:-]+", host) and parts.path.isprintable()
    if parts.scheme not in ("http", "https") or not valid:
        raise UserError(f"{setting}: not an http URL with a host; write it like {EXAMPLE}")
    netloc = f"[{host}]{port}" if ":" in host else host + port
    credentials = unquote(parts.username or ""), unquote(parts.password or "")
    return Address(
        base=f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}",
        host=host,
        query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        credentials=credentials if any(credentials) else None,
    )


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine: `localhost` or a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # any other name may resolve to another machine
        return False


def _client(address: Address, key: str, timeout: float, attempts: int) -> Any:
    import openai

    sent = HEADERS | {"authorization"} if key or address.credentials else HEADERS

    def remove_other_headers(request: Any) -> None:
        for name in set(request.headers) - sent:
            del request.headers[name]

    return openai.OpenAI(
        base_url=address.base,
        default_query=address.query,
        api_key=key or "none",  # the library refuses an empty key; the header is removed
        timeout=timeout,
        max_retries=attempts - 1,
        http_client=openai.DefaultHttpxClient(
            auth=address.credentials,
            trust_env=not is_loopback(address.host),  # proxies of the environment
            follow_redirects=False,
            event_hooks={"request": [remove_other_headers]},
        ),
    )


def _post(client: Any, model: str, request: GenerationRequest, decoding: Decoding) -> bytes:
    reply = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": turn.role, "content": turn.content} for turn in request.turns],
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_tokens=decoding.max_new_tokens,
        seed=request.seed % 2**31,  # some servers keep 32 bits, and -1 means random there
        extra_body={"top_k": decoding.top_k} if decoding.top_k else None,
    )
    return bytes(reply.http_response.content)


def _reason(error: Any, model: str, api_key_env: str) -> str:
    status = getattr(error, "status_code", None)
    if status is None:
        kind = type(error.__cause__ or error).__name__
        return f"no reply ({kind}); is the server running?"
    hint = f"; is the key in ${api_key_env}?" if status in (401, 403) else ""
    return f"status {status} for model '{model}'{hint}"


def _generation(request_id: str, content: bytes) -> Generation:
    """Read a chat completion; raise one of `MALFORMED` if it is not one."""
    reply = json.loads(content)
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    text = choice["message"]["content"] or ""  # null when the model generated nothing
    text.encode()  # AttributeError if it is not text, UnicodeError for a lone surrogate

    def count(name: str) -> int:
        return min(max(0, int(usage.get(name) or 0)), 2**53)

    return Generation(
        id=request_id,
        text=text,
        finished=choice.get("finish_reason") == "stop",
        prompt_tokens=count("prompt_tokens"),
        new_tokens=count("completion_tokens"),
    )
