import json
import re
import shutil
import time

import pytest
from fake_endpoint import completion, server

from fedsdr.config import load_config
from fedsdr.data.clients import load_clients
from fedsdr.evaluation.metrics import metric_for
from fedsdr.progress import SILENT
from fedsdr.research.judge.judge_runs import judge
from fedsdr.research.judge.verdicts import CRITERIA
from fedsdr.runs.answers import answers_of
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run
from fedsdr.types import Generation

pytest.importorskip("openai", reason="the client library of the judge")
MODEL = ("--model", "a-judge", "--rows", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder, data_folder):
    """Two runs: plain, and dual-raw, whose clients have an S."""
    folder = tmp_path_factory.mktemp("runs")
    for method in ("plain", "dual-raw"):
        path = folder / "config.toml"
        path.write_text(f"""
            [model]
            name = "{model_folder}"
            [data]
            clients = "{data_folder}"
            max_length = 128
            test_fraction = 0.2
            [method]
            name = "{method}"
            [federation]
            rounds = 1
            [train]
            local_epochs = 1
            lr = 1e-2
            [evaluation]
            max_new_tokens = 8
        """)
        run_experiment(load_config(path), folder / method, SILENT)
    return folder


@pytest.fixture
def runs(made):
    return made / "plain", made / "dual-raw"


def shown(body):
    """Letter -> answer, as the judge reads them."""
    text = body["messages"][-1]["content"]
    return dict(re.findall(r"<answer (\w)>\n(.*?)\n</answer", text, re.S))


def longest(n, body):
    """A judge that prefers the longest answer and says tie if there is none."""
    answers = shown(body)
    best = [a for a in answers if len(answers[a]) == max(map(len, answers.values()))]
    return completion(json.dumps(dict.fromkeys(CRITERIA, best[0] if len(best) == 1 else "tie")))


def answers_in(run, model):
    return {
        (path.stem, entry["id"]): entry["text"]
        for path in (run / "answers" / model).glob("*.jsonl")
        for entry in map(json.loads, path.read_text().splitlines())
    }


@pytest.mark.parametrize("of", ["global", "client"])
def test_win_rates_follow_the_judges_verdicts_on_the_models_answers(of, runs, tmp_path, fedsdr):
    with server(longest) as seen:
        arguments = (*runs, "--base", "--of", of, "--endpoint", seen.url, *MODEL)
        code, text, err = fedsdr("judge", *arguments, "--out", tmp_path)
        assert code == 0, err
        asked = len(seen.calls)
        assert fedsdr("judge", *arguments, "--out", tmp_path)[0] == 0
        assert len(seen.calls) == asked + 1  # only the check of the endpoint is repeated
    assert asked == 1 + 6 * 3 * 2
    whole = "".join(json.dumps(body["messages"]) for _, body in seen.calls)
    assert not re.search(r"plain|dual|base|bank\b(?! question)", whole)
    found = json.loads((tmp_path / "judge.json").read_text())
    assert (found["model"], found["unreadable"]) == (of, 0)
    ours, theirs = (answers_in(run, of) for run in runs)
    assert len(ours) == len(theirs) == 6
    overall = found["pairs"]["plain / dual-raw"]["overall"]
    assert overall["wins"] == sum(len(ours[at]) > len(theirs[at]) for at in ours)
    assert overall["losses"] == sum(len(ours[at]) < len(theirs[at]) for at in ours)
    assert found["same verdict in both orders"] == 1
    assert "plain / base" in text
    assert "plain / base" in (tmp_path / "judge.md").read_text()


@pytest.mark.parametrize("model", ["base", "global", "client"])
def test_the_judged_answers_are_those_that_evaluate_scores(model, runs):
    run = runs[1]
    runtime, _ = open_run(run)
    clients = load_clients(runtime.config.data)
    rows = {c.client_id: c.test for c in clients}
    answers = answers_of(run, model, clients, rows, SILENT)
    results = json.loads((run / "results.json").read_text())
    for client in clients:
        score = metric_for((*client.raw, *client.test)).score
        own = [score(row.response, answers[client.client_id][row.id]) for row in client.test]
        wanted = results["clients"][client.client_id]["models"][model]["score"]
        assert sum(own) / len(own) == pytest.approx(wanted, abs=1e-6)


