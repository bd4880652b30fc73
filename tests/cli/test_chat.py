"""fedsdr chat: several turns, its commands, and answers beside each other."""

import io
from itertools import pairwise

from fedsdr.cli import chat
from fedsdr.cli.chat import Conversation
from fedsdr.cli.chat_lines import Below, Beside, fits, side_by_side
from fedsdr.progress import SILENT
from fedsdr.runs.run import run_experiment
from fedsdr.types import Decoding


def test_a_chat_has_turns_a_client_of_choice_and_a_new_start(
    write_config, tmp_path, fedsdr, monkeypatch
):
    out = tmp_path / "run"
    config = write_config("federation.rounds=1", "evaluation.retention=false")
    run_experiment(config, out, SILENT)
    talk = Conversation(out, None, Decoding(temperature=0.0, max_new_tokens=4))
    first = dict(talk.ask("one"))
    assert list(first) == talk.names == ["base", "global", "client bank"]
    dict(talk.ask("two"))
    assert [(turn.role, turn.content) for turn in talk.turns["base"]][:3] == [
        ("user", "one"), ("assistant", first["base"]), ("user", "two"),
    ]  # fmt: skip
    talk.turns.clear()
    assert dict(talk.ask("one")) == first

    typed = "hello\n/client clinic\n/client nobody\n/reset\n/what\n/help\nhello\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    code, printed, _ = fedsdr("chat", out, "--max-new-tokens", "2")
    assert code == 0
    assert printed.count("base:") == printed.count("global:") == 2
    assert "answering: base, global, client clinic" in printed
    assert "unknown name 'nobody'" in printed
    assert "no command /what" in printed
    assert "client bank:" in printed.partition("answering")[0]
    assert "client clinic:" in printed.partition("answering")[2]


def test_answers_grow_on_a_terminal_and_end_as_they_are_in_a_pipe(capsys):
    def words(shown):
        for text in (" caf", "café\ufffd", "café au", "café au lait "):
            shown.show("base", text)
        shown.end("base", "café au lait")
        shown.end("global", "no")
        shown.close()
        return capsys.readouterr().out

    assert words(Below()) == "base:\ncafé au lait\n\nglobal:\nno\n\n"
    # What a pipe has of a live display is its last state.
    assert [line.rstrip() for line in words(Beside(["base", "global"], 41)).splitlines()] == [
        "base                | global", "café au lait        | no",
    ]  # fmt: skip


def test_a_conversation_shows_each_answer_after_every_token(write_config, tmp_path):
    out = tmp_path / "run"
    config = write_config("federation.rounds=1", "evaluation.retention=false", "method.name=plain")
    run_experiment(config, out, SILENT)
    talk = Conversation(out, None, Decoding(temperature=0.0, max_new_tokens=4))
    grown = []
    answers = dict(talk.ask("one", lambda model, text: grown.append((model, text))))
    assert list(answers) == ["base", "global"]
    for model, answer in answers.items():
        texts = [text for name, text in grown if name == model]
        assert 1 <= len(texts) <= 4
        assert texts[-1].strip() == answer
        assert all(later.startswith(text) for text, later in pairwise(texts))


def test_the_browser_remembers_the_last_conversations(write_config, tmp_path, monkeypatch):
    out = tmp_path / "run"
    config = write_config("federation.rounds=1", "evaluation.retention=false", "method.name=plain")
    run_experiment(config, out, SILENT)
    monkeypatch.setattr(chat, "MOST_TALKS", 2)
    ask = chat.answering(out, None, Decoding(temperature=0.0, max_new_tokens=8))
    alone = dict(ask("two", "a"))
    dict(ask("one", "b"))
    assert dict(ask("two", "b")) != alone  # after its first turn
    dict(ask("one", "c"))
    assert dict(ask("two", "a")) == alone  # forgotten: b and c came after it


def test_answers_stand_side_by_side_only_where_each_has_room():
    assert (fits(3, 114), fits(3, 113), fits(3, 0)) == (True, False, False)
    answers = [("base", "a long answer of words"), ("global", "short\n\nlines")]
    assert side_by_side(answers, 25) == [
        "base        | global",
        "a long      | short",
        "answer of   |",
        "words       | lines",
    ]
