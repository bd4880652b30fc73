"""The filter "repair": asking again, what is named in the prompt, which attempt is used."""

import json

import pytest

from fedsdr.distill.cache import RewriteCache, Teacher
from fedsdr.distill.filters import FILTERS, Rewrite
from fedsdr.distill.prompts import load_prompts
from fedsdr.distill.records import audit_of, read_records, write_distilled
from fedsdr.distill.repair import facts_of
from fedsdr.distill.self_distillation import rewrite_client
from fedsdr.types import Decoding, Example, Generation

SUM = Example("sum", "Add.", "", "3 + 4 = 7 apples for Tom.\nThe answer is 7.")
CHAT = Example("chat", "Who?", "", "it was Ada Lovelace who wrote the first program of all")
TEACHER = Teacher("tiny", "abc123", "chatml", "fake 1", Decoding())


def rewrite(folder, answers, examples=(SUM, CHAT), **changes):
    """Rewrite with a teacher that answers request name -> text; return the result and requests."""
    asked = {}

    def generate(requests, decoding):
        for request in requests:
            asked[request.id] = request
            yield Generation(request.id, answers[request.id], True, 9, 5)

    settings = {"filter_name": "repair", "seed": 0, "attempts": 3} | changes
    cache = RewriteCache(folder, TEACHER)
    done = rewrite_client(
        examples, generate=generate, cache=cache, prompts=load_prompts(), **settings
    )
    return done, asked


GOOD = "Tom has seven, that is 3 + 4, and Tom is glad. The answer is 7."
ANSWERS = {
    "sum#0": "Tom has 8. The answer is 8.",
    "sum#0#1": "The answer is 9.",
    "sum#0#2": GOOD,
    "sum#0#3": "For Tom: 3 + 4 = 7. The answer is 7.",
    "chat#0": "The first program was by Ada Lovelace.",
}


def test_only_what_the_filter_refuses_is_asked_again_with_its_facts_and_other_seeds(tmp_path):
    done, asked = rewrite(tmp_path, ANSWERS)
    assert list(asked) == ["sum#0", "chat#0", "sum#0#1", "sum#0#2", "sum#0#3"]
    first, *again = (asked[f"sum#0{n}"].turns[0].content for n in ("", "#1", "#2", "#3"))
    assert set(again) == {first + "\n\nKeep word for word:\n\n7\nTom"}
    assert len({request.seed for request in asked.values()}) == 5
    assert [r.used for r in done.records] == ["rewrite", "rewrite"]


def test_of_the_attempts_that_pass_the_one_that_explains_the_raw_answer_best_is_used(tmp_path):
    seen = []

    def score(pairs):
        seen.extend(pairs)
        return [-1.0, -0.5]

    done, _ = rewrite(tmp_path, ANSWERS, score=score)
    assert [(GOOD in prompt, SUM.response in prompt, raw) for prompt, raw in seen] == [
        (True, False, SUM.response),
        (False, False, SUM.response),
    ]
    record = done.records[0]
    assert (record.rewrite, record.attempt, record.attempts) == (ANSWERS["sum#0#3"], 3, 3)
    assert (record.mended, record.new_tokens, record.other_tokens) == ("number changed", 5, 15)
    assert (done.audit.attempts, done.audit.generated, done.audit.from_cache) == (3, 5, 0)
    assert done.audit.attempt_tokens == 15
    assert done.audit.all_new_tokens == 25
    assert done.audit.mended == {"3": {"number changed": 1}}


def test_where_no_attempt_passes_the_raw_answer_stays(tmp_path):
    done, _ = rewrite(tmp_path, dict.fromkeys(ANSWERS, "The answer is 8.") | {"chat#0": "Nobody."}
                      | dict.fromkeys(("chat#0#1", "chat#0#2", "chat#0#3"), "Ada"))  # fmt: skip
    assert done.examples == (SUM, CHAT)
    assert done.audit.kept_raw == {"number changed": 1, "name lost": 1}
    assert (done.audit.attempts, done.audit.mended) == (6, {})


def test_attempts_come_from_the_cache_and_survive_the_file(tmp_path):
    done, _ = rewrite(tmp_path, ANSWERS)
    again, asked = rewrite(tmp_path, ANSWERS)
    assert asked == {}
    assert again.records == done.records
    path = tmp_path / "distilled" / "client.jsonl"
    write_distilled(path, done.records)
    assert audit_of(read_records(path)).mended == done.audit.mended
    first, second = map(json.loads, path.read_text().splitlines())
    assert first["attempts"] == 3
    assert "attempts" not in second  # a rewrite that passed is written as ever


def test_sdft_asks_once(tmp_path):
    done, asked = rewrite(tmp_path, ANSWERS, filter_name="sdft")
    assert set(asked) == {"sum#0", "chat#0"}
    assert done.audit.attempts == 0


@pytest.mark.parametrize(
    ("family", "raw", "facts"),
    [
        ("maths", "Each of the 3 has 1,000.\nThe answer is 3,000.", ["3000"]),
        ("general", "we went to Paris, which Ada likes, and stayed in Paris", ["Paris", "Ada"]),
        ("classification", " neutral ", ["neutral"]),
        ("functions", "area(r=2)", ["area(r=2)"]),
        ("code", "def b(x):\n    return x\n\ndef a():\n    pass", ["a", "b"]),
        ("code", "SELECT 1", []),
    ],
)
def test_the_facts_of_an_answer_depend_on_its_family(family, raw, facts):
    assert facts_of(family, raw) == facts


@pytest.mark.parametrize(
    ("family", "text", "reason"),
    [
        ("general", "Ada wrote it, they say of lovelace", ""),
        ("general", "somebody wrote it", "name lost"),
        ("maths", "Tom and so on. The answer is 5.", "number changed"),
        ("code", "```python\ndef f():\n    return 1\n```", ""),
    ],
)
def test_a_lost_name_is_found_in_prose_alone(family, text, reason):
    raws = {
        "general": CHAT.response,
        "maths": SUM.response,
        "code": 'def f():\n    return "a, Tom b"',
    }
    assert FILTERS["repair"](Rewrite(family, raws[family], raws[family], text)) == reason
