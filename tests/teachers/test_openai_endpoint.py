import logging
import sys
import threading
import time

import pytest
from fake_endpoint import Reply, completion, server

from fedsdr.errors import UserError
from fedsdr.teachers.openai_endpoint import is_loopback, openai_generate
from fedsdr.types import Decoding, GenerationRequest, Turn

pytest.importorskip("openai", reason="the client library of the engine under test")
GREEDY = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=12)


def request(id: str, text: str = "x") -> GenerationRequest:
    return GenerationRequest(id, (Turn("user", text),))


def texts(generate, *requests: GenerationRequest) -> list[str]:
    return [answer.text for answer in generate(requests or [request("a")], GREEDY)]


def error_line(url: str, *, text: str = "x", **options) -> str:
    with pytest.raises(UserError) as error:
        texts(openai_generate(url, "m", **options), request("a", text))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_endpoint_receives_the_conversation_the_decoding_and_the_seed() -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "Hello"))
    with server(lambda n, body: completion("Hi.")) as seen:
        generate = openai_generate(seen.url + "/", "m")
        asked = GenerationRequest("a", turns, 2**62 + 5)
        (answer,) = generate([asked], Decoding(0.7, 0.9, 0, 64))
        list(generate([asked], Decoding(0.7, 0.9, 40, 64)))
    assert (answer.id, answer.text, answer.finished) == ("a", "Hi.", True)
    assert (answer.prompt_tokens, answer.new_tokens) == (21, 4)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    expected = {"model": "m", "messages": messages, "temperature": 0.7, "top_p": 0.9}
    expected |= {"max_tokens": 64, "seed": 5}
    assert seen.calls[0] == ("/v1/chat/completions", expected)
    assert seen.calls[1][1] == expected | {"top_k": 40}


def test_a_reply_cut_at_the_token_limit_is_unfinished_and_null_content_is_empty() -> None:
    replies = [completion("and so", "length"), completion(None)]
    with server(lambda n, body: replies[n]) as seen:
        generate = openai_generate(seen.url, "m", concurrency=1)
        cut, empty = generate([request("a"), request("b")], GREEDY)
    assert (cut.text, cut.finished) == ("and so", False)
    assert (empty.text, empty.finished) == ("", True)


def test_each_request_is_answered_once_with_bounded_concurrency() -> None:
    at_once, most, lock = 0, 0, threading.Lock()

    def reply(n: int, body: dict) -> Reply:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return completion(body["messages"][0]["content"].upper())

    asked = [request(f"r{n}", f"text {n}") for n in range(20)]
    with server(reply) as seen:
        answers = list(openai_generate(seen.url, "m", concurrency=3)(asked, GREEDY))
    assert {a.id: a.text for a in answers} == {f"r{n}": f"TEXT {n}" for n in range(20)}
    assert len(answers) == 20
    assert 1 < most <= 3


@pytest.mark.parametrize("bad", [(500, b""), (429, b""), (200, b"<html>"), (200, b"[]")])
def test_a_request_that_fails_once_is_repeated(bad: Reply) -> None:
    with server(lambda n, body: bad if n < 1 else completion("fine")) as seen:
        assert texts(openai_generate(seen.url, "m")) == ["fine"]
    assert len(seen.calls) == 2


def test_a_request_that_times_out_once_is_repeated() -> None:
    def reply(n: int, body: dict) -> Reply:
        time.sleep(0.8 if n == 0 else 0.0)
        return completion("fine")

    with server(reply) as seen:
        assert texts(openai_generate(seen.url, "m", timeout=0.3)) == ["fine"]


