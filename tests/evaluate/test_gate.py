"""The gate over an evaluation, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluations import compared, evaluation, forgetting
from helpers import Cli

from luthier.errors import UserError
from luthier.evaluate.gate import check_gate

EVALUATION = evaluation(
    metrics={
        "loss": compared(tuned=1.2, verdict="better"),
        "exact_match": compared(tuned=0.4),
    },
    forgetting=forgetting(lost=0.03125, leaked=0.1),
)


@pytest.mark.parametrize(
    ("conditions", "passed"),
    [
        ({"least": ["exact_match=0.4"]}, [True]),
        ({"least": ["exact_match=0.41", "exact_match=0"]}, [False, True]),
        ({"most": ["loss=1.2"]}, [True]),
        ({"most": ["loss=1.1"]}, [False]),
        ({"better": ["loss", "exact_match"]}, [True, False]),
        ({"max_forgetting": 0.03125}, [True]),
        ({"max_forgetting": 0.02}, [False]),
        ({"max_leakage": 0.05, "max_forgetting": 0.5}, [True, False]),
    ],
)
def test_conditions(conditions: dict[str, Any], passed: list[bool]) -> None:
    assert [check.passed for check in check_gate(EVALUATION, **conditions)] == passed


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({}, "needs at least one condition"),
        ({"least": ["exact_match"]}, "a condition is metric=value"),
        ({"least": ["exact_match=high"]}, "a condition is metric=value"),
        ({"least": ["exact_match=nan"]}, "a condition is metric=value"),
        ({"least": ["bleu=0.1"]}, "'bleu' was not measured; there are loss, exact_match"),
        ({"better": ["bleu"]}, "was not measured"),
    ],
)
def test_what_cannot_be_asked(conditions: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_gate(EVALUATION, **conditions)
    with pytest.raises(UserError, match="--probe"):
        check_gate(EVALUATION.model_copy(update={"forgetting": None}), max_forgetting=0.1)


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text("model: {source: m}\ndata: {train: d.jsonl}\n")
    missing = cli("gate", run, "--better", "loss")
    assert missing.returncode == 2
    assert "has not been evaluated" in missing.stderr
    (run / "evaluation.json").write_text(json.dumps(EVALUATION.to_dict()))
    good = cli("gate", run, "--better", "loss", "--min", "exact_match=0.3")
    assert (good.returncode, good.stderr) == (0, "")
    assert "passes" in good.stdout
    bad = cli("gate", run, "--max-forgetting", "0.01", "--max", "loss=2", "--json")
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["passed"] is False
    assert [check["passed"] for check in json.loads(bad.stdout)["checks"]] == [True, False]
