"""`luthier data check`: from files to the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.check.dataset import FEW, GOOD, TOO_FEW, judge
from luthier.data.check.duplicates import Ints
from luthier.data.check.findings import KINDS
from luthier.data.check.languages import judge_languages
from luthier.data.check.row import shortened
from luthier.data.check.scan import ROLES, Scan, TokenizerChoice, scan
from luthier.data.packing import best_fit_decreasing
from luthier.data.readers import BadRow, read_rows
from luthier.data.sources import find_files
from luthier.events import OnEvent, during, ignore

_CLUSTERS = 10  # near-duplicate clusters shown
_OF_A_CLUSTER = 5  # rows of each
_BINS = 40  # of the length histograms
_SEVERITIES = ("error", "warning", "info")


def check_data(
    train: Sequence[str],
    validation: Sequence[str] = (),
    evaluation: Sequence[str] = (),
    tokenizer: TokenizerChoice | None = None,
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Everything that is wrong with data, or worth a look, as plain data for JSON.

    Args:
        train, validation, evaluation: sources as ``find_files`` takes them; leaks are looked for between them.
        tokenizer: with one, lengths are in tokens and rows are held against ``max_length`` and the
            chat template; without, lengths are in characters.
        columns: what the rows call the fields of their format, as in a recipe.

    Raises:
        UserError: a file cannot be read at all.
    """
    files = [
        (role, file)
        for role, sources in zip(ROLES, (train, validation, evaluation), strict=True)
        for source in sources
        for file in find_files(source, on_event)
    ]
    found = scan(files, tokenizer, on_event, columns)
    with during("comparing rows with each other", on_event):
        clusters = judge(found)
    with during("telling languages", on_event):
        languages = judge_languages(found)
    findings = _findings(found)
    facts = found.columns
    usable = facts["usable"] & (facts["role"] == 0)
    total = facts["prompt_length"][usable] + facts["answer_length"][usable]
    return {
        "verdict": findings[0]["severity"] if findings else "clean",
        "files": [_file(found, number) for number in range(len(found.files))],
        "rows": {"read": len(usable), "usable": int(usable.sum())},
        "enough": {"least": TOO_FEW, "fair": FEW, "good": GOOD},
        "findings": findings,
        "lengths": {
            "unit": "tokens" if tokenizer is not None else "characters",
            "max_length": tokenizer.max_length if tokenizer is not None else None,
            "prompt": _lengths(facts["prompt_length"][usable]),
            "answer": _lengths(facts["answer_length"][usable]),
            "total": _lengths(total, tokenizer.max_length if tokenizer is not None else 0),
        },
        "clusters": _cluster_texts(found, clusters[:_CLUSTERS], on_event),
        "cluster_sizes": [len(cluster) for cluster in clusters],
        "labels": found.label_set,
        "languages": languages,
        "packing": packing_saves(total, tokenizer.max_length) if tokenizer is not None else {},
    }


def _file(found: Scan, number: int) -> dict[str, Any]:
    rows = found.columns["file"] == number
    name = found.files[number]
    return {
        "file": name,
        "role": ROLES[found.columns["role"][rows][0]],
        "rows": int(rows.sum()),
        "formats": dict(found.formats[name].most_common()),
        "columns": found.renamed[name],
    }


def _findings(found: Scan) -> list[dict[str, Any]]:
    """Most severe first, then the most frequent."""
    entries = [
        {
            "id": kind.id,
            "severity": kind.severity,
            "count": found.hits[kind.id],
            "title": kind.title,
            "remedy": kind.remedy,
            "examples": [vars(example) for example in found.examples[kind.id]],
        }
        for kind in KINDS.values()
        if found.hits[kind.id]
    ]
    return sorted(
        entries, key=lambda f: (_SEVERITIES.index(str(f["severity"])), -int(str(f["count"])))
    )


def _lengths(values: NDArray[Any], limit: int = 0) -> dict[str, Any]:
    """Percentiles and a histogram that shows ``limit`` where that does not flatten it."""
    if not len(values):
        return {}
    # The last bin takes all above the 99.5th percentile: one pasted book must not flatten the rest.
    top = max(1.0, float(np.percentile(values, 99.5)))
    if limit < 3 * top:
        top = max(top, 1.05 * limit)
    counts, edges = np.histogram(np.minimum(values, top), bins=_BINS, range=(0, top))
    p50, p95, p99 = (int(np.percentile(values, q)) for q in (50, 95, 99))
    return {
        "mean": round(float(values.mean()), 1),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "max": int(values.max()),
        "histogram": {"edges": [round(float(e), 1) for e in edges], "counts": counts.tolist()},
    }


def packing_saves(lengths: NDArray[Any], max_length: int, batch_size: int = 4) -> dict[str, Any]:
    """The share of computed positions that hold rows, for each way of batching.

    Rows longer than ``max_length`` are skipped.

    ``padded_to_max`` pads every row to ``max_length``, ``padded_in_batch`` to the longest of its
    batch of ``batch_size``; ``packed`` fills bins of ``max_length`` by best-fit decreasing. Batches
    without padding, Luthier's way, waste nothing in either setting of ``data.packing``.
    """
    fit = lengths[lengths <= max_length].astype(np.int64)
    if not len(fit):
        return {}
    tokens = int(fit.sum())
    batches = [fit[i : i + batch_size] for i in range(0, len(fit), batch_size)]
    in_batch = sum(int(batch.max()) * len(batch) for batch in batches)
    bins = len(best_fit_decreasing(fit.tolist(), max_length))
    return {
        "tokens": tokens,
        "bins": bins,
        "padded_to_max": tokens / (len(fit) * max_length),
        "padded_in_batch": tokens / in_batch,
        "packed": tokens / (bins * max_length),
    }


def _cluster_texts(
    found: Scan, clusters: Sequence[Ints], on_event: OnEvent
) -> list[dict[str, Any]]:
    """The rows of clusters with their text, read again: the scan has kept none."""
    shown = [cluster[:_OF_A_CLUSTER] for cluster in clusters]
    wanted: dict[str, set[int]] = {}
    for members in shown:
        for position in members:
            file = found.files[found.columns["file"][position]]
            wanted.setdefault(file, set()).add(int(found.columns["line"][position]))
    texts: dict[str, str] = {}
    for file, lines in wanted.items():
        for item in read_rows(file, on_event):
            if not lines:
                break
            if isinstance(item, BadRow):
                continue
            origin, row = item
            if origin.line in lines:
                lines.discard(origin.line)
                texts[str(origin)] = shortened(" · ".join(_strings(row)), 300)
    return [
        {
            "size": len(cluster),
            "rows": [
                {"row": (place := found.place(p)), "text": texts.get(place, "")} for p in members
            ],
        }
        for cluster, members in zip(clusters, shown, strict=True)
    ]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [text for part in value for text in _strings(part)] if isinstance(value, list) else []
