"""A run keeps the rows it read; what changed since is said."""

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Notes, write_rows

from luthier.errors import Interrupted
from luthier.events import Event, Step
from luthier.recipe import Recipe
from luthier.run import Run, claim_run


def test_a_finished_run_says_that_its_data_has_changed(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    data_file: Path,
    rows: list[dict[str, str]],
) -> None:
    recipe = make_recipe("train.max_steps=2")
    run, notes = train(recipe), Notes()
    train(recipe, notes)
    assert notes.events == []
    write_rows(data_file, [*rows, rows[0]])
    train(recipe, notes)
    assert notes.warnings == [
        f"{data_file} has changed since {run.root} read its data. The run is finished with the rows "
        "it read then; to train on the data as it is now, choose another run.name"
    ]


def test_a_resumed_run_says_that_its_folder_has_new_files(
    make_recipe: Callable[..., Recipe], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    from luthier.train.fit import fit

    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder / "a.jsonl", rows)
    recipe = make_recipe(f"data.train={folder}", "train.save_steps=1")
    run = claim_run(recipe, "test")

    def stop(event: Event) -> None:
        if isinstance(event, Step) and event.line.step == 2:
            raise KeyboardInterrupt

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        fit(recipe, run, stop)
    write_rows(folder / "b.jsonl", rows)
    notes = Notes()
    fit(recipe, run, notes)
    assert any(
        text.startswith(f"{folder}/b.jsonl has changed since") and "The run continues" in text
        for text in notes.warnings
    )
