"""From a recipe's data group to token rows."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from families import CHAT_FAMILIES, QWEN3, make_tokenizer
from helpers import Notes, write_rows
from transformers import PreTrainedTokenizerBase

from luthier.data.prepare import Prepared, load_stored, prepare, store
from luthier.data.split import sampled, split_key
from luthier.data.stored import RowFile
from luthier.errors import UserError
from luthier.events import Event, Progress
from luthier.recipe import Recipe
from luthier.records.data import Replay
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return make_tokenizer(CHAT_FAMILIES["chatml"])


def keys(rows: list) -> set[str]:  # type: ignore[type-arg]
    return {split_key(row.conversation) for row in rows}


def test_files_of_several_formats_make_one_training_set(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    first = write_rows(
        tmp_path / "a.jsonl", [{"prompt": f"p{i}", "completion": "x"} for i in range(5)]
    )
    second = write_rows(
        tmp_path / "b.jsonl", [{"instruction": f"i{i}", "output": "x"} for i in range(7)]
    )
    recipe = make_recipe(f"data.train=[{first}, {second}]", "data.validation_fraction=0.25")
    prepared = prepare(recipe, tokenizer)
    assert (len(prepared.train), len(prepared.validation)) == (9, 3)
    formats = [(s.format, s.rows) for s in prepared.report.sources]
    assert formats == [("prompt_completion", 5), ("alpaca", 7)]


def test_reading_and_tokenising_say_how_far_they_are_and_change_nothing(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"prompt": f"p{i}", "completion": "x"} for i in range(12)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    recipe = make_recipe(f"data.train={file}", "data.validation_fraction=0.25")
    seen: list[Event] = []
    prepared = prepare(recipe, tokenizer, seen.append)
    assert prepared == prepare(recipe, tokenizer)
    ended = [e for e in seen if isinstance(e, Progress) and e.finished]
    assert Progress(f"reading {file}", 12, 12, "rows") in ended
    assert Progress(f"hashing {file}", 1, 1) in ended
    assert Progress("tokenising rows", 9, 9, "rows") in ended
    assert Progress("tokenising rows", 3, 3, "rows") in ended
    run = Run(tmp_path / "run")
    store(prepared, run)
    seen.clear()
    stored = load_stored(recipe.data, tokenizer, run, seen.append)
    tokens = [row.input_ids for row in prepared.train]
    assert [row.input_ids for row in stored.train] == tokens
    assert Progress(f"reading {run.train_path}", 9, 9, "rows") in seen


def test_a_validation_file_takes_its_rows_out_of_training(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    train = write_rows(
        tmp_path / "t.jsonl", [{"prompt": f"p{i}", "completion": "x"} for i in range(9)]
    )
    held = write_rows(tmp_path / "v.jsonl", [{"prompt": "P3 ", "completion": "y"}])
    prepared = prepare(make_recipe(f"data.train={train}", f"data.validation={held}"), tokenizer)
    assert (len(prepared.train), len(prepared.validation)) == (8, 1)
    assert prepared.report.left_out.also_in_validation == [f"{train}:4"]
    assert not keys(prepared.train) & keys(prepared.validation)


@pytest.mark.parametrize(
    ("choice", "kept"), [("skip", 5), ("truncate", 6)], ids=["skip", "truncate"]
)
def test_rows_that_are_too_long(
    choice: str,
    kept: int,
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    rows = [{"prompt": f"p{i}", "completion": "x"} for i in range(5)]
    file = write_rows(tmp_path / "a.jsonl", [*rows, {"prompt": "long", "completion": "x " * 300}])
    recipe = make_recipe(
        f"data.train={file}", "data.validation_fraction=0", f"data.on_too_long={choice}"
    )
    prepared = prepare(recipe, tokenizer)
    assert len(prepared.train) == kept
    assert max(len(row) for row in prepared.train) <= recipe.data.max_length
    assert prepared.report.left_out.too_long[0].row == f"{file}:6"
    with pytest.raises(UserError, match="1 rows are longer than"):
        prepare(
            recipe.model_copy(
                update={"data": recipe.data.model_copy(update={"on_too_long": "error"})}
            ),
            tokenizer,
        )


def test_nothing_left_says_why(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "x " * 300}])
    with pytest.raises(UserError, match="no rows are left to train on: 1 are longer"):
        prepare(make_recipe(f"data.train={file}"), tokenizer)


def test_bad_rows_stop_the_run_unless_the_recipe_skips_them(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"prompt": f"p{i}", "completion": "x" if i % 2 else ""} for i in range(20)]
    file = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as error:
        prepare(make_recipe(f"data.train={file}"), tokenizer)
    text = str(error.value)
    assert "10 rows cannot be used" in text
    assert f"{file}:1: an answer is empty" in text
    assert "and 5 more" in text
    prepared = prepare(make_recipe(f"data.train={file}", "data.on_bad_row=skip"), tokenizer)
    assert len(prepared.train) + len(prepared.validation) == 10


def test_a_sample_of_the_rows(make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase) -> None:
    recipe = make_recipe("data.max_rows=20", "data.validation_fraction=0.1")
    prepared = prepare(recipe, tokenizer)
    assert (len(prepared.train), len(prepared.validation)) == (18, 2)
    assert prepared.report.rows.read == 60


def ids(prepared: Prepared) -> list[list[int]]:
    return [row.input_ids for row in [*prepared.train, *prepared.validation]]


def test_the_stored_split_gives_the_same_tokens(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    recipe, run = make_recipe(), Run(tmp_path / "run")
    prepared = prepare(recipe, tokenizer)
    store(prepared, run)
    assert ids(load_stored(recipe.data, tokenizer, run)) == ids(prepared)


def test_an_answer_that_was_too_long_is_skipped_again(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Where the template rewrites history, a conversation may be kept for some of its answers."""
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = QWEN3
    turns = [
        ("user", "Hello"),
        ("assistant", "Yes."),
        ("user", "Count."),
        ("assistant", "1 " * 200),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    file = write_rows(tmp_path / "long.jsonl", [{"messages": messages}] * 3)
    options = ["data.on_too_long=skip", "data.validation_fraction=0", f"data.train={file}"]
    recipe, run = make_recipe(*options), Run(tmp_path / "run")
    prepared = prepare(recipe, tokenizer)
    assert len(prepared.train) == len(prepared.report.left_out.too_long) == 3
    store(prepared, run)
    assert ids(load_stored(recipe.data, tokenizer, run)) == ids(prepared)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"frage": "q", "antwort": "a"},
            r"fields frage, antwort match no known format: .* if they are question and answer, set "
            r"data.columns: \{prompt: frage, completion: antwort\}",
        ),
        ({}, "none"),
    ],
)
def test_unknown_fields_are_named(
    row: dict[str, str], said: str, make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:  # fmt: skip
    file = write_rows(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match=said):
        prepare(make_recipe(f"data.train={file}"), tokenizer)


def test_replay_adds_general_examples_to_training_alone(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    task = [{"prompt": f"p{i}", "completion": "x"} for i in range(40)]
    general = [{"instruction": f"g{i}", "output": "y"} for i in range(30)]
    general += [{"instruction": row["prompt"], "output": "y"} for row in task]  # some are held out
    train = write_rows(tmp_path / "t.jsonl", task)
    replay = write_rows(tmp_path / "g.jsonl", general)
    recipe = make_recipe(
        f"data.train={train}", "data.validation_fraction=0.1",
        f"data.replay={{source: {replay}, share: 0.25}}",
    )  # fmt: skip
    prepared = prepare(recipe, tokenizer)
    assert prepared.report.replay == Replay(wanted=12, added=12, available=66)
    assert (len(prepared.train), len(prepared.validation)) == (36 + 12, 4)
    assert not keys(prepared.train) & keys(prepared.validation)
    assert {row.conversation.origin.file for row in prepared.validation} == {str(train)}


def test_usual_names_are_said_and_kept_in_the_report(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [{"Question": f"q{i}", "Answer": "a"} for i in range(9)]
    file = write_rows(tmp_path / "a.jsonl", [*rows, {**rows[0], "Question": "z", "context": "c"}])
    notes = Notes()
    prepared = prepare(make_recipe(f"data.train={file}"), tokenizer, notes)
    assert notes.notes == [
        f"{file}: reads 'Question' as prompt, 'Answer' as completion, 'context' as input "
        "(data.columns changes that)"
    ]
    (source,) = prepared.report.sources
    assert (source.format, source.rows) == ("prompt_completion", 10)
    same = write_rows(
        tmp_path / "b.jsonl",
        [
            *({"prompt": f"q{i}", "completion": "a"} for i in range(9)),
            {"prompt": "z\n\nc", "completion": "a"},
        ],
    )
    assert sorted(ids(prepared)) == sorted(
        ids(prepare(make_recipe(f"data.train={same}"), tokenizer))
    )


@pytest.mark.parametrize("fmt", ["auto", "prompt_completion"])
def test_a_recipe_maps_columns(
    fmt: str, make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    table = tmp_path / "a.csv"
    table.write_text("Frage;Antwort;prompt\n" + "".join(f"q{i};a;x\n" for i in range(9)))
    chat = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "a"}]
    more = [] if fmt != "auto" else [write_rows(tmp_path / "b.jsonl", [{"messages": chat}])]
    sources = ", ".join(map(str, [table, *more]))
    recipe = make_recipe(
        f"data.train=[{sources}]", "data.columns={prompt: Frage, completion: Antwort}",
        f"data.format={fmt}", "data.validation_fraction=0",
    )  # fmt: skip
    notes = Notes()
    prepared = prepare(recipe, tokenizer, notes)
    assert notes.notes == []
    first = prepared.train[0].conversation
    assert [turn["content"] for turn in first.messages] == ["q0", "a"]
    assert first.extra == {"prompt": "x"}
    assert prepared.report.sources[0].columns == {"prompt": "Frage", "completion": "Antwort"}
    assert len(prepared.train) == 9 + len(more)


def test_text_with_labels_is_text_where_the_recipe_says_so(
    make_recipe: MakeRecipe, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": i % 2} for i in range(9)])
    notes = Notes()
    labels = prepare(make_recipe(f"data.train={file}"), tokenizer, notes)
    assert "reads 'text' as prompt, 'label' as completion" in notes.notes[0]
    assert {row.conversation.reference for row in labels.train} == {"0", "1"}
    plain = prepare(make_recipe(f"data.train={file}", "data.format=text"), tokenizer)
    assert plain.train[0].conversation.text is not None


def test_rows_outside_of_the_sample_are_not_kept_anywhere(
    make_recipe: MakeRecipe,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sample of a source larger than the disk: the same rows as of all of them, few written."""
    files = [tmp_path / f"{part}.jsonl.gz" for part in "ab"]
    for number, path in enumerate(files):
        with gzip.open(path, "wt", encoding="utf-8") as out:
            for n in range(400):
                row = {"prompt": f"q{number}.{n}", "completion": "a"}
                out.write(json.dumps(row if n % 50 else {"prompt": "", "completion": ""}) + "\n")
    written = []
    append = RowFile.append
    monkeypatch.setattr(
        RowFile, "append", lambda self, row: (written.append(row), append(self, row))
    )
    recipe = make_recipe(
        f"data.train=[{files[0]}, {files[1]}]", "data.max_rows=20", "data.on_bad_row=skip"
    )
    found = prepare(recipe, tokenizer)
    assert len(written) < 200
    assert found.report.rows.read == 784
    assert [source.rows for source in found.report.sources] == [392, 392]
    every = [f"q{number}.{n}" for number in range(2) for n in range(400) if n % 50]
    rows = [row.conversation for row in (*found.train, *found.validation)]
    wanted = {every[index] for index in sampled(len(every), 20, recipe.train.seed)}
    assert {row.messages[0]["content"] for row in rows} == wanted
