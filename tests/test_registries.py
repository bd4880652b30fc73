"""One new value in one public dict is enough: `fedsdr run` takes it and lists it as a choice.

Each toy entry stands for what a user of the package would add in one file (CONTRIBUTING.md).
"""

import json

import pytest

from fedsdr.algorithms.aggregation import AGGREGATIONS, Aggregation, Combined
from fedsdr.algorithms.server_optimizers import ALGORITHMS, Algorithm, ServerOptimizer
from fedsdr.data.formats import FORMATS, Format
from fedsdr.data.partition import PARTITIONERS
from fedsdr.distill.filters import FILTERS
from fedsdr.evaluation.metrics import METRICS, Metric
from fedsdr.tensors import scale
from fedsdr.training.methods import METHODS, Method, Phase
from fedsdr.types import R


@pytest.fixture
def run(fedsdr, write_config, tmp_path):
    """Return a function that runs one round with overrides; it returns results.json."""
    write_config()

    def run_with(*overrides):
        sets = [part for o in (*overrides, "federation.rounds=1") for part in ("--set", o)]
        code, _, err = fedsdr("run", tmp_path / "config.toml", "--out", tmp_path / "run", *sets)
        assert code == 0, err
        return json.loads((tmp_path / "run" / "results.json").read_text())

    return run_with


def test_a_method(run, monkeypatch):
    toy = Method("toy", (Phase("rewritten", (R,), R), Phase("raw", (R,), R)), (R,), (R,), (R,))
    monkeypatch.setitem(METHODS, "toy", toy)
    results = run("method.name=toy")
    assert results["method"] == "toy"
    assert {"train R.rewritten", "train R.raw"} <= results["cost"]["tokens"].keys()


def test_an_aggregation(run, monkeypatch, tmp_path):
    seen = []

    def first(updates, context):
        (update, _), *rest = list(updates)
        seen.append((len(rest) + 1, context.num_asked))
        return Combined(update)

    monkeypatch.setitem(AGGREGATIONS, "first", Aggregation(first))
    run("algorithm.aggregation=first", "method.name=plain")
    assert seen == [(3, 3)]


def test_a_server_optimizer(run, monkeypatch, tmp_path):
    def toy(lr: float = 0.0) -> ServerOptimizer:
        return ServerOptimizer(lambda shared: {}, lambda delta, state: (scale(delta, lr), {}))

    monkeypatch.setitem(ALGORITHMS, "toy", Algorithm(toy))
    results = run("algorithm.name=toy", "method.name=plain")
    models = results["mean"]  # a step of length 0: B stays zero, and the base is served
    assert models["global"]["loss"] == pytest.approx(models["base"]["loss"], abs=1e-6)


def test_a_partitioner(run, monkeypatch, data_folder):
    def halves(examples, data):
        middle = len(examples) // 2
        return [list(range(middle)), list(range(middle, len(examples)))]

    monkeypatch.setitem(PARTITIONERS, "halves", halves)
    source = data_folder / "bank.jsonl"
    sets = ("data.clients=", f"data.source={source}", "data.partition=halves")
    results = run("method.name=plain", *sets, "data.num_clients=2", "data.test_fraction=0.4")
    assert len(results["clients"]) == 2


def test_a_metric(run, monkeypatch):
    toy = Metric("toy", "always half", lambda gold, answer: 0.5)
    monkeypatch.setitem(METRICS, "text", toy)
    results = run("method.name=plain")
    assert {client["metric"] for client in results["clients"].values()} == {"toy"}
    assert results["mean"]["global"]["score"] == 0.5


def test_a_data_layout(run, monkeypatch, tmp_path):
    monkeypatch.setitem(FORMATS, "toy", Format("ask", "reply"))
    rows = [{"ask": f"question {i}", "reply": f"the answer is {i} in all"} for i in range(10)]
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = run("method.name=plain", f'data.clients=["{path}"]')
    assert results["clients"].keys() == {"toy"}


def test_a_filter(run, monkeypatch, tmp_path):
    monkeypatch.setitem(FILTERS, "refuse-all", lambda rewrite: "toy reason")
    run("teacher.filter=refuse-all")
    audit = json.loads((tmp_path / "run/distilled/audit.json").read_text())
    assert audit["clients"]["bank"]["kept_raw"] == {"toy reason": 9}


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("method.name", METHODS),
        ("algorithm.name", ALGORITHMS),
        ("algorithm.aggregation", AGGREGATIONS),
        ("data.partition", PARTITIONERS),
        ("teacher.filter", FILTERS),
    ],
)
def test_an_unknown_name_is_answered_with_every_choice_of_the_registry(
    key, registry, fedsdr, write_config, tmp_path, monkeypatch
):
    write_config()
    monkeypatch.setitem(registry, "toy", next(iter(registry.values())))
    code, _, err = fedsdr("run", tmp_path / "config.toml", "--set", f"{key}=tox")
    assert code == 2
    assert err.count("\n") == 1
    assert all(name in err for name in registry)
    assert "did you mean 'toy'?" in err
