"""Every notebook runs from its first cell to its last, as a reader would run it."""

from pathlib import Path

import jupytext
import nbclient
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))


def text_of(notebook) -> str:
    """Everything that the cells put out as text."""
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    return "\n".join(output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.thorough
@pytest.mark.fetched
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # a cell that raises, raises here
    kinds = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert kinds.count("image/png") == 2
    assert kinds.count("text/html") >= 4  # the tables
    said = text_of(notebook)
    assert "'ended': 'exhausted'" in said
    assert "jetson-tx2" in said and "best_accuracy" in said


def test_notebooks_are_kept_as_text_alone():
    assert NOTEBOOKS
    assert not list((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
