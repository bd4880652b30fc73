"""Rewriting one client with a model that answers in capitals: cache, resume, order, records."""

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from fedsdr.data.chat_templates import responses_of
from fedsdr.distill.cache import RewriteCache, Teacher, cache_key
from fedsdr.distill.filters import FILTERS
from fedsdr.distill.prompts import load_prompts
from fedsdr.distill.records import read_distilled, read_records, write_distilled
from fedsdr.distill.self_distillation import rewrite_client
from fedsdr.errors import UserError
from fedsdr.types import Decoding, Example, Generation, Turn

TEACHER = Teacher("tiny", "abc123", "chatml", "fake 1", Decoding())
PROMPTS = load_prompts() | {"general": "{instruction} {input} Gold: {response}"}
EXAMPLES = (
    Example("a", "Name a colour.", "", "the sea is often blue in summer"),
    Example("b", "Name a tree.", "in a park", "an oak is a tree that grows old"),
    Example(
        "c",
        "And in winter?",
        "",
        "in winter it is grey and rather cold",
        history=(
            Turn("system", "Be kind."),
            Turn("user", "How is the lake?"),
            Turn("assistant", "in summer it is warm and rather green"),
        ),
    ),
)


class Echo:
    """Answers with the gold answer in capitals and the seed; counts what it is asked."""

    def __init__(self, stop_after=None, order=None, text=None, finished=True):
        self.asked, self.stop_after, self.order = [], stop_after, order
        self.text, self.finished = text, finished

    def __call__(self, requests, decoding):
        assert decoding == TEACHER.decoding
        requests = list(requests)
        if self.order:
            self.order.shuffle(requests)
        for count, request in enumerate(requests):
            if count == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(request.id)
            gold = request.turns[-1].content.split("Gold: ")[1]
            text = f"{gold.upper()} {request.seed}" if self.text is None else self.text
            yield Generation(request.id, text, self.finished, 9, 5)


def rewrite(tmp_path, generate, examples=EXAMPLES, **changes):
    settings = {"prompts": PROMPTS, "filter_name": "sdft", "seed": 0} | changes
    return rewrite_client(
        examples, generate=generate, cache=RewriteCache(tmp_path, TEACHER), **settings
    )


def test_every_answer_is_rewritten_and_ids_order_and_questions_stay(tmp_path):
    done = rewrite(tmp_path, Echo())
    assert [e.id for e in done.examples] == ["a", "b", "c"]
    for raw, new in zip(EXAMPLES, done.examples, strict=True):
        assert (new.instruction, new.input) == (raw.instruction, raw.input)
        for old, text in zip(responses_of(raw), responses_of(new), strict=True):
            assert text.startswith(old.upper())
    assert done.audit.answers == done.audit.rewritten == done.audit.generated == 4
    assert done.audit.new_tokens == 20
    assert done.audit.share_rewritten == 1.0


def test_each_assistant_turn_of_a_conversation_is_rewritten(tmp_path):
    echo = Echo()
    done = rewrite(tmp_path, echo, EXAMPLES[2:])
    assert echo.asked == ["c#0", "c#1"]
    assert [turn.role for turn in done.examples[0].history] == ["system", "user", "assistant"]
    assert done.examples[0].history[2].content.startswith("IN SUMMER")
    assert done.examples[0].response.startswith("IN WINTER")
    assert [r.instruction for r in done.records] == ["How is the lake?", "And in winter?"]


def test_an_interrupted_run_requests_only_the_missing_rewrites(tmp_path):
    whole = rewrite(tmp_path / "whole", Echo())
    with pytest.raises(KeyboardInterrupt):
        rewrite(tmp_path / "cut", Echo(stop_after=2))
    echo = Echo()
    resumed = rewrite(tmp_path / "cut", echo)
    assert echo.asked == ["c#0", "c#1"]
    assert resumed.records == whole.records
    assert resumed.audit.from_cache == 2


def test_a_second_run_or_another_method_or_filter_requests_nothing(tmp_path):
    rewrite(tmp_path, Echo())
    echo = Echo()
    again = rewrite(tmp_path, echo, filter_name="none")
    assert echo.asked == []
    assert again.audit.from_cache == 4
    assert again.audit.new_tokens == 0


def test_order_of_examples_and_of_answers_changes_no_rewrite(tmp_path):
    one = rewrite(tmp_path / "one", Echo())
    other = rewrite(tmp_path / "other", Echo(order=random.Random(1)), EXAMPLES[::-1])
    assert other.examples == one.examples[::-1]


def test_ids_and_other_clients_data_change_no_rewrite(tmp_path):
    one = rewrite(tmp_path / "one", Echo())
    renamed = [replace(EXAMPLES[1], id="elsewhere-77")]
    assert rewrite(tmp_path / "other", Echo(), renamed).records[0].rewrite == one.records[1].rewrite


