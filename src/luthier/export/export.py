"""A finished run in the form it is deployed in, checked, with its model card."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.events import OnEvent, during, ignore
from luthier.export.card import write_card
from luthier.export.gguf_check import (
    Checked,
    Reference,
    check_gguf,
    reference,
    refuse_another_model,
)
from luthier.export.merge import MergeOptions, merge, refuse_occupied
from luthier.export.ollama import modelfile
from luthier.export.options import GgufType, Shape
from luthier.export.tuned import TunedWeights
from luthier.extras import need
from luthier.files import staged_folder, write_text
from luthier.models.load import max_positions
from luthier.run import Run

if TYPE_CHECKING:
    from luthier.export.gguf_write import Written


def export(
    run: Run,
    shape: Shape,
    out: Path,
    types: Sequence[GgufType] = ("q8_0",),
    check_rows: int = 64,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Write ``run`` to the folder ``out``, complete or not at all.

    Args:
        types: of GGUF files, one file each.
        check_rows: held-out rows to compare the result with the run on; 0 for none.

    Returns:
        what was written and how it compares, for `--json`.

    Raises:
        UserError: the run has not finished, ``out`` is in use, or the model cannot be written in that form.
        CheckFailed: what was written does not answer as the run does.
    """
    refuse_occupied(out)
    run.require_finished()
    if shape == "safetensors":
        return _safetensors(run, out, check_rows, on_event)
    need("gguf", extra="export", what=f"luthier export --to {shape}")
    if shape == "adapter-gguf":
        return _adapter(run, out)
    return _gguf(run, shape, out, types, check_rows, on_event)


def _safetensors(run: Run, out: Path, check_rows: int, on_event: OnEvent) -> dict[str, Any]:
    merged = merge([run], out, MergeOptions(check_rows=check_rows), on_event)
    return {"shape": "safetensors", **merged.as_dict()}


def _adapter(run: Run, out: Path) -> dict[str, Any]:
    from luthier.export.gguf_adapter import write_adapter_gguf

    file = f"{run.root.name}-adapter.gguf"
    with staged_folder(out) as folder:
        layers = write_adapter_gguf(run, folder / file, run.root.name)
        size = (folder / file).stat().st_size
        facts = {
            "use": f"```sh\nllama-cli -m base.gguf --lora {file}\n```\n\n"
            "`base.gguf` is the base model above, converted to GGUF.",
            "files": [f"`{file}`: the adapter in float32, {size / 2**20:,.1f} MiB"],
            "checks": [],
        }
        write_card(run, folder, "adapter-gguf", facts)
    return {
        "shape": "adapter-gguf",
        "folder": str(out),
        "files": [{"file": file, "bytes": size, "layers": layers}],
    }


def _gguf(
    run: Run,
    shape: Shape,
    out: Path,
    types: Sequence[GgufType],
    check_rows: int,
    on_event: OnEvent,
) -> dict[str, Any]:
    from luthier.export.gguf_write import write_gguf

    with during("opening the weights", on_event):
        model = TunedWeights(run)
    name = run.root.name
    context = min(max_positions(model.config) or 4096, 4096)
    # Before the long part: fail early on a template that Ollama cannot express.
    recipe_for_ollama = (
        modelfile(model.tokenizer, f"{name}-{types[0]}.gguf", context) if shape == "ollama" else ""
    )
    ref: Reference | None = None
    if check_rows:
        ref = reference(run, check_rows, on_event)
    results: list[dict[str, Any]] = []
    with staged_folder(out) as folder:
        for kind in types:
            file = folder / f"{name}-{kind}.gguf"
            written = write_gguf(model, file, kind, name, on_event)
            checked = None
            if ref is not None:
                checked = check_gguf(file, model.config, model.tokenizer, ref, on_event)
                refuse_another_model(file, kind, checked)
            results.append(_result(written, checked))
        if shape == "ollama":
            write_text(folder / "Modelfile", recipe_for_ollama)
        write_card(run, folder, shape, _facts(name, shape, types, results))
    return {"shape": shape, "folder": str(out), "files": results}


def _result(written: "Written", checked: Checked | None) -> dict[str, Any]:
    result = {**asdict(written), "file": written.file.name}
    if checked is not None:
        result["check"] = {
            **asdict(checked),
            "difference": checked.difference.as_dict() if checked.difference else None,
        }
    return result


def _facts(
    name: str, shape: Shape, types: Sequence[GgufType], results: list[dict[str, Any]]
) -> dict[str, Any]:
    first = f"{name}-{types[0]}.gguf"
    use = f"llama-server -m {first}"
    if shape == "ollama":
        use = f"ollama create {name.lower()} -f Modelfile\nollama run {name.lower()}"
    files = [
        f"`{r['file']}`: {r['type']}, {r['bytes'] / 2**20:,.1f} MiB, weights rounded by "
        f"{r['rms_error']:.2%} (root mean square)"
        for r in results
    ]
    if shape == "ollama":
        files.append("`Modelfile`: chat template, stop tokens and sampling for Ollama")
    return {"use": f"```sh\n{use}\n```", "files": files, "checks": _check_lines(results)}


def _check_lines(results: list[dict[str, Any]]) -> list[str]:
    lines = []
    for result in results:
        difference = result.get("check", {}).get("difference")
        if difference is not None:
            check = result["check"]
            lines.append(
                f"- {result['type']}: loss {difference['loss_before']:.4f} → "
                f"{difference['loss_after']:.4f} nats per token on {difference['rows']} rows; the "
                f"same most likely token at {difference['same_top']:.1%} of {difference['positions']} "
                f"positions; {check['same_answers']} of {check['answers']} answers identical"
            )
        lines += [f"- {result['type']}: {note}" for note in result["notes"]]
    return lines
