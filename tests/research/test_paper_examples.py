import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedsdr.cli.compare import _replaced
from fedsdr.config import load_study
from fedsdr.research.compare.grid import cells_of
from fedsdr.research.compare.reference import load_reference, paper_table

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
# Cells by the paper's own tables, and plain at equal compute beside methods of two stages.
CELLS = {"table3": 2 * 6, "table5": 2 * 3 * 3, "table7": (4 + 1) * 5, "table8": 6 + 1, "table10": 3}


def test_every_table_has_its_file_and_nothing_else_is_there():
    names = {f"{name}{end}" for name in CELLS for end in (".toml", ".paper.toml")}
    assert {path.name for path in FOLDER.iterdir()} == names


@pytest.mark.parametrize("name", CELLS)
def test_an_experiment_of_the_paper_loads_with_the_settings_that_it_states(name):
    config, study = load_study(FOLDER / f"{name}.toml")
    assert (config.federation.rounds, config.federation.clients_per_round) == (20, 0)
    train, lora = config.train, config.lora
    assert (train.local_epochs, train.batch_size, train.lr) == (3, 128, 3e-4)
    assert (lora.rank, lora.alpha, lora.dropout) == (8, 16, 0.05)
    assert lora.target_modules == ["q_proj", "v_proj"]
    assert (config.data.max_length, config.teacher.filter) == (512, "none")
    cells = cells_of(config, study, FOLDER)
    assert len({cell.name for cell in cells}) == len(cells) == CELLS[name]


@pytest.mark.parametrize("name", CELLS)
def test_every_number_of_the_paper_has_a_run_that_it_stands_beside(name):
    config, study = load_study(FOLDER / f"{name}.toml")
    paper = load_reference(Path(study.reference))
    runs = [
        {"variant": c.group.variant, "algorithm": c.group.algorithm, **dict(c.group.point)}
        for c in cells_of(config, study, FOLDER)
    ]
    for row in paper.rows:
        wanted = {"variant": row.variant, "algorithm": row.algorithm, **row.point}
        assert wanted in runs
        assert row.values.keys() == paper.measures.keys()
    assert all(math.isfinite(v) for row in paper.rows for v in row.values.values())


def test_a_number_of_the_paper_stands_at_its_own_point_in_a_column_that_names_its_kind():
    paper = asdict(load_reference(FOLDER / "table5.paper.toml"))
    ours = [
        {"variant": variant, "algorithm": "scaffold", "data.alpha": alpha, "model": model,
         "loss": 1.5, "score": 0.25}
        for model in ("global", "client")
        for variant in ("plain", "fedsd")
        for alpha in (0.1, 0.3)
    ]  # fmt: skip
    header, *rows = paper_table(ours, ["data.alpha"], paper)
    assert header[3:] == [
        "our global loss", "our global score", "our client loss", "our client score",
        "paper judge (judge)",
    ]  # fmt: skip
    assert rows == [
        ["plain", "scaffold", "0.1", "1.500", "0.250", "1.500", "0.250", "53.27"],
        ["plain", "scaffold", "0.3", "1.500", "0.250", "1.500", "0.250", ""],
        ["fedsd", "scaffold", "0.1", "1.500", "0.250", "1.500", "0.250", "62.73"],
        ["fedsd", "scaffold", "0.3", "1.500", "0.250", "1.500", "0.250", ""],
    ]


def test_our_score_of_a_suite_stands_beside_the_papers_in_percent():
    paper = asdict(load_reference(FOLDER / "table8.paper.toml"))
    place = {"variant": "fedsdr", "algorithm": "fedavg"}
    ours = [{**place, "model": model, "loss": 1.5, "score": 0.2} for model in ("global", "client")]
    suites = [{**place, "model": "global", "suite": "mmlu", "score": 0.25}]
    suites.append({**place, "model": "client", "suite": "bbh", "score": 0.5})
    header, row = paper_table(ours, [], paper, suites)
    assert row[header.index("our global MMLU (suite)")] == "25.00"
    assert row[header.index("paper MMLU (suite)")] == "47.11"
    assert "our global BBH (suite)" not in header


