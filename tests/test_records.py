"""Records: what is stored comes back, and what cannot be read says where."""

import json
import math
from pathlib import Path

import pytest
from evaluations import compared, evaluation, forgetting

from luthier.errors import UserError
from luthier.files import write_json
from luthier.records import Evaluation, Measured, MetricsLine, Record
from luthier.records.evaluation import Forgetting, MetricCompared, Pair, PerplexityCompared


def stored(record: Record, path: Path) -> Path:
    write_json(path, record.to_dict())
    return path


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    prose = forgetting(lost=0.1, leaked=0.2).text.perplexity
    bleu = compared(label="BLEU").model_copy(update={"corpus": Pair[float](base=0.1, tuned=0.2)})
    whole = evaluation(
        metrics={"perplexity": prose, "bleu": bleu, "chrf": compared()},
        forgetting=forgetting(lost=0.1, leaked=0.2),
        tasks={"arc acc": compared(math.inf)},
    )
    back = Evaluation.from_file(stored(whole, tmp_path / "evaluation.json"))
    assert back == whole
    assert isinstance(back.metrics["perplexity"], PerplexityCompared)
    assert isinstance(back.metrics["bleu"], MetricCompared)
    assert isinstance(back.forgetting, Forgetting)
    assert back.tasks["arc acc"].base.mean == math.inf


def test_what_has_no_value_is_null_only_where_it_says_something() -> None:
    told = evaluation(metrics={"chrf": compared()}).to_dict()
    assert told["forgetting"] is None  # nobody looked for it
    assert "corpus" not in told["metrics"]["chrf"]
    line = MetricsLine(step=1, epoch=0.5, loss=2.0, memory_bytes=9, seconds=1.0)
    assert line.to_dict() == {
        "step": 1,
        "epoch": 0.5,
        "loss": 2.0,
        "memory_bytes": 9,
        "seconds": 1.0,
    }


def test_keys_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    write_json(path, {**evaluation().to_dict(), "carbon": 1.5})
    assert Evaluation.from_file(path) == evaluation()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({**evaluation().to_dict(), "rows": "many"}), "damaged: 'rows':"),
        (json.dumps({**evaluation().to_dict(), "metrics": {"x": {}}}), r"damaged: 'metrics\.x\."),
    ],
)
def test_a_damaged_file_says_where(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{path} is {said}"):
        Evaluation.from_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"measured\.json is missing"):
        Measured.from_file(tmp_path / "measured.json")


def test_records_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        evaluation().rows = 3  # type: ignore[misc]
