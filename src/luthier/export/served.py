"""Runs in the form that llama.cpp serves: adapters beside their base, else merged; made once.

The files lie in the run folders (``llama-cpp/``), and are made again when the weights have changed.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier import __version__
from luthier.errors import UserError
from luthier.events import Note, OnEvent, during, ignore
from luthier.export.gguf_adapter import write_adapter_gguf
from luthier.export.gguf_write import write_gguf
from luthier.export.options import GgufType
from luthier.export.tuned import TunedWeights, base_of
from luthier.files import staged_file, write_json
from luthier.run import Run


def adapter_file(run: Run, name: str, on_event: OnEvent = ignore) -> Path | None:
    """The adapter of ``run``, which is called ``name``, to be put beside its base.

    Returns:
        None where llama.cpp has no such adapters (DoRA, embeddings, biases); a note says why.
    """
    try:
        return _kept(
            run,
            "adapter.gguf",
            [run.adapter_path],
            lambda file: write_adapter_gguf(run, file, name),
            on_event,
        )
    except UserError as error:
        on_event(Note(f"{name} is served merged into its base: {error}"))
        return None


def base_file(runs: Sequence[Run], kind: GgufType, on_event: OnEvent = ignore) -> Path:
    """The base that all of ``runs`` were tuned from, in the folder of one of them.

    Raises:
        UserError: llama.cpp does not know this kind of model, or the file cannot be written.
    """
    source, _ = base_of(runs[0], runs[0].recipe())
    name = f"base-{kind}.gguf"
    made = [run for run in runs if _fresh(run.llama_cpp_path / name, [source])]
    return _kept(
        (made or runs)[0],
        name,
        [source],
        lambda file: write_gguf(
            TunedWeights(runs[0], without_adapter=True), file, kind, source.name, on_event
        ),
        on_event,
    )


def merged_file(run: Run, kind: GgufType, on_event: OnEvent = ignore) -> Path:
    """The run in one file.

    Raises:
        UserError: as ``base_file``.
    """
    recipe = run.recipe()
    return _kept(
        run,
        f"merged-{kind}.gguf",
        [base_of(run, recipe)[0], run.weights_path(recipe)],
        lambda file: write_gguf(TunedWeights(run), file, kind, run.root.name, on_event),
        on_event,
    )


def _kept(
    run: Run,
    name: str,
    sources: Sequence[Path],
    make: Callable[[Path], object],
    on_event: OnEvent,
) -> Path:
    file = run.llama_cpp_path / name
    if _fresh(file, sources):
        return file
    with during(f"writing {file}", on_event), staged_file(file) as staged:
        make(Path(staged.name))
    write_json(_state_path(file), _state(sources))
    return file


def _fresh(file: Path, sources: Sequence[Path]) -> bool:
    """Whether ``file`` was made of these folders as they are."""
    try:
        kept = json.loads(_state_path(file).read_bytes())
    except (OSError, ValueError):
        return False
    return file.is_file() and kept == _state(sources)


def _state_path(file: Path) -> Path:
    return file.with_suffix(".json")


def _state(sources: Sequence[Path]) -> dict[str, object]:
    """Version, and the size and time of each file of weights and tokenizer."""
    files = [
        file
        for source in sources
        for file in sorted(source.resolve().iterdir())
        if file.suffix in (".safetensors", ".json", ".jinja", ".model")
    ]
    found = {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    return {"version": __version__, "files": found}
