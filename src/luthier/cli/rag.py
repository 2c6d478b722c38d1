"""`luthier rag index | ask`."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from luthier.cli.app import Json, app, err, out, print_json
from luthier.cli.terminal import terminal
from luthier.cli.trusting import Trust, open_trusted
from luthier.run import Run

if TYPE_CHECKING:
    from luthier.api import Answer

rag = typer.Typer(
    no_args_is_help=True, help="Answer questions from documents: index them, ask them."
)
app.add_typer(rag, name="rag")


@rag.command("index")
def index_documents(
    documents: Annotated[
        Path, typer.Argument(metavar="DOCS", help="Folder of .md, .txt and .jsonl files.")
    ],
    index: Annotated[Path, typer.Option("--out", help="Folder to write the index to.")],
    size: Annotated[int, typer.Option(min=16, max=250, help="Longest passage, in tokens.")] = 160,
    overlap: Annotated[
        int, typer.Option(min=0, help="Tokens that a passage shares with the one before.")
    ] = 32,
    as_json: Json = False,
) -> None:
    """Cut documents into passages and index their words and their meaning.

    The index is a folder of three files; it needs no server. The embedding model
    (87 MB) is fetched once, as `luthier models pull` does.

    Example: `luthier rag index handbook/ --out handbook.index`
    """
    from luthier.errors import UserError

    if overlap * 2 > size:
        raise UserError(f"--overlap {overlap} is more than half of --size {size}")
    from luthier.api import Embedder, build_index

    with terminal() as on_event:
        embedder = Embedder(on_event)
        manifest = build_index(
            documents, index, embedder, size=size, overlap=overlap, on_event=on_event
        )
    if as_json:
        print_json({"index": str(index), **asdict(manifest)})
        return
    out.print(
        f"{index}: {manifest.passages:,} passages of {len(manifest.hashes):,} files, "
        f"{manifest.tokens:,} tokens, in {manifest.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    if manifest.left_out:
        shown = ", ".join(manifest.left_out[:5]) + (" …" if len(manifest.left_out) > 5 else "")
        out.print(f"skipped files of other types: {shown}", highlight=False, markup=False)
    out.print(f'next: luthier rag ask {index} "…"', highlight=False, markup=False)


@rag.command("ask")
def ask_documents(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="An index of `rag index`.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[
        str,
        typer.Option(help="A finished run, or a model: known name, folder, .gguf file, hub id."),
    ] = "smollm2-135m",
    count: Annotated[
        int, typer.Option("--k", min=1, max=50, help="Passages to give the model.")
    ] = 3,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 96,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Answer a question from the indexed documents, and list the passages it was answered from.

    Passages are found by words (BM25) and by meaning (embeddings). Each is listed with its file and
    lines, whether the answer cites it, and the share of the words which the answer adds to the
    question that occur in the passage.
    """
    if Run(Path(model)).recipe_path.is_file():
        open_trusted(Path(model), trust)
    from luthier.api import Embedder, Index, ask, load_answering, read_manifest
    from luthier.api import index_changes as changes

    stale = changes(read_manifest(index))
    with terminal() as on_event:
        opened = Index(index, Embedder(on_event))
        weights, tokenizer = load_answering(model, on_event)
    with closing(opened):
        answer = ask(opened, weights, tokenizer, question, count, max_new_tokens)
    if stale:
        err.print(
            f"the documents have changed since they were indexed ({', '.join(stale[:3])}"
            f"{' …' if len(stale) > 3 else ''}); index them again: luthier rag index "
            f"{opened.manifest.documents} --out {index}",
            style="yellow",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if as_json:
        print_json({"question": question, **asdict(answer), "stale": stale})
        return
    _show(answer)


def _show(answer: "Answer") -> None:
    print(answer.text)
    table = Table("", "passage", "cited", "words found", "begins")
    for source in answer.sources:
        passage = source.hit.passage
        begins = f"{passage.title}: {passage.text}" if passage.title else passage.text
        table.add_row(
            f"[{source.number}]".replace("[", "\\["),
            Text(passage.place),
            "yes" if source.cited else "",
            f"{source.support:.0%}",
            Text(" ".join(begins.split())[:60] + " …"),
        )
    out.print(table)
    if not answer.grounded:
        out.print("no passage holds most of the answer's words: it may be made up", style="yellow")
