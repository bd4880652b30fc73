import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from fedsdr.data.clients import load_clients
from fedsdr.models.packing import row_losses
from fedsdr.progress import SILENT
from fedsdr.research.diagnose import diagnose_run, measurements
from fedsdr.research.diagnose.diagnose_run import diagnose
from fedsdr.research.diagnose.summary import tables_of
from fedsdr.runs.run import run_experiment
from fedsdr.runs.run_folder import open_run


def bytes_of(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run_and_open(config, out):
    run_experiment(config, out, SILENT)
    runtime, state = open_run(out)
    return runtime, state, load_clients(runtime.config.data)


def test_diagnose_measures_every_part_and_leaves_the_run_as_it_was(write_config, tmp_path, fedsdr):
    out = tmp_path / "run"
    run_experiment(write_config("federation.rounds=2"), out, SILENT)
    before = bytes_of(out)
    small = ("--out", tmp_path / "d", "--rows", 4, "--steps", 2)
    code, text, _ = fedsdr("diagnose", out, *small)
    assert code == 0
    assert "Loss by branch" in text
    assert "Loss transfer" not in text
    assert text.splitlines()[-1] == f"next: fedsdr diagnose {out} --full (all parts)"
    code, text, _ = fedsdr("diagnose", out, *small, "--full")
    assert code == 0
    assert bytes_of(out) == before
    found = json.loads((tmp_path / "d" / "diagnose.json").read_text())
    page = (tmp_path / "d" / "diagnose.md").read_text()
    for table in tables_of(found):
        assert table.title in page
        assert table.meaning in page
        assert " ".join(table.meaning.split()) in " ".join(text.split())
        assert all(len(row) == len(table.rows[0]) for row in table.rows)
    for name in ("Alignment of text", "Raw answers against rewrites", "Gradient cosine of R",
                 "Loss transfer", "Loss by branch", "Loss before and after"):  # fmt: skip
        assert name in text
    assert found["text"]["TF-IDF cosine"]["raw"].keys() == {
        "mean", "bank / clinic", "bank / school", "clinic / school"}  # fmt: skip
    truncated = found["rewrites"]["all made"]["truncated"]
    assert (truncated["value"], truncated["rows"]) == (1.0, 27)
    losses = found["serving"]["losses"]["bank"]
    assert losses.keys() == {"base", "R", "S", "R+S"}
    results = json.loads((out / "results.json").read_text())["clients"]["bank"]["models"]
    for ours, theirs in (("base", "base"), ("R", "global"), ("R+S", "client")):
        assert losses[ours] == pytest.approx(results[theirs]["loss"], rel=1e-5)
    assert fedsdr("diagnose", out, "--only", "serving")[0] == 0
    assert (out / "diagnose.json").exists()


def test_the_divergence_of_a_run_is_scipys_over_the_tokens_of_its_answers(write_config, tmp_path):
    runtime, state, clients = run_and_open(write_config("federation.rounds=1"), tmp_path / "run")
    found = diagnose(runtime, state, clients, SILENT, only=["text"])["text"]
    counts = []
    for client in clients[:2]:
        ids = [i for e in client.raw for i in runtime.base.tokenizer(e.response)["input_ids"]]
        counts.append(torch.bincount(torch.tensor(ids), minlength=500).numpy())
    pair = found["Jensen-Shannon divergence"]["raw"]["bank / clinic"]
    assert pair["value"] == pytest.approx(jensenshannon(*counts, base=2) ** 2, abs=1e-9)
    assert pair["rows"] == 18


def test_the_gradient_cosine_is_that_of_autograd(write_config, tmp_path):
    runtime, _, clients = run_and_open(write_config("federation.rounds=1"), tmp_path / "run")
    rows = {c.client_id: c.raw[:4] for c in clients[:2]}
    found = measurements.gradient_alignment(
        runtime, rows, ("R",), measurements.set_initial(runtime)
    )
    flat = []
    for examples in rows.values():
        measurements.set_initial(runtime)("")
        encoded = runtime.encode(examples)
        with runtime.model.using("R", trained="R"):
            loss = row_losses(runtime.model.model, encoded).sum()
            gradients = torch.autograd.grad(loss, list(runtime.model.parameters("R").values()))
        flat.append(torch.cat([g.flatten() for g in gradients]).double())
    wanted = torch.cosine_similarity(flat[0], flat[1], dim=0)
    assert found["mean"] == pytest.approx(float(wanted), abs=1e-5)
    assert found["rows"] == 8


def test_rows_cut_before_their_answer_give_no_number(write_config, tmp_path):
    config = write_config("federation.rounds=1")
    runtime, _, clients = run_and_open(config, tmp_path / "run")
    long = replace(clients[0].raw[0], instruction="word " * 300)
    rows = {"long": [long, long], "school": clients[2].raw[:2]}
    start = measurements.set_initial(runtime)
    cosines = measurements.gradient_alignment(runtime, rows, ("R",), start)
    assert cosines["mean"] is None
    losses = measurements.loss_transfer(runtime, rows, rows, start, 1, lambda done: None)
    assert math.isnan(losses["before"][0])
    assert losses["matrix"][1][1] < 0


def test_training_on_one_client_helps_it_and_does_not_affect_the_next(write_config, tmp_path):
    runtime, _, clients = run_and_open(write_config("federation.rounds=1"), tmp_path / "run")
    rows = {c.client_id: c.raw[:4] for c in clients}

    def transfer(chosen):
        start = measurements.set_initial(runtime)
        return measurements.loss_transfer(runtime, chosen, rows, start, 3, lambda done: None)

    every = transfer(rows)
    assert all(every["matrix"][i][i] < 0 for i in range(3))
    last = transfer({"school": rows["school"]})
    assert last["before"] == every["before"]
    assert last["matrix"][0] == pytest.approx(every["matrix"][2], abs=1e-6)


def test_the_extra_round_is_the_round_that_the_run_would_do_next(write_config, tmp_path):
    runtime, state, clients = run_and_open(write_config("federation.rounds=1"), tmp_path / "run")
    found = diagnose(runtime, state, clients, SILENT, only=["aggregation"])["aggregation"]
    shutil.copytree(tmp_path / "run", tmp_path / "on")
    results = run_experiment(
        write_config("federation.rounds=2"), tmp_path / "on", SILENT, resume=True
    )
    for name, losses in found["losses"].items():
        models = results["clients"][name]["models"]
        assert losses["new global R"] == pytest.approx(models["global"]["loss"], rel=1e-5)
        assert losses["new global R+S"] == pytest.approx(models["client"]["loss"], rel=1e-5)
        assert losses["own R+S"] < losses["new global R+S"]
    record = json.loads((tmp_path / "on/rounds.jsonl").read_text().splitlines()[1])
    assert found["norm of the mean"] == pytest.approx(record["step_norm"], rel=1e-5)
    assert 0 < found["product error"] <= found["product error, largest of a module"]


@pytest.mark.parametrize("method", ["plain", "dual-raw", "dual-upload", "feddpa", "local"])
def test_parts_without_rewrites_work_for_every_kind_of_method(method, write_config, tmp_path):
    config = write_config(
        f"method.name={method}",
        "federation.rounds=2",
        "data.max_examples=4",
        "data.include=['bank', 'school']",
    )
    runtime, state, clients = run_and_open(config, tmp_path / "run")
    parts = ["optimization", "serving", "aggregation"]
    found = diagnose(runtime, state, clients, SILENT, only=parts, rows=2, steps=1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert tables_of(found)
    has = set(found["serving"]["losses"]["bank"])
    assert ("S" in has) == (method not in ("plain",))
    assert ("R" in has) == (method != "local")
    assert ("not measured" in found["aggregation"]) == (method == "local")
    cosines = found["optimization"]["gradient cosine"]
    assert ("raw, after training, R beside own S" in cosines) == (method in ("dual-raw", "feddpa"))


def test_a_run_without_rewrites_is_one_line_and_fedsdr_distill_makes_them(
    write_config, tmp_path, fedsdr
):
    out = tmp_path / "run"
    run_experiment(write_config("method.name=plain", "federation.rounds=1"), out, SILENT)
    before = bytes_of(out)
    code, text, err = fedsdr("diagnose", out)
    assert code == 2
    assert text == ""
    assert "no rewrites for text, rewrites" in err
    assert "fedsdr distill" in err
    assert bytes_of(out) == before
    assert fedsdr("distill", out / "config.toml", "--out", out)[0] == 0
    code, text, _ = fedsdr("diagnose", out, "--only", "text", "--only", "rewrites")
    assert code == 0
    assert "Alignment of text" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "txt"], "did you mean 'text'"),
        (["--only", "map"], "unknown name 'map'"),
        (["--rows", "1"], "'--rows': 1 is not in the range"),
        (["--steps", "0"], "'--steps': 0 is not in the range"),
        (["--nli", "./nowhere"], "cannot be loaded"),
        (["--set", "train.lr=1"], "cannot be changed for an existing run"),
    ],
)
def test_wrong_arguments_are_one_line_before_anything_is_written(
    arguments, words, write_config, tmp_path, fedsdr
):
    out = tmp_path / "run"
    run_experiment(write_config("federation.rounds=1", "data.max_examples=3"), out, SILENT)
    code, text, err = fedsdr("diagnose", out, *arguments)
    assert code == 2
    assert text == ""
    assert words in err
    assert len([line for line in err.splitlines() if line.startswith("fedsdr: ")]) == 1
    assert not (out / "diagnose.json").exists()


