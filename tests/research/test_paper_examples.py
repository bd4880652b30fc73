from dataclasses import replace
from pathlib import Path

import pytest

from fedsdr.cli.compare import with_model_and_data
from fedsdr.config import load_study
from fedsdr.research.compare.grid import cells_of

FOLDER = Path(__file__).parents[2] / "examples" / "paper"
# Cells by the paper's own tables, and plain at equal compute beside methods of two stages.
CELLS = {"table3": 2 * 6, "table5": 2 * 3 * 3, "table7": (4 + 1) * 5, "table8": 6 + 1, "table10": 3}


def test_every_table_has_its_file_and_nothing_else_is_there():
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.toml" for name in CELLS}


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


SMALL = [
    "federation.rounds=1", "data.num_clients=2", "data.max_length=128", "train.local_epochs=1",
    "teacher.engine=transformers", "teacher.max_new_tokens=4", "evaluation.max_new_tokens=4",
]  # fmt: skip


def test_an_experiment_runs_with_another_model_and_data(
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
    written = (out / "compare.md").read_text()
    assert "loss - baseline" in written
    assert "| fedsd | client |" in written


def test_a_study_with_the_numbers_of_a_paper_is_answered_in_one_line(fedsdr, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[data]\nclients = "clients"\n[compare]\nreference = "paper.toml"\n')
    code, printed, err = fedsdr("compare", path, "--out", tmp_path / "out")
    assert (code, printed, len(err.strip().splitlines())) == (2, "", 1)
    assert "study.toml: 'compare.reference' no longer exists" in err
    assert not (tmp_path / "out").exists()


def test_other_data_take_the_place_of_the_key_that_the_file_sets(fedsdr, data_folder, tmp_path):
    config, _ = load_study(FOLDER / "table5.toml")
    other = with_model_and_data(config, "org/name", data_folder)
    assert other.model.name == "org/name"
    assert other.data == replace(config.data, source=str(data_folder))
    config, _ = load_study(FOLDER / "table10.toml")
    assert with_model_and_data(config, None, data_folder).data.clients == str(data_folder)
    code, _, err = fedsdr("compare", FOLDER / "table10.toml", "--data", tmp_path / "none")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "does not exist" in err
