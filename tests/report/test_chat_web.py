"""The chat in a browser: who may ask, and what the page shows."""

import http.client
import json
import threading
from urllib.parse import urlsplit

import pytest

from fedsdr.cli.chat_web import MOST_BYTES, ChatServer

SAID: dict[str, list[str]] = {}


def ask(question, conversation):
    said = SAID.setdefault(conversation, [])
    said.append(question)
    yield "base", f"you said {', '.join(said)}"
    yield "client bank", "<script>document.title = 'owned'</script>"


@pytest.fixture
def address():
    server = ChatServer("a run", ask)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.address
    server.shutdown()
    server.server_close()
    thread.join()


def send(address, method="POST", body='{"question": "hello"}', path=None, **headers):
    """Return status and text of a request; headers are named with underscores."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    named = {"Content_Type": "application/json"} | headers
    named = {name.replace("_", "-"): value for name, value in named.items()}
    connection.request(method, path or place.path, body if method == "POST" else None, named)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    return reply.status, text


def test_every_model_answers_in_a_line_of_its_own(address):
    status, text = send(address)
    assert status == 200
    assert [json.loads(line)["model"] for line in text.splitlines()] == ["base", "client bank"]
    assert json.loads(text.splitlines()[0])["answer"] == "you said hello"


def test_questions_of_a_conversation_are_its_turns_and_others_stand_alone(address):
    def said(**sent):
        _, text = send(address, body=json.dumps(sent))
        return json.loads(text.splitlines()[0])["answer"]

    assert said(question="one", conversation="a") == "you said one"
    assert said(question="two", conversation="a") == "you said one, two"
    assert said(question="three", conversation="b") == "you said three"
    assert said(question="four") == "you said four"
    assert said(question="five") == "you said five"


def test_it_listens_on_loopback_alone(address):
    assert urlsplit(address).hostname == "127.0.0.1"


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"},
     {"path": "/"}, {"path": "/guess"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_of_another_page_or_without_the_token_is_refused(address, method, headers):
    status, text = send(address, method, **headers)
    assert status == 403
    assert "hello" not in text


def test_what_is_no_question_is_refused(address):
    assert send(address, body='{"question": " "}')[0] == 400
    assert send(address, body="[]")[0] == 400
    assert send(address, body="not json")[0] == 400
    assert send(address, Content_Type="text/plain")[0] == 400  # as a form of another page sends
    assert send(address, body=json.dumps({"question": "x" * MOST_BYTES}))[0] == 413


def test_in_a_browser_answers_stand_side_by_side_as_text(address, open_page):
    page = open_page(address)
    page.fill("textarea", "hi\nthere")
    page.keyboard.press("Enter")
    page.wait_for_selector("section:nth-of-type(2) .text")
    assert page.locator("section h3").all_inner_texts() == ["base", "client bank"]
    assert page.locator("section .text").first.inner_text() == "you said hi\nthere"
    assert page.title() == "fedsdr chat: a run"
    page.wait_for_selector("button:enabled")
    page.fill("textarea", "again")
    page.click("button")
    page.locator("section").nth(3).wait_for()
    assert page.locator("section .text").nth(2).inner_text() == "you said hi\nthere, again"
    boxes = [page.locator("section").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    page.wait_for_selector("#anew:enabled")
    page.click("#anew")
    assert page.locator("section").count() == 0
    page.fill("textarea", "first")
    page.keyboard.press("Enter")
    page.wait_for_selector("section:nth-of-type(2) .text")
    assert page.locator("section .text").first.inner_text() == "you said first"