@pytest.mark.parametrize(
    ("bad", "reason", "calls"),
    [
        ((503, b"SECRET ROW"), "status 503", 2),
        ((404, b"SECRET ROW"), "status 404 for model 'm'", 1),
        ((401, b"SECRET ROW"), "is the key in $TEACHER_KEY", 1),
    ],
)
def test_a_request_that_keeps_failing_is_one_line_without_data_or_key(
    monkeypatch: pytest.MonkeyPatch, bad: Reply, reason: str, calls: int
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-hidden")
    with server(lambda n, body: bad) as seen:
        line = error_line(seen.url, text="SECRET ROW", api_key_env="TEACHER_KEY", attempts=2)
    assert reason in line
    assert f"{seen.url}/chat/completions" in line
    assert "SECRET" not in line
    assert "sk-hidden" not in line
    assert len(seen.calls) == calls


def one_choice(content: str, usage: str = "{}") -> bytes:
    message = f'{{"message": {{"content": {content}}}, "finish_reason": "stop"}}'
    return f'{{"choices": [{message}], "usage": {usage}}}'.encode()


@pytest.mark.parametrize(
    "reply",
    [
        b"SECRET ROW",
        b'"SECRET ROW"',
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"choices": ' + b"[" * 100_000,
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": null}]}',
        one_choice("7"),
        one_choice('["a"]'),
        one_choice('"\\ud83d"'),
        one_choice('"fine"', '{"prompt_tokens": Infinity}'),
        one_choice('"fine"', '{"prompt_tokens": NaN}'),
        one_choice('"fine"', '{"prompt_tokens": [1]}'),
        one_choice('"fine"', "[1]"),
    ],
    ids=lambda reply: reply[:60].decode(errors="replace"),
)
def test_a_reply_that_is_not_a_chat_completion_is_one_line_without_data(reply: bytes) -> None:
    with server(lambda n, body: (200, reply)) as seen:
        line = error_line(seen.url, attempts=2)
    assert "no chat completion" in line
    assert "SECRET" not in line
    assert len(seen.calls) == 2


def test_a_reply_without_usage_counts_no_tokens() -> None:
    reply = one_choice('"fine"').replace(b', "usage": {}', b"")
    with server(lambda n, body: (200, reply)) as seen:
        (answer,) = openai_generate(seen.url, "m")([request("a")], GREEDY)
    assert (answer.text, answer.prompt_tokens, answer.new_tokens) == ("fine", 0, 0)


def test_a_server_that_is_down_or_too_slow_is_one_line() -> None:
    with server(lambda n, body: (time.sleep(0.3), completion("late"))[1]) as seen:
        assert "Timeout" in error_line(seen.url, timeout=0.05, attempts=2)
    assert "ConnectError" in error_line(seen.url, attempts=2)


def test_an_error_cancels_the_requests_that_are_still_queued() -> None:
    with server(lambda n, body: (time.sleep(0.02), (400, b""))[1]) as seen:
        generate = openai_generate(seen.url, "m", concurrency=2)
        with pytest.raises(UserError):
            texts(generate, *(request(str(n)) for n in range(50)))
    assert len(seen.calls) < 50


def test_a_redirect_is_an_error_and_no_data_follow_it() -> None:
    with (
        server(lambda n, body: completion("fine")) as other,
        server(lambda n, body: (307, b""), location=other.url) as seen,
    ):
        assert "status 307" in error_line(seen.url)
    assert len(seen.calls) == 1
    assert other.calls == []


def test_only_the_key_of_the_named_variable_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "ADMIN_KEY", "ORG_ID", "PROJECT_ID"):
        monkeypatch.setenv(f"OPENAI_{name}", "other-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Api-Key: other-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("TEACHER_KEY", "sk-hidden\n")
    with server(lambda n, body: completion("fine")) as seen:
        texts(openai_generate(seen.url, "m", api_key_env="TEACHER_KEY"))
        texts(openai_generate(seen.url, "m", api_key_env="UNSET_KEY"))
    assert seen.headers[0]["Authorization"] == "Bearer sk-hidden"
    assert "Authorization" not in seen.headers[1]
    assert "other-secret" not in "".join(map(str, seen.headers))


def test_a_key_that_no_header_can_hold_is_named_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-hiddén")
    line = error_line("http://localhost:9/v1", api_key_env="TEACHER_KEY")
    assert "$TEACHER_KEY: not a key" in line
    assert "hidd" not in line


def test_user_password_and_query_of_the_url_are_sent_but_never_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with server(lambda n, body: completion("fine")) as seen:
        url = seen.url.replace("http://", "http://me:pass%3Aword@") + "?version=2"
        assert texts(openai_generate(url, "m")) == ["fine"]
    assert seen.calls[0][0] == "/v1/chat/completions?version=2"
    assert seen.headers[0]["Authorization"] == "Basic bWU6cGFzczp3b3Jk"  # base64 of me:pass:word
    assert "pass" not in caplog.text


def test_this_machine_is_reached_without_a_proxy_and_others_through_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        server(lambda n, body: completion("fine")) as seen,
        server(lambda n, body: completion("by proxy")) as proxy,
    ):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        assert texts(openai_generate(seen.url, "m")) == ["fine"]
        remote = openai_generate("http://teacher.invalid/v1", "m", allow_remote=True)
        assert texts(remote) == ["by proxy"]


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1",
        "http://192.168.1.5:8000/v1",
        "http://0.0.0.0:8000/v1",
        "http://localhost.example.com/v1",
        "http://localhost@example.com/v1",
        "http://[2001:db8::1]:8000/v1",
        "http://127.1:8000/v1",
    ],
)
def test_an_address_other_than_this_machine_needs_permission(url: str) -> None:
    with pytest.raises(UserError, match=r"teacher.allow_remote = true") as error:
        openai_generate(url, "m")
    assert "\n" not in str(error.value)
    openai_generate(url, "m", allow_remote=True)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "ftp://localhost/v1",
        "http://",
        "http://localhost:hidden/",
        "http://localhost:99999/",
        "http://[::1/v1",
        "http://local host/v1",
        "http://localhost\\@example.com/v1",
        "http://me:hid\nden@",
        "http://a..b/v1",
        "https://me:hidden@example.com/v1?key=hidden",
    ],
)
def test_an_invalid_url_is_one_line_that_shows_no_password(url: str) -> None:
    line = error_line(url)
    assert line.startswith("teacher.url: ")
    assert "hid" not in line


def test_only_localhost_and_loopback_addresses_are_this_machine() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback(host) for host in ("", "127.1", "10.0.0.1", "::", "my-laptop"))


def test_a_missing_client_library_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "pip install 'fedsdr[openai]'" in error_line("http://localhost:1/v1")


def test_fedsdr_distill_uses_an_endpoint_and_writes_its_password_nowhere(
    write_config, tmp_path, fedsdr
) -> None:
    with server(lambda n, body: completion("The rate is good.")) as seen:
        write_config()
        url = seen.url.replace("http://", "http://me:hidden@")
        keys = ["data.include=['bank']", "teacher.engine=openai", "teacher.model=m"]
        overrides = [part for key in [*keys, f"teacher.url={url}"] for part in ("--set", key)]
        run = tmp_path / "run"
        code, out, err = fedsdr("distill", tmp_path / "config.toml", "--out", run, *overrides)
    assert code == 0, err
    assert "The rate is good." in (run / "distilled/bank.jsonl").read_text()
    assert len(seen.calls) == 9
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"hidden" not in written
    assert "hidden" not in out + err
