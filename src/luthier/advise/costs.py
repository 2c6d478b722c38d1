"""The approaches side by side, in the user's numbers: set-up, data, cost per query, latency."""

import difflib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.advise.answers import Answers
from luthier.advise.decide import LEAST
from luthier.errors import UserError
from luthier.yaml_text import parse_yaml

# A query, where the user gives no numbers.
USUAL = {"prompt_tokens": 300, "completion_tokens": 150, "context_tokens": 2000, "queries": 10_000}
_WORKDAY = 8 * 60  # minutes


class Prices(BaseModel):
    """The numbers of prices.yaml, which explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_input: float = Field(ge=0)
    api_output: float = Field(ge=0)
    api_latency: float = Field(ge=0)
    api_speed: float = Field(gt=0)
    tuned_input: float = Field(ge=0)
    tuned_output: float = Field(ge=0)
    tuned_latency: float = Field(ge=0)
    tuned_speed: float = Field(gt=0)
    prefill_speed: float = Field(gt=0)
    training: float = Field(ge=0)
    epochs: float = Field(gt=0)
    embedding: float = Field(ge=0)
    corpus_tokens: float = Field(ge=0)
    retrieval_latency: float = Field(ge=0)
    day: float = Field(ge=0)
    few_shot_days: float = Field(ge=0)
    rag_days: float = Field(ge=0)
    fine_tune_days: float = Field(ge=0)
    example_minutes: float = Field(ge=0)
    shots: int = Field(ge=0)


@dataclass(frozen=True)
class Way:
    """One approach.

    Attributes:
        data: what it needs, in words.
        tokens_in, tokens_out: of a query.
        cost_per_query, cost_per_month, setup_cost: US dollars; the work counts in ``setup_cost``.
        latency: seconds until the answer is complete.
        pays_after: queries after which it is cheaper than few-shot prompting, set-up included; None
            where it never is, 0 for few-shot itself.
    """

    name: str
    setup_days: float
    setup_cost: float
    data: str
    tokens_in: int
    tokens_out: int
    cost_per_query: float
    cost_per_month: float
    latency: float
    pays_after: float | None


def load_prices(path: Path | None = None) -> Prices:
    """The built-in prices, with those that the YAML file ``path`` replaces.

    Raises:
        UserError: the file is missing or is not a mapping, or a price is unknown or not a number.
    """
    values: dict[str, Any] = yaml.safe_load(
        files("luthier.advise").joinpath("prices.yaml").read_text("utf-8")
    )
    if path is None:
        return Prices.model_validate(values)
    try:
        mine = parse_yaml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prices {path}: {error}") from None
    if not isinstance(mine, dict):
        raise UserError(
            f"{path}: a price file has lines of 'name: number'; names are {', '.join(values)}"
        )
    try:
        return Prices.model_validate({**values, **mine})
    except ValidationError as error:
        lines = [_explain(dict(issue)) for issue in error.errors()]
        raise UserError(f"{path}: " + "\n".join(lines)) from None


def _explain(issue: dict[str, Any]) -> str:
    key = str(issue["loc"][0])
    if issue["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, Prices.model_fields, n=1, cutoff=0.5)
        known = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(Prices.model_fields)}"
        return f"unknown price '{key}'; {known}"
    return f"'{key}' is {issue['input']!r}: {str(issue['msg']).lower()}"


def compare(answers: Answers, prices: Prices) -> list[Way]:
    """Few-shot prompting, RAG, fine-tuning and both, for the queries of ``answers``."""
    given = {key: getattr(answers, key) for key in USUAL}
    prompt, completion, context, queries = (
        USUAL[key] if value is None else value for key, value in given.items()
    )
    examples = answers.examples or 0
    trained = max(examples, LEAST) * (prompt + completion) * prices.epochs
    labelling = max(0, LEAST - examples) * prices.example_minutes / _WORKDAY
    indexing = prices.corpus_tokens * prices.embedding / 1e6
    tuning = trained * prices.training / 1e6
    shots = prices.shots * (prompt + completion)
    to_write = f", {LEAST - examples:,} still to write" if examples < LEAST else ""
    pairs = f"{max(examples, LEAST):,} examples{to_write}"
    documents = f"documents ({prices.corpus_tokens / 1e6:g}M tokens)"
    search = prices.embedding * prompt / 1e6

    def way(name: str, days: float, bill: float, data: str, tokens: int, tuned: bool) -> Way:
        retrieves = name in ("rag", "hybrid")
        price_in, price_out = (
            (prices.tuned_input, prices.tuned_output)
            if tuned
            else (prices.api_input, prices.api_output)
        )
        query = (tokens * price_in + completion * price_out) / 1e6 + (search if retrieves else 0)
        latency = (
            (prices.retrieval_latency if retrieves else 0)
            + (prices.tuned_latency if tuned else prices.api_latency)
            + tokens / prices.prefill_speed
            + completion / (prices.tuned_speed if tuned else prices.api_speed)
        )
        cost = days * prices.day + bill
        return Way(name, days, cost, data, tokens, completion, query, query * queries, latency, 0)

    ways = [
        way("few-shot", prices.few_shot_days, 0, f"{prices.shots} examples", prompt + shots, False),
        way("rag", prices.rag_days, indexing, documents, prompt + context, False),
        way("fine-tune", prices.fine_tune_days + labelling, tuning, pairs, prompt, True),
        way(
            "hybrid",
            prices.fine_tune_days + labelling + prices.rag_days,
            tuning + indexing,
            f"{pairs}; {documents}",
            prompt + context,
            True,
        ),
    ]
    return [ways[0], *(_paying(other, ways[0]) for other in ways[1:])]


def _paying(way: Way, few_shot: Way) -> Way:
    more, less = way.setup_cost - few_shot.setup_cost, few_shot.cost_per_query - way.cost_per_query
    after = max(0.0, more / less) if less > 0 else None
    return Way(**{**vars(way), "pays_after": after})
