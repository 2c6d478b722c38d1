"""`luthier merge`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from luthier.api import Combination, Onto
from luthier.cli.app import Json, app, out, print_json
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust
from luthier.cli.tuned import BaseModel, open_tuned
from luthier.errors import UserError
from luthier.perplexity import perplexity

if TYPE_CHECKING:
    from luthier.api import Difference

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
RunPaths = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="One finished run, or several to combine.")
]
Dtype = Annotated[DtypeName, typer.Option(help="Dtype of the merged weights; auto: the run's.")]


@app.command()
def merge(
    run_paths: RunPaths,
    to: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must not exist.")],
    dtype: Dtype = "auto",
    onto: Annotated[
        Onto,
        typer.Option(
            help="The base as training saw it (its dtype, its 4 bits), or as it was published."
        ),
    ] = "trained",
    weights: Annotated[
        str | None, typer.Option(help="Weight of each run, as 0.7,0.3; default: equal.")
    ] = None,
    combination: Annotated[
        Combination, typer.Option(help="How to combine several adapters; cat is the exact sum.")
    ] = "cat",
    density: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share that ties, dare and magnitude_prune keep.")
    ] = 0.5,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest weight file, which also bounds the memory used.")
    ] = "2GB",
    check_rows: Annotated[
        int, typer.Option(min=0, help="Held-out rows to compare outputs on; 0: no comparison.")
    ] = 64,
    base_model: BaseModel = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Merge a run's adapter into its base: one folder that Transformers loads by itself.

    Merges in float32, tensor by tensor. A QLoRA adapter is merged into the dequantised 4-bit weights
    that it was trained on; `--onto original` merges into the published weights instead and reports
    the difference. Then base + adapter and the merged model are compared on the same held-out rows.

    Example: `luthier merge runs/first --out merged`

    Several: `luthier merge runs/a runs/b --weights 0.7,0.3 --combination svd --out both`
    """
    runs = [open_tuned(path, base_model, trust) for path in run_paths]
    import torch

    from luthier.api import MergeOptions, merge_runs

    options = MergeOptions(
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        onto=onto,
        weights=_numbers(weights, len(runs)),
        combination=combination,
        density=density,
        max_shard_bytes=parse_size(max_shard_size),
        check_rows=check_rows,
    )
    with terminal() as on_event:
        merged = merge_runs(runs, to, options, on_event)
    if as_json:
        print_json(merged.as_dict())
        return
    if merged.layers:
        what = f"{merged.layers} layers merged onto the base as {_ONTO[merged.onto]}"
    else:
        what = "full fine-tuning has nothing to merge: the weights were copied"
    out.print(f"{what}; {merged.dtype}, {merged.bytes / 2**20:,.1f} MiB in {merged.files} file(s)")
    if merged.untied:
        out.print(
            "the embedding and the output layer are no longer tied: the adapter changed only one"
        )
    if merged.rewards_off is not None:
        out.print(
            f"its rewards are those of base and adapter, within {merged.rewards_off:.2%} of their spread"
        )
    for name, check in merged.checks.items():
        show_difference(f"on rows of {name}", check, ("base + adapter", "merged"))
    out.print(str(merged.folder), highlight=False, soft_wrap=True)


_ONTO = {"trained": "training saw it", "original": "published"}


def _numbers(text: str | None, count: int) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--weights takes numbers such as 0.7,0.3, not '{text}'") from None
    if len(numbers) != count:
        raise UserError(f"--weights has {len(numbers)} numbers for {count} run(s)")
    return numbers


def parse_size(text: str) -> int:
    """Bytes of ``2GB``, ``500MB``, ``100KB`` or a plain number."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", text.strip().upper())
    size = int(float(match[1]) * units[match[2] or ""]) if match else 0
    if size < 1:
        raise UserError(f"--max-shard-size takes a size such as 2GB or 500MB, not '{text}'")
    return size


def show_difference(title: str, check: "Difference", names: tuple[str, str]) -> None:
    """Loss and perplexity of both models, and how far their outputs are apart."""
    table = Table("", *names, title=title, title_justify="left", title_style="")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("loss (nats per token)", f"{check.loss_before:.5f}", f"{check.loss_after:.5f}")
    table.add_row(
        "perplexity", f"{perplexity(check.loss_before):.4f}", f"{perplexity(check.loss_after):.4f}"
    )
    out.print(table)
    out.print(
        f"  {check.rows} rows, {check.tokens:,} tokens, computed in {check.arithmetic}; logits differ "
        f"by {check.logits_mean:.2g} on average, {check.logits_max:.2g} at most;\n"
        f"  KL {check.kl:.2g} nats per token; the same top token at {check.same_top:.2%} of "
        f"{check.positions} positions",
        highlight=False,
    )
