"""`luthier export`."""

from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.table import Table

from luthier.api import GgufType, Shape
from luthier.cli.app import Json, app, out, print_json
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust
from luthier.cli.tuned import BaseModel, open_tuned
from luthier.errors import UserError
from luthier.events import during
from luthier.perplexity import perplexity
from luthier.run import Run


@app.command()
def export(
    run_path: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    shape: Annotated[Shape, typer.Option("--to", help="Format to export to.")],
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            help=f"Type of GGUF weights: {', '.join(get_args(GgufType))}; repeat for several files. "
            "Default: q8_0.",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write; default: RUN/gguf, RUN/ollama …"),
    ] = None,
    check_rows: Annotated[
        int, typer.Option(min=0, help="Held-out rows to compare outputs on; 0: no comparison.")
    ] = 64,
    push: Annotated[
        str | None, typer.Option(help="Also upload to this hub repository: owner/name.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make the uploaded repository public.")
    ] = False,
    base_model: BaseModel = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Export a run for deployment, with a model card.

    - `gguf`: a file for llama.cpp, with the merged adapter, the tokenizer and the chat template
    - `ollama`: the same, with a Modelfile that holds the template in Ollama's language
    - `safetensors`: a Transformers folder, as `luthier merge`
    - `adapter-gguf`: the adapter alone, for llama.cpp's --lora

    Each file is read back: its tensors are compared with the weights, then its answers, tokens and
    perplexity with the run's own on held-out rows.

    Example: `luthier export runs/first --to gguf --type f16 --type q4_0`
    """
    if types and shape not in ("gguf", "ollama"):
        raise UserError(f"--type is for GGUF weights; --to {shape} has no --type")
    if shape == "ollama" and types and len(types) > 1:
        raise UserError("a Modelfile names one GGUF file: give one --type with --to ollama")
    unknown = [kind for kind in types or [] if kind not in get_args(GgufType)]
    if unknown:
        raise UserError(
            f"there is no type '{unknown[0]}'; types are {', '.join(get_args(GgufType))}"
        )
    if public and push is None:
        raise UserError("--public needs a repository to upload to: add --push owner/name")
    run = open_tuned(run_path, base_model, trust)
    from luthier.api import export_run

    folder = to or Run(run_path).export_path(shape)
    chosen = cast(list[GgufType], list(dict.fromkeys(types or ["q8_0"])))
    with terminal() as on_event:
        result = export_run(run, shape, folder, chosen, check_rows, on_event)
    if push is not None:
        from luthier.api import push as upload

        with terminal() as on_event, during(f"uploading to {push}", on_event):
            result["pushed"] = upload(folder, push, public)
    if as_json:
        print_json(result)
        return
    _show(result)
    if "pushed" in result:
        out.print(f"uploaded: {result['pushed']}", highlight=False, soft_wrap=True)
    out.print(str(folder), highlight=False, soft_wrap=True)


def _show(result: dict[str, Any]) -> None:
    if result["shape"] == "safetensors":
        out.print(
            f"{result['bytes'] / 2**20:,.1f} MiB of {result['dtype']} weights and a model card"
        )
        for check in result["checks"].values():
            out.print(
                f"loss {check['loss_before']:.5f} → {check['loss_after']:.5f}, the same top "
                f"token at {check['same_top']:.2%} of {check['positions']} positions",
                highlight=False,
            )
        return
    if result["shape"] == "adapter-gguf":
        for file in result["files"]:
            out.print(f"{file['file']}: {file['layers']} layers, {file['bytes'] / 2**20:,.1f} MiB")
        return
    _show_files(result["files"])


def _show_files(files: list[dict[str, Any]]) -> None:
    table = Table("file")
    for column in ("MiB", "rounding", "perplexity", "KL", "same token", "same answers"):
        table.add_column(column, justify="right")
    before: dict[str, Any] | None = None
    for file in files:
        check = file.get("check") or {}
        difference = check.get("difference")
        cells = [f"{file['bytes'] / 2**20:,.1f}", f"{file['rms_error']:.2%}"]
        if difference is not None:
            before = difference
            cells += [
                f"{perplexity(difference['loss_after']):.4f}",
                f"{difference['kl']:.2g}",
                f"{difference['same_top']:.1%}",
                f"{check['same_answers']} of {check['answers']}",
            ]
        table.add_row(file["file"], *cells, *["–"] * (6 - len(cells)))
    out.print(table)
    if before is not None:
        out.print(
            f"the run itself: perplexity {perplexity(before['loss_before']):.4f} on {before['rows']} "
            f"rows, {before['tokens']:,} tokens; every tensor was read back",
            highlight=False,
        )
    for note in dict.fromkeys(note for file in files for note in _notes(file)):
        out.print(f"[yellow]note:[/] {note}", highlight=False)


def _notes(file: dict[str, Any]) -> list[str]:
    check = file.get("check") or {}
    notes = [*file["notes"], *check.get("notes", [])]
    if check.get("same_tokens", 0) < check.get("texts", 0):
        notes.append(
            f"Transformers tokenises {check['same_tokens']} of {check['texts']} texts to the same "
            "tokens when it reads the tokenizer back"
        )
    return notes
