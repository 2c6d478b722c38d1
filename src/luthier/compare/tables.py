"""Comparisons as tables of text, for the terminal, Markdown and HTML alike."""

from collections.abc import Sequence
from typing import Any

Table = tuple[list[str], list[list[str]]]  # heads, and cells row by row


def approaches_table(comparison: dict[str, Any]) -> Table:
    """One row per approach: every metric, latency, tokens, cost, set-up."""
    metrics = comparison["metrics"]
    head = ["approach", *(metric["label"] for metric in metrics)]
    head += ["median s", "p95 s", "tokens in", "out", "$ per 1,000", "set-up", "$ set-up"]
    rows = [
        [
            entry["name"],
            *(interval(entry["scores"][m["name"]], m["share"]) for m in metrics),
            f"{entry['latency']['median']:.2f}",
            f"{entry['latency']['p95']:.2f}",
            f"{entry['prompt_tokens']:.0f}",
            f"{entry['output_tokens']:.0f}",
            f"{entry['cost_per_1000']:.4f}",
            duration(entry["setup_seconds"]) if entry["setup"] else "none",
            f"{entry['setup_cost']:.4f}" if entry["setup"] else "0",
        ]
        for entry in comparison["approaches"]
    ]
    return head, rows


def groups_table(comparison: dict[str, Any]) -> Table:
    """One row per approach, each metric in each group of rows."""
    metrics = comparison["metrics"]
    head = ["approach"] + [
        f"{metric['label']}, {group} ({count})"
        for metric in metrics
        for group, count in comparison["groups"].items()
    ]
    rows = [
        [entry["name"]]
        + [
            interval(entry["groups"][group][metric["name"]], metric["share"])
            for metric in metrics
            for group in comparison["groups"]
        ]
        for entry in comparison["approaches"]
    ]
    return head, rows


def rules_table(comparison: dict[str, Any]) -> Table:
    """One row per rule of the advisor."""
    rows = []
    for rule in comparison["rules"]:
        verdict = rule["verdict"]
        if rule["better"]:
            verdict += f": better is {', '.join(rule['better'])}"
        if rule["as_good"]:
            verdict += f" (not enough evidence against {', '.join(rule['as_good'])})"
        rows.append([rule["of"], ", ".join(rule["goals"]), rule["advised"], verdict])
    return ["measured by", "goal", "advised", "these results"], rows


def quality_table(comparison: dict[str, Any]) -> Table:
    """What each variant reached: every metric, its share of the reference's, forgetting."""
    metrics, entries = comparison["metrics"], comparison["variants"]
    forgets = any(entry["forgetting"] for entry in entries)
    head = ["", *(metric["label"] for metric in metrics), f"% of {comparison['reference']}"]
    base = comparison["base"]  # none, where what is trained is a reward model
    rows = [["base", *(interval(base[m["name"]], m["share"]) for m in metrics), ""]] if base else []
    for entry in entries:
        share = entry["share_of_reference"]
        scores = [interval(entry["scores"][m["name"]], m["share"]) for m in metrics]
        rows.append([entry["name"], *scores, "" if share is None else f"{share:.1%}"])
    if forgets:
        head.append("forgetting")
        for row, found in zip(
            rows, [*[None] * bool(base), *(e["forgetting"] for e in entries)], strict=True
        ):
            row.append(
                f"{found['verdict']} ({100 * found['accuracy_change']:+.1f})" if found else ""
            )
    return head, rows


def resources_table(comparison: dict[str, Any]) -> Table:
    """The resources of each variant: parameters, memory, time, size, cost."""
    costs = comparison["price_per_hour"] is not None
    head = [
        "",
        "learning rate",
        "trained",
        "GiB planned",
        "measured",
        "time",
        "tokens/s",
        "weights",
    ]
    rows = []
    for entry in comparison["variants"]:
        trained, planned = entry["trainable_parameters"], entry["peak_predicted_bytes"]
        row = [
            entry["name"],
            f"{entry['learning_rate']:.3g}",
            f"{parameters(trained)} ({trained / entry['total_parameters']:.2%})",
            "" if planned is None else f"{planned / 2**30:.2f}",
            f"{entry['peak_measured_bytes'] / 2**30:.2f}",
            duration(entry["seconds"]),
            f"{entry['tokens_per_second']:,.0f}",
            f"{entry['weights_bytes'] / 2**20:,.1f} MiB",
        ]
        rows.append([*row, f"{entry['cost']:.4f}"] if costs else row)
    return head + ["$"] * costs, rows


def tests_table(comparison: dict[str, Any]) -> Table:
    """Each variant against the reference, metric by metric."""
    rows = [
        [
            entry["name"],
            metric["label"],
            f"{signed(test['difference'], metric['share'])} "
            f"[{signed(test['low'], metric['share'])}, {signed(test['high'], metric['share'])}]",
            "<0.001" if test["p"] < 0.001 else f"{test['p']:.3f}",
            test["verdict"],
        ]
        for entry in comparison["variants"]
        if entry["against_reference"]
        for metric in comparison["metrics"]
        for test in [entry["against_reference"][metric["name"]]]
    ]
    return ["", "metric", f"change from {comparison['reference']}", "p", "verdict"], rows


def parameters(count: int) -> str:
    """A count as people say it: 4.88M."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def interval(value: dict[str, Any], share: bool) -> str:
    """``61.7% [48.9, 73.1]``, or plain numbers where the metric is no share."""
    if share:
        return f"{value['mean']:.1%} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"
    return f"{value['mean']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def signed(value: float, share: bool) -> str:
    """A difference, in points for shares."""
    return f"{100 * value:+.1f}" if share else f"{value:+.3g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def markdown(table: Table) -> str:
    """A table in Markdown; bars in cells are escaped."""
    head, rows = table

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])
