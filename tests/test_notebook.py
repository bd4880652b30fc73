"""examples/notebook.ipynb runs from top to bottom, here with a tiny model."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
MODEL = "embedded:smollm2-135m-instruct"


def texts_of(notebook) -> str:
    return str([cell.get("outputs") for cell in notebook.cells])


def test_the_notebook_runs_and_shows_tables_and_one_line_errors(
    tmp_path, model_folder, monkeypatch
):
    """A kernel, three runs and every table: about 15 s on an idle core."""
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path / "cache"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(MODEL, str(model_folder))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    shown = texts_of(notebook)
    for part in ("<progress", "client score", "PeftModel", "variant"):
        assert part in shown, part
    *_, last = notebook.cells
    (error,) = last.outputs
    assert error["ename"] == "UserError"
    assert error["traceback"] == [f"UserError: {error['evalue']}"]
    assert "did you mean 'fedsdr'" in error["evalue"]


def test_no_output_of_the_notebook_names_a_place_of_a_machine():
    outputs = texts_of(nbformat.read(NOTEBOOK, as_version=4))
    assert not re.search(r"/(home|root|work|tmp|usr|Users)/", outputs)
