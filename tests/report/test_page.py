import json
import re
from html.parser import HTMLParser

import pytest

from fedsdr.cli.report import page_of
from fedsdr.errors import UserError
from fedsdr.evaluation.answer_audit import audit_answer
from fedsdr.evaluation.held_out import ClientScores, ExampleScore
from fedsdr.evaluation.results import ClientResult, build_results
from fedsdr.report.charts import heat_map, line_chart
from fedsdr.report.page import script_json
from fedsdr.research.compare.compare_runs import write_comparison

SECRET = "the patient of room 12 has gout"


class Page(HTMLParser):
    """The cells of all tables, the captions, and what would be loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.captions, self.loads, self.open = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.open = tag
        self.loads += [
            v for k, v in attrs if k in ("src", "href") and not v.startswith(("data:", "#"))
        ]

    def handle_data(self, data):
        if self.open in ("td", "th") and data.strip():
            self.cells.append(data)
        if self.open == "caption":
            self.captions.append(data)


def scores(loss):
    return ClientScores(
        "rouge_l",
        (ExampleScore("a", loss, 1, 0.5, 3, True, audit_answer("", "a", "a", "rouge_l")),),
    )


@pytest.fixture
def run_folder(tmp_path):
    def make(name="run", client="clinic", loss=1.25):
        folder = tmp_path / name
        (folder / "distilled").mkdir(parents=True)
        models = {"base": scores(2.0), "global": scores(loss), "client": scores(1.0)}
        cost = {"tokens": {"train R.raw": 1234}, "seconds": {}, "bytes_up": 5e6, "bytes_down": 0}
        results = build_results(method="fedsdr", algorithm="fedavg", seed=0, rounds=2,
                                clients={client: ClientResult(9, models)}, cost=cost)  # fmt: skip
        (folder / "results.json").write_text(json.dumps(results))
        records = [
            {"round": r, "clients": [{"id": client, "num_examples": 9, "R.raw.loss": 2.0 / r}],
             "refused": [], "bytes_up": 1, "bytes_down": 1, "step_norm": 0.5, "seconds": 1.0}
            for r in (1, 2)
        ]  # fmt: skip
        (folder / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        audit = {"answers": 9, "rewritten": 5, "length_ratio": 2.5, "all_new_tokens": 77,
                 "kept_raw": {"truncated": 4}}  # fmt: skip
        (folder / "distilled/audit.json").write_text(json.dumps({"clients": {client: audit}}))
        (folder / "distilled/clinic.jsonl").write_text(json.dumps({"raw": SECRET}) + "\n")
        (folder / "config.toml").write_text("seed = 0\n")
        return folder

    return make


def test_the_page_has_the_numbers_of_the_run_and_loads_nothing(run_folder):
    text = page_of([run_folder()])
    page = Page(text)
    assert {"clinic", "1.250", "1,234", "x2.50", "truncated 4"} <= set(page.cells)
    assert page.loads == []
    assert "default-src 'none'" in text  # nor may a script load anything
    assert "seed = 0" in text
    assert len(text) < 2e6


def test_no_text_of_a_client_is_on_the_page(run_folder):
    assert SECRET not in page_of([run_folder()])


def test_the_address_of_an_endpoint_is_not_on_the_page_since_it_may_hold_a_password(run_folder):
    folder = run_folder()
    (folder / "config.toml").write_text(
        '[teacher]\nurl = "http://me:hunter2@llm.example/v1?key=x"\n'
    )
    text = page_of([folder])
    assert "hunter2" not in text
    assert "llm.example" not in text
    assert "(not shown)" in text


def test_names_are_escaped(run_folder):
    text = page_of([run_folder(client="<b>bank")])
    assert "<b>bank" not in text
    assert "<b>bank" in Page(text).cells


def test_the_same_run_gives_the_same_bytes(run_folder):
    folder = run_folder()
    assert page_of([folder]) == page_of([folder])


def test_several_runs_stand_side_by_side_before_each_alone(run_folder):
    page = Page(page_of([run_folder("a", loss=1.5), run_folder("b", loss=1.75)]))
    assert "mean over clients" in page.captions[0]
    first = page.cells[: 3 * 9]  # the header and the rows of the runs
    assert first[9] == "a"
    assert first[18] == "b"
    assert (first[9 + 6], first[18 + 6]) == ("1.500", "1.750")


def test_a_comparison_is_shown_with_what_failed(tmp_path):
    row = {
        "variant": "plain", "algorithm": "fedavg", "model": "global", "seeds": 3, "clients": 5,
        "test_rows": 60, "metric": "mixed", "difference_seeds": 0, "loss": 1.5, "loss_sd": 0.125,
        "loss_difference": None, "loss_difference_sd": None, "loss_difference_low": None,
        "loss_difference_high": None, "score": 0.5, "score_sd": None, "score_difference": None,
        "score_difference_sd": None, "score_difference_low": None, "score_difference_high": None,
        "train_tokens": 10.0, "rewrite_tokens": 0.0, "train_seconds": 1.0, "bytes_up": 1.0,
        "bytes_down": 1.0,
    }  # fmt: skip
    cells = [{"folder": "cells/x", "variant": "plain", "algorithm": "fedavg", "point": {},
              "seed": 0, "failed": "no space"}]  # fmt: skip
    found = {"baseline": "plain", "keys": [], "rows": [row], "by_client": [{"client": "bank"}],
             "rewriting_seconds": 0.0, "cells": cells}  # fmt: skip
    tmp_path.joinpath("study").mkdir()
    write_comparison(found, tmp_path / "study")
    text = page_of([tmp_path / "study"])
    assert "1.500 (0.125)" in Page(text).cells
    assert "failed: cells/x: no space" in text


def test_a_folder_without_results_is_named_and_so_is_a_broken_file(tmp_path, run_folder):
    with pytest.raises(UserError, match=r"results\.json: missing"):
        page_of([tmp_path / "none"])
    folder = run_folder()
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: not valid JSON"):
        page_of([folder])


def charts_of(text):
    """The charts on a page by their place: columns, rows and specification."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return list(json.loads(found[1]).values())


