"""The kinds of findings: severity, meaning, remedy."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        severity: ``error`` breaks or falsifies a run, ``warning`` costs quality, ``info`` is worth
            a look.
        title: what is wrong, as a phrase that follows a number of rows.
        remedy: what to do about it.
    """

    id: str
    severity: Severity
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    kind.id: kind
    for kind in [
        Kind("unreadable", "error", "cannot be read", "fix the lines, or `data fix --apply drop-unreadable`"),
        Kind("encoding", "error", "are not UTF-8", "convert the file to UTF-8 (iconv -f … -t utf-8)"),
        Kind("unknown_format", "error", "have fields of no known format", "say which fields to read in data.columns of the recipe, or with --columns here"),
        Kind("mixed_formats", "warning", "are in another format than most of their file", "use one format per file: `data convert`"),
        Kind("bad_turns", "error", "have turns that cannot be trained on", "fix the order and the roles of their turns"),
        Kind("no_answer", "error", "have no answer to learn", "add the assistant's turn, or drop the rows"),
        Kind("empty_answer", "error", "have an empty answer", "`data fix --apply drop-empty`"),
        Kind("empty_prompt", "error", "have an empty question", "fill them in, or drop the rows"),
        Kind("template_refuses", "error", "are refused by the model's chat template", "change the rows (often a system turn), or data.template"),
        Kind("over_length", "error", "are longer than max_length: their answers would be truncated or skipped", "raise data.max_length, or shorten them"),
        Kind("leak", "error", "of validation have their prompt in the training set", "remove them from one side; a split by data.validation_fraction never leaks"),
        Kind("near_leak", "error", "of validation are near duplicates of training rows", "remove them from one side: the validation loss would be optimistic"),
        Kind("contamination", "error", "of the evaluation file have their prompt in the training set", "remove them from the training set: the evaluation would measure memorisation"),
        Kind("near_contamination", "error", "of the evaluation file are near duplicates of training rows", "remove them from the training set"),
        Kind("secrets", "error", "hold keys or passwords", "`data fix --apply redact`, and revoke the keys"),
        Kind("personal_data", "warning", "hold e-mail addresses, phone or card numbers", "`data fix --apply redact`"),
        Kind("conflicting_answers", "warning", "have the prompt of another row but a different answer", "keep the right answer: `data fix --apply keep-first-of-conflicts`"),
        Kind("exact_duplicates", "warning", "repeat an earlier row", "`data fix --apply drop-exact-duplicates`"),
        Kind("near_duplicates", "warning", "are near duplicates of others", "keep one of each cluster; a random split lets them leak"),
        Kind("special_tokens", "error", "hold special tokens as text: they would end or begin turns", "remove them from the content"),
        Kind("template_text", "warning", "hold prompt-template text in their content", "strip it: the chat template adds its own"),
        Kind("unused_content", "warning", "have fields that nothing uses and that sound like content", "put them into the conversation (docs/data.md), or take them out"),
        Kind("unused_fields", "info", "have fields that nothing uses", "nothing, if they only describe the row"),
        Kind("control_characters", "warning", "hold control characters", "`data fix --apply strip-control-characters`"),
        Kind("mojibake", "warning", "hold wrongly decoded text", "`data fix --apply fix-mojibake`, or export again as UTF-8"),
        Kind("edge_whitespace", "info", "have answers that begin or end in white space", "`data fix --apply strip-whitespace`"),
        Kind("refusals", "warning", "have answers that refuse or speak as an AI", "drop them unless refusing is the task"),
        Kind("odd_output", "warning", "do not answer in the form that nearly all others do", "fix them: the model learns the exceptions too"),
        Kind("equal_pairs", "warning", "have a chosen answer that is the rejected one, too", "drop them: they prefer nothing"),
        Kind("leaked_prompts", "warning", "have an answer that repeats the question before it answers", "cut the question off the answers: the prompt is a field of its own"),
        Kind("chosen_longer", "warning", "have the longer answer as the chosen one, nearly all", "add pairs of like length: the model would learn to write more"),
        Kind("chosen_shorter", "warning", "have the shorter answer as the chosen one, nearly all", "add pairs of like length: the model would learn to write less"),
        Kind("one_sided_labels", "error", "have a label, and it is the same in all of them", "add rows of the other kind: there is nothing to tell apart"),
        Kind("uneven_labels", "warning", "have the label that far fewer rows have", "weigh them as shown, or add rows of that kind"),
        Kind("rare_labels", "warning", "have a label that fewer than 2% of rows have", "add examples of it, or merge the label"),
        Kind("one_label", "warning", "have the same label, over 90% of all rows", "balance the labels, or use more metrics than accuracy"),
        Kind("system_prompts", "info", "have a system prompt unlike that of most", "train with the system prompt you will use"),
        Kind("languages", "info", "of the sample are in another language than most", "drop them unless intended"),
        Kind("length_outliers", "info", "are over ten times as long as the median row", "look at them: often pasted documents"),
        Kind("too_few", "error", "to train on are fewer than 500", "few-shot prompts work better; collect at least 1,000"),
        Kind("few", "warning", "to train on are fewer than 1,000", "collect more: at least 1,000, better 10,000"),
    ]
}  # fmt: skip
