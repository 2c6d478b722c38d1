"""What only all rows together can tell: duplicates, leaks, conflicts, odd ones out, too few."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.data.check.duplicates import Ints, groups_of_equal, near_clusters
from luthier.data.check.habits import judge_preferences
from luthier.data.check.preferences import NOT_JUDGED
from luthier.data.check.row import IS_JSON, IS_SQL, answer_hash, shortened
from luthier.data.check.scan import Example, Scan

# The advisor's thresholds on training rows.
TOO_FEW, FEW, GOOD = 500, 1_000, 10_000

_NEARLY_ALL = 0.95  # so many answers of one form make the others odd
_LEAST_FOR_FORM = 20  # rows; fewer show no form
_MOST_LABELS = 50
_RARE, _DOMINANT = 0.02, 0.90  # shares of a label


def judge(scan: Scan) -> list[Ints]:
    """Add the findings over all rows to ``scan``; returns the near-duplicate clusters."""
    columns = scan.columns
    usable, role = columns["usable"], columns["role"]
    keys = np.where(usable, columns["prompt_key"], np.uint64(0))
    exact = np.where(usable, columns["exact_key"], np.uint64(0))
    whole = exact ^ (columns["answer_key"] * np.uint64(0x9E3779B97F4A7C15))
    whole = np.where(usable, whole, np.uint64(0))
    _duplicates(scan, whole, role)
    _conflicts(scan, groups_of_equal(exact))
    same_prompt = groups_of_equal(keys)
    _across(scan, same_prompt, "leak", "contamination", "the same prompt as")
    # An exact duplicate is not reported here: the first of equal rows represents all.
    clusters = [_firsts(cluster, whole) for cluster in near_clusters(scan.signature)]
    clusters = [cluster for cluster in clusters if len(cluster) > 1]
    _near(scan, clusters)
    told = {key for group in same_prompt for key in keys[group[:1]].tolist()}
    _across(
        scan,
        clusters,
        "near_leak",
        "near_contamination",
        "nearly the same as",
        skip=lambda position: int(keys[position]) in told,
    )
    _forms(scan)
    _labels(scan)
    _systems(scan)
    _mixed_formats(scan)
    _outliers(scan)
    judge_preferences(scan)
    _size(scan)
    return clusters


def _firsts(cluster: Ints, whole: NDArray[np.uint64]) -> Ints:
    return cluster[np.sort(np.unique(whole[cluster], return_index=True)[1])]


def _show(scan: Scan, kind: str, position: int, detail: str) -> None:
    scan.hit(kind, Example(scan.place(position), detail))


def _duplicates(scan: Scan, whole: NDArray[np.uint64], role: NDArray[np.uint8]) -> None:
    for group in groups_of_equal(whole):
        for side in np.unique(role[group]):
            members = group[role[group] == side]
            for position in members[1:]:
                _show(scan, "exact_duplicates", position, f"as {scan.place(members[0])}")


def _conflicts(scan: Scan, same_prompt: Sequence[Ints]) -> None:
    answers, role = scan.columns["answer_key"], scan.columns["role"]
    single = (role == 0) & (answers != 0) & (scan.columns["judged"] == NOT_JUDGED)
    for group in same_prompt:
        train = group[single[group]]
        if len(np.unique(answers[train])) > 1:
            first = train[0]
            for position in train:
                other = (
                    first
                    if answers[position] != answers[first]
                    else next(p for p in train if answers[p] != answers[position])
                )
                _show(
                    scan, "conflicting_answers", position, f"another answer in {scan.place(other)}"
                )


def _across(
    scan: Scan,
    groups: Sequence[Ints],
    validation: str,
    evaluation: str,
    how: str,
    skip: Callable[[int], bool] = lambda _position: False,
) -> None:
    """Rows of validation (role 1) and evaluation (2) that share a group with a training row."""
    role = scan.columns["role"]
    for group in groups:
        train = group[role[group] == 0]
        if not len(train):
            continue
        for position in group[role[group] > 0]:
            if not skip(position):
                kind = validation if role[position] == 1 else evaluation
                _show(scan, kind, position, f"{how} {scan.place(train[0])}")


def _near(scan: Scan, clusters: Sequence[Ints]) -> None:
    role = scan.columns["role"]
    for cluster in clusters:
        for position in cluster[role[cluster] == 0][1:]:
            _show(scan, "near_duplicates", position, f"much like {scan.place(cluster[0])}")


def _forms(scan: Scan) -> None:
    """Answers that are not JSON, or not SQL, where nearly all are."""
    columns = scan.columns
    answered = np.flatnonzero(
        columns["usable"] & (columns["role"] == 0) & (columns["answer_key"] != 0)
    )
    if len(answered) < _LEAST_FOR_FORM:
        return
    for bit, name in ((IS_JSON, "JSON"), (IS_SQL, "SQL")):
        has = columns["form"][answered] & bit > 0
        if _NEARLY_ALL <= has.mean() < 1:
            for position in answered[~has]:
                _show(
                    scan, "odd_output", position, f"not {name}, as {has.mean():.1%} of answers are"
                )


def _labels(scan: Scan) -> None:
    """The answers as labels, where few short ones make up nearly all."""
    columns = scan.columns
    rows = int((columns["usable"] & (columns["role"] == 0)).sum())
    if scan.labels is None or rows < _LEAST_FOR_FORM:
        return
    common = Counter({text: n for text, n in scan.labels.items() if n >= max(3, rows // 500)})
    covered = sum(common.values())
    if not 2 <= len(common) <= _MOST_LABELS or covered < _NEARLY_ALL * rows:
        return
    scan.label_set = dict(common.most_common())
    top, count = common.most_common(1)[0]
    if count > _DOMINANT * rows:
        scan.hit("one_label", Example("", f"'{shortened(top)}' is {count / rows:.1%} of answers"))
        scan.hits["one_label"] = count
    for label, number in common.items():
        if number < _RARE * rows:
            scan.hit("rare_labels", Example("", f"'{shortened(label)}' appears {number} times"))
    known = {answer_hash(label) for label in common}
    train = np.flatnonzero(columns["usable"] & (columns["role"] == 0))
    for position in train.tolist():
        if int(columns["answer_key"][position]) not in known:
            _show(
                scan, "odd_output", position, f"not one of the {len(common)} labels of the others"
            )


def _systems(scan: Scan) -> None:
    columns = scan.columns
    rows = np.flatnonzero(columns["usable"] & (columns["role"] == 0))
    prompts, counts = np.unique(columns["system"][rows], return_counts=True)
    if len(prompts) < 2:
        return
    usual = prompts[counts.argmax()]
    for position in rows[columns["system"][rows] != usual]:
        own = (
            "no system prompt" if columns["system"][position] == 0 else "a system prompt of its own"
        )
        most = "none" if usual == 0 else "the same one"
        _show(scan, "system_prompts", position, f"{own}; most rows have {most}")


def _mixed_formats(scan: Scan) -> None:
    for file, formats in scan.formats.items():
        if len(formats) > 1:
            usual, _ = formats.most_common(1)[0]
            names = ", ".join(f"{n} {name}" for name, n in formats.most_common())
            scan.hit("mixed_formats", Example(file, names))
            scan.hits["mixed_formats"] += sum(formats.values()) - formats[usual] - 1


def _outliers(scan: Scan) -> None:
    columns = scan.columns
    rows = np.flatnonzero(columns["usable"] & (columns["role"] == 0))
    if not len(rows):
        return
    total = columns["prompt_length"][rows] + columns["answer_length"][rows]
    limit = 10 * float(np.median(total))
    for position, length in zip(rows[total > limit].tolist(), total[total > limit], strict=True):
        _show(scan, "length_outliers", position, f"{length} long, the median is {limit / 10:.0f}")


def _size(scan: Scan) -> None:
    columns = scan.columns
    rows = int((columns["usable"] & (columns["role"] == 0)).sum())
    if rows < FEW:
        kind = "too_few" if rows < TOO_FEW else "few"
        scan.hit(kind, Example("", f"{rows} usable rows"))
        scan.hits[kind] = rows