def test_equal_rows_are_requested_once(tmp_path):
    echo = Echo()
    done = rewrite(tmp_path, echo, (EXAMPLES[0], replace(EXAMPLES[0], id="a2")))
    assert len(echo.asked) == 1
    assert done.examples[0].response == done.examples[1].response


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"prompts": PROMPTS | {"general": "Anew. Gold: {response}"}}],
)
def test_another_seed_or_prompt_requests_new_rewrites(tmp_path, changes):
    rewrite(tmp_path, Echo())
    echo = Echo()
    rewrite(tmp_path, echo, **changes)
    assert len(echo.asked) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"model": "x"},
        {"weights": "x"},
        {"template": "x"},
        {"engine": "x"},
        {"decoding": Decoding(temperature=0.0)},
    ],
)
def test_another_teacher_shares_no_rewrites(tmp_path, change):
    cache = RewriteCache(tmp_path, TEACHER)
    cache.put("k", Generation("a", "text", True, 1, 1))
    assert len(RewriteCache(tmp_path, TEACHER)) == 1
    assert len(RewriteCache(tmp_path, replace(TEACHER, **change))) == 0


def test_sdft_keeps_the_raw_answer_turn_by_turn_and_counts_why(tmp_path):
    def generate(requests, decoding):
        for request in requests:
            text = "I'm sorry, but I can't." if request.id == "c#0" else "A fine new answer."
            yield Generation(request.id, text, request.id != "b#0", 1, 1)

    done = rewrite(tmp_path, generate)
    assert [r.used for r in done.records] == ["rewrite", "raw", "raw", "rewrite"]
    assert done.audit.kept_raw == {"truncated": 1, "refused": 1}
    assert done.examples[1] == EXAMPLES[1]
    assert done.examples[2].history == EXAMPLES[2].history
    assert done.examples[2].response == "A fine new answer."


def test_filter_none_uses_all_but_empty_and_reports_what_sdft_would_refuse(tmp_path):
    unfinished = rewrite(
        tmp_path / "cut", Echo(text="It goes on and", finished=False), filter_name="none"
    )
    assert unfinished.audit.rewritten == 4
    assert unfinished.audit.kept_raw == {}
    assert unfinished.audit.sdft_would_refuse == {"truncated": 4}
    empty = rewrite(tmp_path / "empty", Echo(text=" \n"), filter_name="none")
    assert empty.examples == EXAMPLES
    assert empty.audit.kept_raw == {"empty": 4}


def test_a_filter_that_refuses_what_sdft_accepts_gives_its_own_reason(tmp_path, monkeypatch):
    monkeypatch.setitem(FILTERS, "no blue", lambda r: "blue" if "BLUE" in r.text else "")
    done = rewrite(tmp_path, Echo(), filter_name="no blue")
    assert [r.used for r in done.records] == ["raw", "rewrite", "rewrite", "rewrite"]
    assert done.audit.kept_raw == {"blue": 1}


def test_half_of_a_surrogate_pair_in_a_rewrite_becomes_a_question_mark(tmp_path):
    done = rewrite(tmp_path, Echo(text="A fine \ud83d answer."), filter_name="none")
    assert {e.response for e in done.examples} == {"A fine ? answer."}


def test_the_length_ratio_is_the_mean_of_words_over_words(tmp_path):
    # raw answers of 7, 8, 8 and 8 words -> 14 words each: (2 + 1.75 + 1.75 + 1.75) / 4
    done = rewrite(tmp_path, Echo(text=" ".join("abcdefghijklmn")), filter_name="none")
    assert done.audit.length_ratio == pytest.approx(7.25 / 4)


def test_an_unknown_filter_is_named_before_anything_is_requested(tmp_path):
    with pytest.raises(
        UserError, match=r"teacher.filter: unknown name 'sdtf'.*did you mean 'sdft'"
    ):
        rewrite(tmp_path, Echo(), filter_name="sdtf")


def test_an_engine_that_leaves_out_repeats_or_invents_is_a_fault_of_ours(tmp_path):
    def only_first(requests, decoding):
        yield Generation(requests[0].id, "x", True, 1, 1)

    def twice(requests, decoding):
        yield from (Generation(requests[0].id, "x", True, 1, 1) for _ in range(2))

    def invents(requests, decoding):
        yield Generation("nobody#0", "x", True, 1, 1)

    for generate, says in ((only_first, "left out 3"), (twice, "twice"), (invents, "unreq")):
        with pytest.raises(RuntimeError, match=says):
            rewrite(tmp_path / generate.__name__, generate)


