"""Win rate: whose generated answer is better, the base's or the tuned model's, by a judge or a reward model."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from luthier.data.conversation import Conversation
from luthier.data.prepare import trained_on
from luthier.data.split import without_overlap
from luthier.data.template import TemplateRejects
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.errors import UserError
from luthier.evaluate.judge import WORKERS, Judge
from luthier.evaluate.statistics import mean_interval, paired_test, share_interval
from luthier.events import Note, OnEvent, ignore, tracked
from luthier.files import user_path
from luthier.models.tuned import load_tuned
from luthier.objectives.reward import rewards_of
from luthier.recipe import Recipe
from luthier.records.evaluation import Compared, Outcome, Winner, WinRate, Wins
from luthier.run import Run, open_run

_WINNERS: dict[float, Winner] = {0.0: "base", 0.5: "tie", 1.0: "tuned"}


@dataclass(frozen=True)
class Verdicts:
    """What one judge says, by row: 1 where the tuned model's answer is better, 0 the base's, 0.5 a tie.

    Attributes:
        swayed: as of ``WinRate``.
    """

    judge: str
    outcomes: list[float]
    swayed: int | None = None

    def winner(self, row: int) -> Winner:
        return _WINNERS[self.outcomes[row]]


@dataclass(frozen=True)
class Asked:
    """Who is asked whose answer is better, checked before the answers are generated."""

    judge: Judge | None
    reward: Run | None

    def verdicts(
        self,
        rows: Sequence[Conversation],
        base: Sequence[str],
        tuned: Sequence[str],
        on_event: OnEvent = ignore,
    ) -> list[Verdicts]:
        """What each of them says of the answers to ``rows``.

        Raises:
            UserError: a judge does not answer, or the reward model's template refuses a row.
        """
        found = []
        if self.reward is not None and rows:
            found.append(_by_reward(self.reward, rows, base, tuned, on_event))
        if self.judge is not None and rows:
            found.append(_by_judge(self.judge, rows, base, tuned, on_event))
        return found


def who_is_asked(recipe: Recipe, kept_in: Path) -> Asked:
    """Of ``recipe``; see its keys ``evaluate.win_rate``, ``judge_model`` and ``reward_model``.

    Args:
        kept_in: file of what a judge said before.

    Raises:
        UserError: there is no finished reward run where the recipe says, or a package is missing.
        Untrusted: that run comes from elsewhere.
    """
    settings = recipe.evaluate
    judge = Judge(settings, kept_in) if recipe.judge_compares else None
    reward = None
    if settings.reward_model is not None and settings.win_rate is not False:
        reward = open_run(user_path(settings.reward_model))
        reward.require_finished()
        if not reward.recipe().objective.scores:
            raise UserError(
                f"evaluate.reward_model {settings.reward_model} is a run of the objective "
                f"{reward.recipe().objective.name}, which scores no answers; give a run of the objective "
                "reward"
            )
    return Asked(judge, reward)


def win_rate(verdicts: Verdicts, base: Sequence[str], tuned: Sequence[str]) -> WinRate:
    """The verdicts counted, with their interval and whether longer answers win."""
    outcomes = verdicts.outcomes
    rows = len(outcomes)
    test = paired_test([0.5] * rows, outcomes)
    longer = [
        float((len(after) > len(before)) == (outcome == 1))
        for outcome, before, after in zip(outcomes, base, tuned, strict=True)
        if outcome != 0.5 and len(before) != len(after)
    ]
    return WinRate(
        judge=verdicts.judge,
        wins=outcomes.count(1.0),
        ties=outcomes.count(0.5),
        losses=outcomes.count(0.0),
        rate=share_interval(sum(outcomes) / rows, rows),
        swayed=verdicts.swayed,
        longer=mean_interval(longer) if longer else None,
        test=Outcome(p=test.p, rows=rows, verdict=test.verdict),
    )


def count_wins(
    verdicts: Sequence[Verdicts], base: Sequence[str], tuned: Sequence[str]
) -> Wins | None:
    """All verdicts counted; None without any."""
    if not verdicts:
        return None
    rates = tuple(win_rate(each, base, tuned) for each in verdicts)
    return Wins(rates=rates, lengths=compare_lengths(base, tuned))


def compare_lengths(base: Sequence[str], tuned: Sequence[str]) -> Compared:
    """Characters of the answers of both sides."""
    sides = [[float(len(answer)) for answer in answers] for answers in (base, tuned)]
    return Compared(
        base=mean_interval(sides[0]),
        tuned=mean_interval(sides[1]),
        test=paired_test(*sides, higher_is_better=False),
    )


def _by_judge(
    judge: Judge,
    rows: Sequence[Conversation],
    base: Sequence[str],
    tuned: Sequence[str],
    on_event: OnEvent,
) -> Verdicts:
    """Asked in both orders; who wins in one alone has not won. Equal answers are a tie, unasked."""

    def both(row: Conversation, before: str, after: str) -> tuple[float, float]:
        if before == after:
            return 0.5, 0.5
        return judge.first_is_better(after, before, row), 1 - judge.first_is_better(
            before, after, row
        )

    name = judge.settings.judge_model or ""
    with ThreadPoolExecutor(WORKERS) as pool:
        asked = tracked(
            pool.map(both, rows, base, tuned), f"judge {name}, both orders", on_event, len(rows)
        )
        said = list(asked)
    return Verdicts(
        judge=name,
        outcomes=[one if one == other else 0.5 for one, other in said],
        swayed=sum(one != other for one, other in said),
    )


def _by_reward(
    run: Run,
    rows: Sequence[Conversation],
    base: Sequence[str],
    tuned: Sequence[str],
    on_event: OnEvent,
) -> Verdicts:
    """The answer with the higher reward wins; equal rewards are a tie."""
    _, seen = without_overlap(rows, trained_on(run, on_event))
    if seen:
        on_event(
            Note(
                f"{len(seen)} of the {len(rows)} rows are in the training set of the reward model {run} "
                f"({seen[0].origin} first): it knows which answers are wanted there, so it judges by "
                "them; hold the same rows out of both runs",
                warning=True,
            )
        )
    models = load_tuned(run, on_event=on_event, scores=True)
    data = run.recipe().data
    encoder = Tokenizer(models.tokenizer, "completions", data.history)
    tokens = [
        _answered(encoder, row, answer)
        for row, *answers in zip(rows, base, tuned, strict=True)
        for answer in answers
    ]
    task = f"rewards by {run.root.name}"
    scores = rewards_of(models.tuned, tokens, task=task, on_event=on_event)
    pairs = zip(scores[::2], scores[1::2], strict=True)
    outcomes = [0.5 if before == after else float(after > before) for before, after in pairs]
    return Verdicts(judge=str(run), outcomes=outcomes)


def _answered(encoder: Tokenizer, row: Conversation, answer: str) -> TokenRow:
    """The prompt of ``row`` with ``answer``, as the reward model reads it."""
    spoken = (*row.prompt, {"role": "assistant", "content": answer})
    try:
        return encoder.encode(Conversation(row.origin, spoken))[-1]
    except TemplateRejects as error:
        raise UserError(
            f"the reward model cannot read an answer to {row.origin}: {error}"
        ) from None