SMALL = [
    "federation.rounds=1", "data.num_clients=2", "data.max_length=128", "train.local_epochs=1",
    "teacher.engine=transformers", "teacher.max_new_tokens=4", "evaluation.max_new_tokens=4",
]  # fmt: skip


def test_an_experiment_runs_with_another_model_and_data_beside_the_papers_numbers(
    fedsdr, model_folder, data_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    command = ["compare", FOLDER / "table8.toml", "--out", out]
    command += ["--model", model_folder, "--data", data_folder, "--methods", "plain,fedsd"]
    command += [part for value in SMALL for part in ("--set", value)]

    code, printed, err = fedsdr(*command, "--dry-run")
    assert code == 0, err
    assert "GiB memory" in printed
    assert "2 runs to do" in printed
    assert not out.exists()

    code, printed, err = fedsdr(*command)
    assert code == 0, err
    assert "Beside the paper" in printed
    written = (out / "compare.md").read_text()
    assert f"these runs: {model_folder} on {data_folder}. Its numbers (judge, suite)" in written
    assert "other measures than our loss and score" in written
    table = written.split("## Beside the paper")[1].splitlines()
    found = {line.split("|")[1].strip(): line for line in table if line.startswith("|")}
    assert "paper MMLU (suite)" in found["variant"]
    assert "paper O (judge)" in found["variant"]
    assert "47.11" not in "".join(table)  # fedsdr was not run
    assert found["fedsd"].rstrip(" |").endswith("37.90")
    compared = json.loads((out / "compare.json").read_text())
    assert not any("MMLU" in key for row in compared["rows"] for key in row)


def numbers(measures='{ MMLU = "suite" }', values="{ MMLU = 1.0 }", point="{}"):
    return (
        f'source = "x"\nsetting = "y"\nmeasures = {measures}\n[[rows]]\nvariant = "plain"\n'
        f'algorithm = "fedavg"\nvalues = {values}\npoint = {point}\n'
    )


BAD = {
    "a missing file": (None, "no such file"),
    "another form": ('source = "x"\n', "not the numbers of a paper"),
    "an unnamed measure": (numbers(measures="{}"), "values of 'MMLU'"),
    "a list of measures": (numbers(measures='["MMLU"]'), "not the numbers of a paper"),
    "a measure of no kind": (numbers(measures="{ MMLU = 3 }"), "what kind of number"),
    "a text": (numbers(values='{ MMLU = "1.0" }'), "are numbers"),
    "a point that is none": (numbers(point='"x"'), "not the numbers of a paper"),
    "an unknown key": (numbers(point='{ "data.alpah" = 1 }'), "did you mean 'data.alpha'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_of_numbers_is_answered_before_anything_runs(case, fedsdr, tmp_path):
    text, words = BAD[case]
    if text is not None:
        (tmp_path / "paper.toml").write_text(text)
    path = tmp_path / "study.toml"
    path.write_text('[data]\nclients = "clients"\n[compare]\nreference = "paper.toml"\n')
    code, printed, err = fedsdr("compare", path, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not (tmp_path / "out").exists()


def test_other_data_take_the_place_of_the_key_that_the_file_sets(fedsdr, data_folder, tmp_path):
    config, _ = load_study(FOLDER / "table5.toml")
    other = _replaced(config, "org/name", data_folder)
    assert other.model.name == "org/name"
    assert other.data == replace(config.data, source=str(data_folder))
    config, _ = load_study(FOLDER / "table10.toml")
    assert _replaced(config, None, data_folder).data.clients == str(data_folder)
    code, _, err = fedsdr("compare", FOLDER / "table10.toml", "--data", tmp_path / "none")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "does not exist" in err