def test_alignment_is_not_measured_for_a_single_client(write_config, tmp_path):
    config = write_config("data.include=['bank']", "federation.rounds=1")
    runtime, state, clients = run_and_open(config, tmp_path / "run")
    found = diagnose(runtime, state, clients, SILENT, rows=2, steps=1)
    assert "not measured" in found["text"]
    assert "not measured" in found["optimization"]
    assert found["aggregation"]["product error"] == pytest.approx(0, abs=1e-6)
    assert tables_of(found)


def test_entailment_is_counted_in_both_directions(write_config, tmp_path, monkeypatch):
    runtime, state, clients = run_and_open(write_config("federation.rounds=1"), tmp_path / "run")
    raw = {e.response for c in clients for e in c.raw}

    def infer(pairs):
        return ["entailment" if premise in raw else "neutral" for premise, _ in pairs]

    monkeypatch.setattr(diagnose_run, "load_nli", lambda name, device: infer)
    found = diagnose(runtime, state, clients, SILENT, only=["rewrites"], nli="x", rows=2)
    made = found["rewrites"]["all made"]
    assert made["entailment, raw -> rewrite"]["value"] == 1
    assert made["entailment, rewrite -> raw"]["value"] == 0
    neutral = made["neutral, rewrite -> raw"]
    assert (neutral["value"], neutral["rows"]) == (1.0, 6)


def test_the_tables_of_an_older_diagnosis_can_still_be_shown():
    older = {
        "map": {"raw": {"bank": [[0.0, 1.0]]}},
        "rewrites": {
            "all made": {
                "negation lost": {"value": 0.5, "interval": [0.0, 1.0], "rows": 2},
                "raw -> rewrite": {"not measured": "no model was named", "rows": 0},
            },
            "bank": {"negation lost": {"value": None, "rows": 0}},
        },
        "aggregation": {"not measured": "local sends nothing"},
    }
    rewrites, aggregation = tables_of(older)
    header, *body = rewrites.rows
    assert header == ["", "all made", "bank"]
    assert body == [["negation lost", "0.500 [0.0, 1.0] (2)", ""]]
    assert "local sends nothing" in aggregation.rows[1]