def test_progress_counts_what_the_cache_had(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        rewrite(tmp_path, Echo(stop_after=1))
    seen = []
    rewrite(tmp_path, Echo(), on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_examples_need_no_request(tmp_path):
    done = rewrite(tmp_path, Echo(), ())
    assert (done.examples, done.records, done.audit.answers) == ((), (), 0)


# The cache


def test_a_torn_last_line_is_dropped_and_the_file_continued(tmp_path):
    cache = RewriteCache(tmp_path, TEACHER)
    cache.put("k1", Generation("a", "one\u2028\ud800", True, 1, 2))
    cache.put("k2", Generation("b", "two", False, 1, 2))
    whole = cache.path.read_bytes()
    for cut in range(len(whole.splitlines()[0]) + 2, len(whole)):
        cache.path.write_bytes(whole[:cut])
        reopened = RewriteCache(tmp_path, TEACHER)
        assert reopened.get("k1") == Generation("k1", "one\u2028\ud800", True, 1, 2)
        reopened.put("k3", Generation("c", "three", True, 1, 2))
        again = RewriteCache(tmp_path, TEACHER)
        assert again.get("k3") == Generation("k3", "three", True, 1, 2)
        assert (again.get("k2") is None) == (cut < len(whole) - 1)


def test_the_teacher_is_described_beside_its_rewrites(tmp_path):
    cache = RewriteCache(tmp_path, TEACHER)
    about = json.loads((tmp_path / "rewrites" / f"{TEACHER.fingerprint}.json").read_text())
    assert cache.path == tmp_path / "rewrites" / f"{TEACHER.fingerprint}.jsonl"
    assert about["weights"] == "abc123"
    assert about["decoding"]["top_p"] == 0.9


def test_a_fingerprint_and_a_key_are_the_same_in_every_process():
    # sha256sum of the sorted JSON of the fields, and of "7", a line break and "prompt"
    assert TEACHER.fingerprint == "521c9c46835a583b"
    assert cache_key("prompt", 7) == (
        "660354e9f8db8ccfdc5537ea82aa6b6c4225cbe81f6c688b1819534c2b882074"
    )


def test_two_writers_that_add_at_once_lose_nothing(tmp_path):
    def add_rows(name):
        cache = RewriteCache(tmp_path, TEACHER)
        for i in range(200):
            cache.put(f"{name}{i}", Generation("x", name * 500, True, 1, 1))

    RewriteCache(tmp_path, TEACHER)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(add_rows, "pq"))
    cache = RewriteCache(tmp_path, TEACHER)
    assert len(cache) == 400
    assert all(cache.get(f"{n}{i}").text == n * 500 for n in "pq" for i in range(200))


def test_a_full_disk_is_named_and_what_was_written_stays(tmp_path, monkeypatch):
    import fedsdr.distill.cache as module

    cache = RewriteCache(tmp_path, TEACHER)
    cache.put("k1", Generation("a", "one", True, 1, 1))
    real = module.os.write
    monkeypatch.setattr(module.os, "write", lambda file, data: real(file, data[:9]))
    with pytest.raises(UserError, match=rf"{TEACHER.fingerprint}\.jsonl: cannot be written"):
        cache.put("k2", Generation("b", "two", True, 1, 1))
    monkeypatch.undo()
    cache.put("k3", Generation("c", "three", True, 1, 1))
    reopened = RewriteCache(tmp_path, TEACHER)
    assert [reopened.get(k) is not None for k in ("k1", "k2", "k3")] == [True, False, True]


# OUT/distilled/CLIENT.jsonl


def test_what_is_written_is_read_back_as_the_rewritten_examples(tmp_path):
    done = rewrite(tmp_path, Echo())
    path = tmp_path / "distilled" / "client.jsonl"
    write_distilled(path, done.records)
    assert read_records(path) == done.records
    assert read_distilled(path, EXAMPLES) == done.examples
    assert read_distilled(path, EXAMPLES[1:2]) == done.examples[1:2]


def test_rewrites_of_other_or_changed_or_broken_rows_are_named(tmp_path):
    path = tmp_path / "client.jsonl"
    with pytest.raises(UserError, match=r"client\.jsonl: no such file"):
        read_distilled(path, EXAMPLES)
    write_distilled(path, rewrite(tmp_path, Echo()).records)
    with pytest.raises(UserError, match=r"client\.jsonl: 'z' has no rewrite"):
        read_distilled(path, [replace(EXAMPLES[0], id="z")])
    with pytest.raises(UserError, match=r"client\.jsonl: 'a' has changed"):
        read_distilled(path, [replace(EXAMPLES[0], response="green")])
    lines = path.read_text().splitlines()
    for bad in ('{"id": "b"', "3", '{"id": "b"}', lines[1].replace('"rewrite"}', "")[:-5]):
        path.write_text("\n".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(UserError, match=r"client\.jsonl, line 2: not a rewrite"):
            read_distilled(path, EXAMPLES)


def test_a_line_of_the_cache_that_is_no_rewrite_is_made_again_and_a_pipe_is_never_waited_for(
    tmp_path,
):
    cache = RewriteCache(tmp_path, TEACHER)
    cache.put("k1", Generation("a", "one", True, 1, 2))
    row = {"id": "k2", "text": 3, "finished": True, "prompt_tokens": 1, "new_tokens": 1}
    with cache.path.open("a") as file:
        file.write("[" * 100_000 + "\n" + json.dumps(row) + "\n[]\n3\n")
    again = RewriteCache(tmp_path, TEACHER)
    assert len(again) == 1
    assert again.get("k2") is None
    cache.path.unlink()
    os.mkfifo(cache.path)
    with pytest.raises(UserError, match="not a regular file"):
        RewriteCache(tmp_path, TEACHER)
