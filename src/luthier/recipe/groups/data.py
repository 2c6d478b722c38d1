"""The group `data`."""

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator

from luthier.recipe.groups.group import Group

# The fields of rows that data.columns may map, in all formats.
COLUMN_NAMES = (
    "instruction", "input", "output", "prompt", "completion", "text", "messages", "conversations",
    "system", "tools", "chosen", "rejected",
)  # fmt: skip


STREAM_HELD_OUT = 200  # rows; as many as train.eval_rows looks at


def _field_of_a_format(name: str) -> str:
    if name not in COLUMN_NAMES:
        raise ValueError(f"no format has a field '{name}'; fields are {', '.join(COLUMN_NAMES)}")
    return name


_ColumnName = Annotated[
    str,
    AfterValidator(_field_of_a_format),
    WithJsonSchema({"type": "string", "enum": list(COLUMN_NAMES)}),
]


class ReplayGroup(Group):
    """General examples among the training rows, against forgetting."""

    source: str = Field(
        description="general examples, given like data.train; none of them is held out"
    )
    share: float = Field(0.1, gt=0, lt=1, description="their share of all training rows")


class DataGroup(Group):
    """What the model learns from, and which part of each row counts."""

    train: str | list[str] = Field(
        description="training data, one source or a list: files (.jsonl .json .csv .tsv .parquet "
        ".arrow .xlsx .ods), folders, patterns such as data/*.csv, or owner/name on the hub; a folder "
        "or owner/name may end in :split or :configuration/split; or a folder that `luthier data tokenize` "
        "wrote",
        examples=["my.jsonl"],
    )
    validation: str | None = Field(
        None,
        description="validation data, one source; without it a share of data.train is held out",
        examples=["validation.jsonl"],
    )
    validation_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of data.train to hold out where data.validation is not set",
        examples=[0.05],
    )
    streaming: bool = Field(
        False,
        description="read the rows of data.train while training, a few thousand at a time, and keep none: "
        "for sources larger than the disk; needs train.max_steps (docs/data.md)",
    )
    validation_rows: int | None = Field(
        None,
        ge=0,
        description="with data.streaming and without data.validation: hold out the first so many rows of "
        "data.train (200)",
        examples=[500],
    )
    format: Literal[
        "auto", "alpaca", "messages", "sharegpt", "prompt_completion", "preference", "text"
    ] = Field("auto", description="format of the rows; auto detects it and says which one it is")
    columns: dict[_ColumnName, str] | None = Field(
        None,
        description="what the rows call the fields of their format, where they have names of their own",
        examples=[{"prompt": "question", "completion": "answer"}],
    )
    template: str = Field(
        "auto",
        description="chat template: model (the model's own), alpaca, or the path of a Jinja file; "
        "auto takes the model's own, or alpaca where it has none",
        examples=["alpaca"],
    )
    template_kwargs: dict[str, str | bool | int | float | None] = Field(
        default_factory=dict,
        description="switches of the chat template, such as enable_thinking; they are kept in the "
        "run's template, so that every answer is asked for as it was trained",
        examples=[{"enable_thinking": False}],
    )
    template_date: Literal["today"] | datetime.date = Field(
        "today",
        description="day that a chat template which reads the clock (Llama 3.x, gpt-oss) writes, in "
        "training and ever after; today is the day on which the run begins",
        examples=["2026-01-31"],
    )
    history: Literal["split", "as_is"] = Field(
        "split",
        description="where the chat template writes earlier turns otherwise than the last (without "
        "their thoughts, say): split trains each answer in a row of its own, as inference asks for "
        "it; as_is trains the conversation as the template writes it",
        examples=["as_is"],
    )
    max_length: int = Field(
        1024,
        ge=8,
        description="longest row in tokens; data.on_too_long says what happens to longer ones",
        examples=[2048],
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        description="train on a random sample of this many rows (train.seed draws it)",
        examples=[1000],
    )
    packing: bool = Field(
        False, description="fill each batch up to data.max_length with whole rows"
    )
    train_on: Literal["completions", "all"] = Field(
        "completions", description="tokens that count in the loss: those of the answers, or all"
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="what to do with rows that cannot be read or have no answer"
    )
    on_too_long: Literal["skip", "error", "truncate"] = Field(
        "skip",
        description="what to do with rows longer than data.max_length; the data report counts them",
    )
    add_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="tokens to add to the model's vocabulary where it lacks them, and to train; "
        "beside an adapter their rows of the embedding train alone",
        examples=[["<|im_start|>", "<|im_end|>"]],
    )
    replay: ReplayGroup | None = Field(
        None,
        description="mix general examples into the training rows, against forgetting",
        examples=[{"source": "general.jsonl", "share": 0.1}],
    )

    @field_validator("columns")
    @classmethod
    def _each_column_once(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        if columns is not None and len(set(columns.values())) < len(columns):
            raise ValueError("two fields cannot be read from one column")
        return columns