def test_answers_and_replies_may_hold_unicode_line_separators(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    clients = load_clients(open_run(run)[0].config.data)
    rows = {c.client_id: c.test for c in clients}
    answers_of(run, "global", clients, rows, SILENT)
    kept = run / "answers/global/bank.jsonl"
    first, second = map(json.loads, kept.read_text().splitlines())
    first["text"] = "one\u2028two\x85three"
    del first["check"]
    kept.write_text(json.dumps(first, ensure_ascii=False) + "\n")  # the second is generated again
    ids = [row.id for row in rows["bank"]]
    found = answers_of(run, "global", clients, rows, SILENT)["bank"]
    assert found == dict(zip(ids, (first["text"], second["text"]), strict=True))
    assert answers_of(run, "global", clients, rows, SILENT)["bank"] == found
    asked = []

    def ask(requests, decoding):
        for request in requests:
            asked.append(request)
            reply = json.dumps(dict.fromkeys(CRITERIA, "A")) + " \u2028"
            yield Generation(request.id, reply, True, 1, 1)

    once, again = (
        judge([run], ask, tmp_path / "out", SILENT, judged_by="m", base=True) for _ in range(2)
    )
    assert once == again
    assert len(asked) == once["asked"]  # nothing is asked twice


def test_unreadable_replies_are_counted_and_a_status_500_is_repeated(runs, tmp_path, fedsdr):
    def sometimes(n, body):
        if n == 3:
            return 500, b"out of memory"
        return completion("I like answer A.") if n % 4 == 0 else longest(n, body)

    with server(sometimes) as seen:
        arguments = (*runs, "--endpoint", seen.url, *MODEL, "--out", tmp_path)
        assert fedsdr("judge", *arguments)[0] == 0
    found = json.loads((tmp_path / "judge.json").read_text())
    assert found["asked"] == 12
    assert 1 <= found["unreadable"] <= 4
    rows = found["pairs"]["plain / dual-raw"]["overall"]["rows"]
    assert 6 - found["unreadable"] <= rows < 6


def one_line(err):
    said = [line for line in err.splitlines() if line.startswith("fedsdr: ")]
    assert len(said) == 1
    assert err.strip().splitlines()[-1] == said[0]
    return said[0]


def test_a_judge_without_a_single_readable_reply_is_one_line(runs, tmp_path, fedsdr):
    with server(lambda n, body: completion("Both are fine.")) as seen:
        code, out, err = fedsdr("judge", *runs, "--endpoint", seen.url, *MODEL, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "none of its 12 replies" in one_line(err)
    assert not (tmp_path / "judge.json").exists()


@pytest.mark.parametrize("kind", ["down", "slow", "500", "no chat completion", "wrong model"])
def test_an_endpoint_that_fails_is_one_line_before_anything_is_written(
    kind, runs, tmp_path, fedsdr
):
    def reply(n, body):
        if kind == "slow":
            time.sleep(0.4)
        status = {"500": 500, "wrong model": 404}.get(kind, 200)
        return status, b"<html>"

    out = tmp_path / "out"
    with server(reply) as seen:
        url = "http://127.0.0.1:9/v1" if kind == "down" else seen.url
        code, text, err = fedsdr(
            "judge", *runs, "--endpoint", url, *MODEL, "--out", out, "--timeout", "0.2"
        )
    assert (code, text) == (2, "")
    assert "/chat/completions: " in one_line(err)
    assert not out.exists()


def test_the_verdicts_before_an_endpoint_fails_are_kept_and_not_asked_again(runs, tmp_path, fedsdr):
    def half(n, body):
        if n < 6:
            return longest(n, body)
        time.sleep(1)  # the earlier replies are read by then
        return 400, b""

    with server(half) as seen:
        arguments = (*runs, *MODEL, "--out", tmp_path)
        code, _, err = fedsdr("judge", *arguments, "--endpoint", seen.url)
        assert code == 2
        assert "status 400" in one_line(err)
    path = tmp_path / "verdicts.jsonl"
    kept = path.read_text().count("\n")
    assert 0 < kept <= 5
    path.write_text(path.read_text() + '{"key": "to')  # and a kill tore a line
    with server(longest) as seen:
        assert fedsdr("judge", *arguments, "--endpoint", seen.url)[0] == 0
        assert len(seen.calls) == 1 + 12 - kept
        assert fedsdr("judge", *arguments, "--endpoint", seen.url)[0] == 0
        assert len(seen.calls) == 2 + 12 - kept


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plain"], "only one model to judge"),
        (["plain", "plain"], "the same run is named twice"),
        (["plain", "nowhere"], "not a run folder"),
        (["plain", "dual-raw", "--of", "globl"], "did you mean 'global'"),
        (["plain", "dual-raw", "--rows", "0"], "'--rows': 0 is not in the range"),
        (["plain", "dual-raw", "--timeout", "0"], "'--timeout': 0.0 is not in the range"),
        (["plain", "dual-raw", "--set", "train.lr=1"], "cannot be changed for an existing run"),
        (["plain", "dual-raw", "--endpoint", "https://example.com/v1"], "add --allow-remote if"),
        (["plain", "dual-raw", "--endpoint", "example.com"], "--endpoint: not an http URL"),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_written(
    arguments, words, made, tmp_path, fedsdr, monkeypatch
):
    monkeypatch.chdir(made)
    out = tmp_path / "out"
    with server(longest) as seen:
        code, text, err = fedsdr(
            "judge", "--endpoint", seen.url, "--model", "m", "--out", out, *arguments
        )
    assert (code, text) == (2, "")
    assert words in one_line(err)
    assert not out.exists()


def test_runs_with_different_test_rows_are_refused(runs, made, tmp_path, fedsdr):
    text = (runs[0] / "config.toml").read_text()
    other = made / "other"
    config = tmp_path / "other.toml"
    config.write_text(text.replace("test_fraction = 0.2", "test_fraction = 0.3"))
    if not other.exists():
        run_experiment(load_config(config), other, SILENT)
    with server(longest) as seen:
        code, _, err = fedsdr(
            "judge", runs[0], other, "--endpoint", seen.url, *MODEL, "--out", tmp_path / "out"
        )
    assert code == 2
    assert "its test rows are not those of" in one_line(err)
