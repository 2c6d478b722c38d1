"""The kinds of findings: how grave, what they mean, what to do."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        severity: ``error`` breaks or falsifies a run, ``warning`` costs quality, ``info`` is worth
            a look.
        title: what is the matter, as a phrase that follows a number of rows.
        remedy: what to do about it.
    """

    id: str
    severity: Severity
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    kind.id: kind
    for kind in [
        Kind("unreadable", "error", "cannot be read", "mend the lines, or `data fix --apply drop-unreadable`"),
        Kind("encoding", "error", "are not UTF-8", "convert the file to UTF-8 (iconv -f … -t utf-8)"),
        Kind("unknown_format", "error", "have fields of no known format", "rename the fields, or give data.format"),
        Kind("mixed_formats", "warning", "are in another format than most of their file", "one format a file: `data convert`"),
        Kind("bad_turns", "error", "have turns that cannot be trained on", "mend the order and the roles of their turns"),
        Kind("no_answer", "error", "have no answer to learn", "add the assistant's turn, or drop the rows"),
        Kind("empty_answer", "error", "have an empty answer", "`data fix --apply drop-empty`"),
        Kind("empty_prompt", "error", "have an empty question", "fill them in, or drop the rows"),
        Kind("template_refuses", "error", "are refused by the model's chat template", "change the rows (often a system turn), or data.template"),
        Kind("over_length", "error", "are longer than max_length: their answers would be cut or left out", "raise data.max_length, or shorten them"),
        Kind("leak", "error", "of validation have their prompt in training", "take them out of one side; data.validation_fraction never leaks so"),
        Kind("near_leak", "error", "of validation are near duplicates of training rows", "take them out of one side: the validation loss would flatter"),
        Kind("contamination", "error", "of the evaluation file have their prompt in training", "take them out of training: the evaluation would measure memory"),
        Kind("near_contamination", "error", "of the evaluation file are near duplicates of training rows", "take them out of training"),
        Kind("secrets", "error", "hold keys or passwords", "`data fix --apply redact`, and revoke the keys"),
        Kind("personal_data", "warning", "hold e-mail addresses, phone or card numbers", "`data fix --apply redact`"),
        Kind("conflicting_answers", "warning", "share a prompt with other rows and answer it otherwise", "keep the right answer: `data fix --apply keep-first-of-conflicts`"),
        Kind("exact_duplicates", "warning", "repeat an earlier row", "`data fix --apply drop-exact-duplicates`"),
        Kind("near_duplicates", "warning", "are near duplicates of others", "keep one of each cluster; a random split lets them leak"),
        Kind("special_tokens", "error", "hold special tokens as text: they would end or begin turns", "remove them from the content"),
        Kind("template_text", "warning", "hold prompt-template text in their content", "strip it: the chat template adds its own"),
        Kind("control_characters", "warning", "hold control characters", "`data fix --apply strip-control-characters`"),
        Kind("mojibake", "warning", "hold wrongly decoded text", "`data fix --apply fix-mojibake`, or export again as UTF-8"),
        Kind("edge_whitespace", "info", "have answers that begin or end in white space", "`data fix --apply strip-whitespace`"),
        Kind("refusals", "warning", "have answers that refuse or speak as an AI", "drop them unless refusing is the task"),
        Kind("odd_output", "warning", "do not answer in the form that nearly all others do", "mend them: the model learns the exceptions too"),
        Kind("rare_labels", "warning", "have a label that under 2% of rows have", "add examples of it, or merge the label"),
        Kind("one_label", "warning", "have the same one label, over 90% of all", "balance the labels, or judge by more than accuracy"),
        Kind("system_prompts", "info", "have a system prompt unlike that of most", "train with the system prompt you will use"),
        Kind("languages", "info", "of the sample are in another language than most", "intended? else drop them"),
        Kind("length_outliers", "info", "are over ten times as long as the median row", "look at them: often pasted documents"),
        Kind("too_few", "error", "to train on are fewer than 500", "few-shot prompts do better; gather 1,000 at least"),
        Kind("few", "warning", "to train on are fewer than 1,000", "gather more: 1,000 is the least, 10,000 is good"),
    ]
}  # fmt: skip
