"""A stream gives the rows that ordinary preparation makes of the same sources, wherever it begins."""

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import CHAT_FAMILIES, make_tokenizer
from helpers import Notes, write_rows
from preferences import preference_rows
from transformers import PreTrainedTokenizerBase

from luthier.data import stream
from luthier.data.prepare import Prepared, load_streamed, prepare, store, tokenize_into
from luthier.data.stream import Stream, Window
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.recipe import Recipe
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]

TALK = [
    {"role": "user", "content": "How many files are in the folder?"},
    {"role": "assistant", "content": "There are 12."},
    {"role": "user", "content": "And 3 folders up?"},
    {"role": "assistant", "content": "None at all. " * 3},
]


def talk(number: int) -> list[dict[str, str]]:
    first = {**TALK[0], "content": f"{number}: {TALK[0]['content']}"}
    return [first, *TALK[1 : 2 * (1 + number % 2)]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "WINDOW", 7)
    monkeypatch.setattr(stream, "_BLOCK", 3)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


def answers(count: int, name: str = "p") -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {n}", "completion": f"{n} " * (1 + n % 5)} for n in range(count)]


def first_pass(prepared: Prepared) -> list[Window]:
    """The windows of the first pass over the source."""
    found: list[Window] = []
    for window in windows_of(prepared.stream):
        if window.place.read.passes:
            return found
        found.append(window)
    raise AssertionError("a stream has no end")


def windows_of(opened: Stream | None) -> Iterator[Window]:
    assert opened is not None
    return chain([opened.first], opened.following())


def told(rows: list[TokenRow]) -> list[tuple[bytes, bytes, dict[str, Any]]]:
    return [(r.ids.tobytes(), r.mask.tobytes(), r.conversation.to_row()) for r in rows]


KINDS: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "answers": (answers(30), []),
    "talks": ([{"messages": talk(n)} for n in range(16)], ["data.max_length=100"]),
    "texts": ([{"text": f"{n} and then " * (1 + 9 * (n % 4))} for n in range(16)], []),
    "pairs": (preference_rows(16), ["objective.name=dpo"]),
    "all-tokens": (answers(16), ["data.train_on=all"]),
    "long": (
        [{"prompt": f"{n}", "completion": "far too long " * (1 + n % 9)} for n in range(20)],
        [],
    ),
    "cut": (
        [{"prompt": f"{n}", "completion": "far too long " * (1 + n % 9)} for n in range(20)],
        ["data.on_too_long=truncate"],
    ),
}


@pytest.mark.parametrize("family", CHAT_FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_as_prepared(
    make_recipe: MakeRecipe, tmp_path: Path, kind: str, family: str
) -> None:
    rows, settings = KINDS[kind]
    held_out = write_rows(tmp_path / "v.jsonl", [rows[3], rows[-1]])
    half = len(rows) // 2
    sources = [
        write_rows(tmp_path / "a.jsonl", rows[:half]),
        write_rows(tmp_path / "b.jsonl", rows[half:]),
    ]
    recipe = make_recipe(
        f"data.train=[{sources[0]}, {sources[1]}]",
        f"data.validation={held_out}",
        "data.max_length=48",
        *settings,
    )
    known = make_tokenizer(CHAT_FAMILIES[family])
    kept = prepare(recipe, known)
    assert kept.train
    streamed = prepare(recipe.changed(data={"streaming": True}), known)
    windows = first_pass(streamed)
    assert len(windows) > 2
    assert told([row for window in windows for row in window.rows]) == told(kept.train)
    assert told(streamed.validation) == told(kept.validation)
    read, report = windows[-1].place.read, kept.report
    assert (read.rows, read.kept) == (report.rows.read, report.rows.train)
    assert read.tokens == report.tokens.train.total
    assert read.supervised == report.tokens.train.supervised
    assert read.longest == report.tokens.train.longest
    long = [each for each in report.left_out.too_long if str(held_out) not in each.row]
    assert read.too_long == len(long)
    assert read.also_in_validation == len(report.left_out.also_in_validation) > 0
    assert read.up_to == f"{sources[1]}:{len(rows) - half}"


@pytest.mark.parametrize("ending", ["csv", "jsonl.gz", "parquet", "json"])
def test_any_file(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, ending: str
) -> None:
    rows, file = answers(20), tmp_path / f"rows.{ending}"
    if ending == "csv":
        lines = ["prompt,completion", *(f"{r['prompt']},{r['completion']}" for r in rows)]
        file.write_text("\n".join(lines))
    elif ending == "jsonl.gz":
        file.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows))
    recipe = make_recipe(f"data.train={file}", "data.validation_fraction=0")
    kept = prepare(recipe, tokenizer)
    streaming = recipe.changed(
        data={"streaming": True, "validation_fraction": 0, "validation_rows": 0}
    )
    windows = first_pass(prepare(streaming, tokenizer))
    assert told([row for window in windows for row in window.rows]) == told(kept.train)


