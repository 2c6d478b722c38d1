"""Evaluations without a model, as `evaluation.json` would hold them."""

from typing import Any

from luthier.records import Evaluation
from luthier.records.evaluation import Forgetting, MetricCompared

SIDE: dict[str, Any] = {"low": 0.1, "high": 0.6, "rows": 9, "confidence": 0.95}
TEST: dict[str, Any] = {"low": -0.1, "high": 0.2, "p": 0.3, "rows": 9, "confidence": 0.95}
PROSE: dict[str, Any] = {"label": "x", "share": False, "higher_is_better": False}


def _pair(base: float, tuned: float, verdict: str) -> dict[str, Any]:
    return {
        "base": {**SIDE, "mean": base},
        "tuned": {**SIDE, "mean": tuned},
        "test": {**TEST, "difference": tuned - base, "verdict": verdict},
    }


def compared(
    base: float = 0.3, tuned: float = 0.4, verdict: str = "no evidence", label: str = "m"
) -> MetricCompared:
    pair = _pair(base, tuned, verdict)
    return MetricCompared.model_validate(
        {**pair, "label": label, "share": True, "higher_is_better": True}
    )


def forgetting(lost: float, leaked: float) -> Forgetting:
    """A run that lost so much accuracy and leaks in so many answers."""
    ratio = {"ratio": 1.0, "low": 0.9, "high": 1.1}
    losses = _pair(2.0, 2.0, "no evidence")
    return Forgetting.model_validate(
        {
            "items": 9,
            "accuracy": _pair(0.5, 0.5 - lost, "no evidence"),
            "areas": {"facts": _pair(0.5, 0.5 - lost, "no evidence")},
            "text": {
                "loss": {**PROSE, **losses},
                "perplexity": {**PROSE, **losses, "ratio": ratio},
            },
            "kl": None,
            "leakage": {
                **_pair(0.0, leaked, "no evidence"),
                "style_told_apart": None,
                "style_counts": False,
                "leaks": [],
            },
            "seconds": {"base": 1.0, "tuned": 1.0},
            "verdict": "kept",
            "reasons": [],
            "limits": {"max_accuracy_drop": 0.05, "max_perplexity_ratio": 1.5, "max_leakage": 0.1},
            "remedies": [],
        }
    )


def evaluation(**other: Any) -> Evaluation:
    """One of nine rows with no metric, but for what ``other`` says."""
    return Evaluation(
        **{
            "data": "rows.jsonl",
            "rows": 9,
            "seen_in_training": 0,
            "supervised_tokens": 1234,
            "answered_rows": 8,
            "adapter_scale": 1.0,
            "base": {},
            "tuned": {},
            "metrics": {},
            "classification": None,
            "samples": [],
            "forgetting": None,
            "tasks": {},
            "max_new_tokens": 8,
            "seconds": 1.0,
            "when": "2026-01-01T00:00:00+00:00",
            **other,
        }
    )
