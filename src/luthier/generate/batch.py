"""Answer every row of a file: in order, none lost, and on from where it was stopped."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from transformers import PreTrainedTokenizerBase

from luthier.data.questions import Question, to_question
from luthier.data.readers import BadRow, read_rows
from luthier.errors import UserError
from luthier.events import OnEvent, ignore, tracked
from luthier.files import staged_file
from luthier.generate.answer import Model, Prompt, Sampling, answer_all, encode_prompt
from luthier.generate.batching import Pace
from luthier.models.adapters import inner
from luthier.models.load import max_positions

_BATCHES = 4  # in a chunk: rows of like length find each other in it, and it is what a kill costs

Item = Question | BadRow


@dataclass(frozen=True)
class Answered:
    """How a file was answered: rows in all, those that could not be asked, those done before.

    ``pace`` is of this call alone.
    """

    rows: int
    errors: int
    resumed: int
    pace: Pace


def answer_file(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    output: Path,
    sampling: Sampling,
    batch_size: int,
    who: str,
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
) -> Answered:
    """Write one JSON object per row of ``source`` to ``output``, in its order.

    A row that cannot be asked has its ``error`` in place of an ``answer``. Answers gather in
    ``<output>.part``, a chunk at a time, each on the disk before the next begins; the same call goes
    on from there, with the same answers as if it had not been stopped.

    Args:
        who: identifies what answers; answers of another model are not mixed in.
        columns: what the rows call the fields of their format, as in a recipe.

    Raises:
        UserError: ``output`` exists, or its unfinished part is of other settings.
    """
    if output.exists():
        raise UserError(f"{output} exists already; choose another --output, or delete it first")
    total = sum(1 for _ in read_rows(source, on_event))
    part = output.with_name(output.name + ".part")
    chunk_size = batch_size * _BATCHES
    pace = Pace()
    settings = {
        "input": source,
        "rows": total,
        "who": who,
        "batch_size": batch_size,
        **asdict(sampling),
    }
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        done = resumed = _resume(part, settings, chunk_size, total)
        items = islice(_items(source, columns), done, None)
        chunks = iter(lambda: list(islice(items, chunk_size)), [])
        with part.open("ab") as file:
            for chunk in tracked(chunks, "answering rows", on_event, total - done, size=len):
                further = _further(sampling, done)
                lines = _answer_chunk(model, tokenizer, chunk, further, batch_size, pace)
                _append(file, lines)
                done += len(chunk)
        errors = _finish(part, output)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror or error}; run the same command again to resume from "
            f"{part}"
        ) from error
    return Answered(total, errors, resumed, pace)


def _items(source: str, columns: Mapping[str, str] | None) -> Iterator[Item]:
    for item in read_rows(source):
        if isinstance(item, BadRow):
            yield item
            continue
        origin, row = item
        try:
            yield to_question(row, origin, columns)
        except BadRow as bad:
            yield bad


def _answer_chunk(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    chunk: Sequence[Item],
    sampling: Sampling,
    batch_size: int,
    pace: Pace,
) -> list[dict[str, Any]]:
    most = max_positions(inner(model).config)
    errors: dict[int, str] = {}
    asked: dict[int, Prompt] = {}
    for index, item in enumerate(chunk):
        if isinstance(item, BadRow):
            errors[index] = item.reason
            continue
        try:
            length = len(encode_prompt(tokenizer, item.prompt))
        except UserError as error:  # the template refuses it
            errors[index] = str(error)
            continue
        if most is not None and length >= most:
            errors[index] = f"a prompt of {length} tokens fills the model's {most} positions"
        else:
            asked[index] = item.prompt
    texts = answer_all(model, tokenizer, list(asked.values()), sampling, batch_size, pace)
    answers = dict(zip(asked, texts, strict=True))
    return [_line(item, answers.get(i), errors.get(i)) for i, item in enumerate(chunk)]


def _further(sampling: Sampling, done: int) -> Sampling:
    """So that rows of different chunks do not draw the same random numbers."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + done)


def _line(item: Item, answer: str | None, error: str | None) -> dict[str, Any]:
    line: dict[str, Any] = {"row": str(item.origin)}
    if isinstance(item, Question):
        prompt = item.prompt if isinstance(item.prompt, str) else list(item.prompt)
        line["prompt"] = prompt
    if error is not None:
        return {**line, "error": error}
    assert isinstance(item, Question)
    line["answer"] = answer
    if item.reference is not None:
        line["reference"] = item.reference
    return {**line, "extra": item.extra} if item.extra else line


def _append(file: IO[bytes], lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        file.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _resume(part: Path, settings: dict[str, Any], chunk_size: int, total: int) -> int:
    """How many rows ``part`` holds in complete chunks; a partial last chunk, left by a kill, is cut off.

    Its first line are the settings.
    """
    if not part.exists():
        with part.open("wb") as file:
            _append(file, [settings])
        return 0
    with part.open("r+b") as file:
        try:
            theirs = json.loads(file.readline())
        except ValueError:
            theirs = None  # killed while it wrote its first line
        if theirs is not None and theirs != settings:
            differ = [key for key in settings if theirs.get(key) != settings[key]]
            raise UserError(
                f"{part} was started with other settings ({', '.join(differ)}); use those to resume, "
                "or delete it to start over"
            )
        if theirs is None:
            file.seek(0)
            file.truncate()
            _append(file, [settings])
            return 0
        ends = [file.tell()]
        for line in file:
            if not line.endswith(b"\n"):
                break
            ends.append(ends[-1] + len(line))
        rows = len(ends) - 1
        whole = rows if rows == total else rows - rows % chunk_size
        file.truncate(ends[whole])
    return whole


def _finish(part: Path, output: Path) -> int:
    """Move the finished answers to ``output``; return how many of them are errors."""
    errors = 0
    with part.open("rb") as source, staged_file(output) as target:
        source.readline()
        for line in source:
            errors += "error" in json.loads(line)
            target.write(line)
    part.unlink()
    return errors
