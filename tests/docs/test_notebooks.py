"""The notebooks run from their first cell to their last, on a tiny model in the small one's place."""

from pathlib import Path

import nbformat
import pytest
from families import save_tiny
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(
    notebook: Path, narrow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = save_tiny(tmp_path / "models" / "smollm2-135m")
    (tiny / "luthier.json").write_text('{"origin": "a tiny model", "files": {}}')
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # the kernel is a process of its own
    read = nbformat.read(notebook, as_version=4)
    nbformat.validate(read)
    for cell in read.cells:
        if cell.cell_type == "code":  # the tiny model's tokens are letters; plans of few layers
            cell.source = cell.source.replace('"max_length": 256', '"max_length": 512')
            if "luthier.plan(" in cell.source:
                cell.source = cell.source.replace('"smollm2-135m"', repr(str(narrow_model)))
    NotebookClient(read, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    if notebook.stem == "train-and-prove":
        assert (tmp_path / "runs/notebook/evaluation.json").is_file()