def streaming(make_recipe: MakeRecipe, file: Path | str, *more: str) -> Recipe:
    return make_recipe(f"data.train={file}", "data.streaming=true", "data.validation_rows=4", *more)


def test_the_first_rows_are_held_out_in_every_pass_and_wherever_they_come_again(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = answers(12)
    file = write_rows(tmp_path / "rows.jsonl", [*rows, rows[2], *answers(3, "q")])
    prepared = prepare(streaming(make_recipe, file), tokenizer)
    assert [row.origin.line for row in prepared.validation] == [1, 2, 3, 4]
    windows = list(islice(windows_of(prepared.stream), 5))
    lines = [[row.origin.line for row in window.rows] for window in windows]
    assert lines == [[5, 6, 7, 8, 9, 10, 11], [12, 14, 15, 16]] * 2 + [lines[0]]
    assert [window.place.read.passes for window in windows] == [0, 0, 1, 1, 2]
    assert windows[1].place.read.also_in_validation == 1
    assert "pass 2" in windows[2].notes[0].text
    assert windows[3].place.read.rows == 24


def test_it_goes_on_from_any_window(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", answers(40))
    more = write_rows(
        tmp_path / "more.jsonl", [{"question": "q", "answer": str(n)} for n in range(9)]
    )
    recipe = streaming(make_recipe, f"[{file}, {more}]")
    opened = prepare(recipe, tokenizer).stream
    assert opened is not None
    whole = list(islice(windows_of(opened), 9))
    for number in (1, 4, 5, 6, 8):
        begun = stream.open_stream(opened.source, whole[number].place, Notes())
        for window, wanted in zip(windows_of(begun), whole[number:], strict=False):
            assert told(window.rows) == told(wanted.rows)
            assert window.place == wanted.place


def test_what_a_resumed_run_holds_out(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The second row is too long to validate on, and stays held out where a shorter one asks the same."""
    rows = answers(30)
    rows[1]["completion"] = "far too long " * 50
    rows[20]["prompt"] = rows[1]["prompt"]
    recipe = streaming(make_recipe, write_rows(tmp_path / "rows.jsonl", rows))
    prepared, run = prepare(recipe, tokenizer), Run(tmp_path / "run")
    store(prepared, run)
    windows = list(islice(windows_of(prepared.stream), 5))
    resumed = load_streamed(recipe, tokenizer, run, windows[1].place)
    again = list(islice(windows_of(resumed.stream), 4))
    assert [told(window.rows) for window in again] == [told(window.rows) for window in windows[1:]]
    assert told(resumed.validation) == told(prepared.validation)
    lines = {row.origin.line for window in windows for row in window.rows}
    assert lines == set(range(5, 31)) - {21}


def test_rows_that_changed_before_the_place_are_noticed(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = answers(30)
    file = write_rows(tmp_path / "rows.jsonl", rows)
    opened = prepare(streaming(make_recipe, file), tokenizer).stream
    assert opened is not None
    _, place = (window.place for window in islice(windows_of(opened), 2))
    write_rows(file, [{"prompt": "new", "completion": "row"}, *rows])
    with pytest.raises(UserError, match=r"data\.train has changed since the last checkpoint"):
        stream.open_stream(opened.source, place, Notes())


def test_bad_rows_are_named_when_they_come(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = answers(20)
    del rows[14]["completion"]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    opened = prepare(streaming(make_recipe, file), tokenizer).stream
    assert opened is not None
    with pytest.raises(UserError, match=re.escape(f"{file}:15: ")):
        list(islice(windows_of(opened), 3))
    opened = prepare(streaming(make_recipe, file, "data.on_bad_row=skip"), tokenizer).stream
    assert opened is not None
    window = list(islice(windows_of(opened), 3))[1]
    assert window.place.read.bad == 1
    assert f"{file}:15: " in window.lost[0].text
    assert [row.origin.line for row in window.rows] == [12, 13, 14, 16, 17, 18]


def test_long_texts_make_short_windows(
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "_TOKENS", 40)
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "0123456789 " * 40}] * 12)
    windows = first_pass(prepare(streaming(make_recipe, file, "data.validation_rows=0"), tokenizer))
    assert len(windows) == 12


def test_nothing_to_train_on_is_an_end(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"prompt": f"{n} " * 200, "completion": "x"} for n in range(9)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"9 are longer than data\.max_length 128"):
        prepare(streaming(make_recipe, file, "data.validation_rows=0"), tokenizer)
    with pytest.raises(UserError, match=rf"none of the first 9 rows .*{file}:1 is longer than"):
        prepare(streaming(make_recipe, file, "data.validation_rows=9"), tokenizer)
    write_rows(file, answers(3))
    with pytest.raises(UserError, match=r"no more than the 4 that data\.validation_rows holds out"):
        prepare(streaming(make_recipe, file), tokenizer)


@pytest.mark.parametrize(
    "left", [answers(2), [*answers(4), *[{"prompt": "no completion"}] * 20]], ids=["few", "bad"]
)
def test_a_source_that_is_emptied_while_it_is_read_is_an_end(
    left: list[dict[str, Any]],
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    file = write_rows(tmp_path / "rows.jsonl", answers(12))
    opened = prepare(streaming(make_recipe, file, "data.on_bad_row=skip"), tokenizer).stream
    assert opened is not None
    windows = opened.source.windows(opened.first.after)
    write_rows(file, left)
    with pytest.raises(UserError, match=r"changed while the run trained: pass [12] over it"):
        list(islice(windows, 20))


def test_the_first_window_is_told_of(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """How columns are read, and the bad rows of windows before it that have no other rows."""
    rows: list[dict[str, Any]] = [{"question": f"{n}", "answer": "a"} for n in range(20)]
    for row in rows[4:15]:
        del row["answer"]
    file, notes = write_rows(tmp_path / "rows.jsonl", rows), Notes()
    prepared = prepare(streaming(make_recipe, file, "data.on_bad_row=skip"), tokenizer, notes)
    assert any("'question'" in note for note in notes.notes)
    assert [row.row for row in prepared.report.left_out.bad] == [
        f"{file}:{n}" for n in range(5, 16)
    ]
    assert prepared.stream is not None
    assert [row.origin.line for row in prepared.stream.first.rows] == [16, 17, 18]


def test_a_data_set_of_the_hub_arrives_row_by_row(
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder with the hub's layout stands in for the hub, which does not answer here."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    rows = [{"messages": talk(n), "about": {"n": n}} for n in range(20)]
    folder = tmp_path / "hub"
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((rows[:11], rows[11:])):
        table = pa.Table.from_pylist(part)
        pq.write_table(table, folder / f"data/train-{number:05}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:5]), folder / "data/test-00000-of-00001.parquet")
    no_share = "data.validation_fraction=0"
    kept = prepare(make_recipe(f"data.train={folder}:train", no_share), tokenizer)
    found = stream.hub_dataset
    monkeypatch.setattr(
        stream,
        "hub_dataset",
        lambda name: (str(folder), found(name)[1]) if name.startswith("owner/name") else None,
    )
    opened = prepare(streaming(make_recipe, "owner/name", "data.validation_rows=0"), tokenizer)
    windows = first_pass(opened)
    made = [row for window in windows for row in window.rows]
    assert [told([row])[0][:2] for row in made] == [told([row])[0][:2] for row in kept.train]
    assert [row.conversation.messages for row in made] == [
        row.conversation.messages for row in kept.train
    ]
    assert str(made[-1].origin) == "owner/name:20"
    test = streaming(make_recipe, "owner/name:test", "data.validation_rows=0")
    assert len(prepare(test, tokenizer).train) == 5
    with pytest.raises(UserError, match=r"no split 'dev': it has train, test"):
        prepare(streaming(make_recipe, "owner/name:dev"), tokenizer)


WRONG = [
    (["train.max_steps=-1"], r"data\.streaming needs train\.max_steps"),
    (
        ["data.validation_fraction=0.1"],
        r"and data\.validation_rows or data\.validation in its place",
    ),
    (["data.max_rows=10"], r"data\.max_rows draws from all rows"),
    (["data.replay={source: x.jsonl}"], r"data\.replay draws from all rows"),
    (["objective.name=kto"], "which looks at all rows before the first step"),
    (["data.validation=v.jsonl", "data.validation_rows=3"], "take one of them out"),
    (["data.streaming=false", "data.validation_rows=3"], r"is for data\.streaming"),
]


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_what_needs_all_rows_is_refused(
    make_recipe: MakeRecipe, settings: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        make_recipe("data.streaming=true", *settings)


def test_rows_are_held_out_unless_told_otherwise(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("data.streaming=true")
    assert recipe.has_validation
    assert recipe.data.validation_rows == 200
    other = recipe.changed(data={"validation": "v.jsonl"})
    assert other.data.validation_rows is None
    assert recipe.changed(data={"streaming": False}).data.validation_fraction == 0.1
    assert not make_recipe("data.streaming=true", "data.validation_rows=0").has_validation
    again = Recipe.from_tree(recipe.model_dump(), "a stored recipe")
    assert again == recipe


def test_commands_that_keep_rows_say_so(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    recipe = make_recipe("data.streaming=true")
    with pytest.raises(UserError, match=r"data\.streaming keeps no rows"):
        tokenize_into(tmp_path / "out", recipe, tokenizer)
    tokenize_into(tmp_path / "out", make_recipe(), tokenizer)
    with pytest.raises(UserError, match=r"take data\.streaming out"):
        prepare(make_recipe("data.streaming=true", f"data.train={tmp_path / 'out'}"), tokenizer)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_refused(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="is a pipe, whose rows come once"):
        prepare(streaming(make_recipe, tmp_path / "pipe.jsonl"), tokenizer)