def test_each_client_has_a_line_a_phase_and_so_has_their_mean(run_folder):
    rows = charts_of(page_of([run_folder()]))[2]["rows"]
    assert rows == [["clinic", 1, 2.0, False], ["clinic", 2, 1.0, False],
                    ["mean", 1, 2.0, True], ["mean", 2, 1.0, True]]  # fmt: skip


def test_every_chart_has_a_description_and_its_numbers_as_a_table(run_folder):
    text = page_of([run_folder()])
    charts = len(charts_of(text))
    assert charts > 3
    assert text.count('role="img"') == charts
    assert text.count("<summary>The same as a table</summary>") == charts
    assert "clinic" not in "".join(re.findall(r'aria-label="(Training loss[^"]*)"', text))
    assert "mean: from 2.000 in round 1 to 1.000 in round 2" in text


def test_a_run_that_stopped_early_is_shown_with_how_to_go_on(run_folder):
    folder = run_folder()
    (folder / "results.json").unlink()
    (folder / "config.toml").write_text("[federation]\nrounds = 4\n")
    text = page_of([folder])
    assert "Not finished: 2 of 4 rounds are done" in text
    assert "--resume" in text
    assert len(charts_of(text)) > 1


def test_lost_results_of_a_finished_run_are_named_and_a_server_has_none(run_folder):
    folder = run_folder()
    (folder / "results.json").unlink()
    (folder / "config.toml").write_text("[federation]\nrounds = 2\n")
    assert "nothing is measured yet" in page_of([folder])  # without data.json, as a server
    (folder / "data.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json: missing; measure again: fedsdr evaluate"):
        page_of([folder])


def test_a_run_before_its_first_round_is_shown(run_folder):
    folder = run_folder()
    (folder / "results.json").unlink()
    (folder / "rounds.jsonl").unlink()
    assert "Not finished: 0 of" in page_of([folder])


def test_what_differs_from_the_defaults_is_listed(run_folder):
    folder = run_folder()
    (folder / "config.toml").write_text("seed = 7\n[train]\nlr = 0.5\n")
    assert "seed = 7; train.lr = 0.5" in page_of([folder])


def test_of_many_clients_the_chart_names_the_mean_alone_and_the_table_has_their_quartiles():
    curves = {f"client-{i:04d}": [(1, 2.0), (2, float(i))] for i in range(1001)}
    chart = line_chart("Loss", curves | {"mean": [(1, 2.0), (2, 500.0)]}, "loss", bold="mean")
    colour = chart.spec["encoding"]["color"]
    assert colour["legend"]["values"] == ["mean"]
    assert len(set(colour["scale"]["range"])) == 2
    rows = {name: values for name, *values in chart.table[1]}
    assert rows["median"] == ["2", "500"]  # of 0 to 1,000 and the mean
    assert rows["maximum"] == ["2", "1000"]


def test_an_empty_cell_of_a_heat_map_is_no_zero_and_a_refusal_bears_a_cross():
    cells = {"a": {"1": 0.5, "2": None}, "b": {"1": 0.25}}
    labels = ("client", "round", "norm")
    chart = heat_map("Norms", cells, labels, crossed=[("b", "2")], crosses="refused")
    assert chart.rows == [("a", "1", 0.5, ""), ("b", "1", 0.25, ""), ("b", "2", None, "refused")]
    assert chart.table[1] == [["client", "1", "2"], ["a", "0.5", ""], ["b", "0.25", ""]]
    assert "1 cells crossed: refused." in chart.description


def test_data_in_a_script_cannot_end_it():
    assert "<" not in script_json({"name": "</script><!--"})
    assert json.loads(script_json({"name": "</script>\u2028"})) == {"name": "</script>\u2028"}
