"""What a run folder holds, typed: each file there is one of these records.

Reading is forgiving where a newer version has written more (unknown keys are ignored) and strict
about what is there. Runs of version 0.1 open too.
"""

from luthier.records.data import DataReport, TokenizedData
from luthier.records.evaluation import AnsweredRow, Evaluation, ScoredPair
from luthier.records.plan import Plan
from luthier.records.record import Record
from luthier.records.results import Comparison, DataCheck, Exported, Finding
from luthier.records.sweep import Sweep
from luthier.records.training import BadBatch, Measured, MetricsLine, Provenance

__all__ = [
    "AnsweredRow",
    "BadBatch",
    "Comparison",
    "DataCheck",
    "DataReport",
    "Evaluation",
    "Exported",
    "Finding",
    "Measured",
    "MetricsLine",
    "Plan",
    "Provenance",
    "Record",
    "ScoredPair",
    "Sweep",
    "TokenizedData",
]
