"""A tokenizer in the form that llama.cpp reads."""

import json
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import generate_merges

from luthier.data.spans import stop_token_ids
from luthier.data.template import TemplateRejects, render
from luthier.errors import UserError

# Names of llama.cpp for ways to split text before merging (llama-vocab.cpp). Several names share a
# rule; of those of Llama 3's, one looks a word up before it merges.
_SPLIT_NAMES = ("qwen2", "qwen35", "tekken", "gpt-4o")


def write_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> list[str]:
    """Put vocabulary, rules, special tokens and chat template into the head of a file.

    Args:
        vocabulary: rows of the model's embedding; those without a token are filled up.

    Returns:
        where llama.cpp may split a text differently, as sentences.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"a tokenizer of type {model['type']} cannot be written as GGUF; llama.cpp needs BPE"
        )
    notes: list[str] = []
    tokens, types = _vocabulary(rules, vocabulary)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if _is_byte_level(rules):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pre_tokenizer(rules))
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in merges])
        if rules["normalizer"]:
            kind = rules["normalizer"]["type"]
            notes.append(f"llama.cpp skips the tokenizer's text normalisation ({kind})")
    else:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_token_types(types)
        writer.add_add_space_prefix(_prepends_space(rules))
        odd = _other_merges(model["vocab"], merges)
        if odd:
            notes.append(
                f"llama.cpp merges by score, not by rule: it merges {odd} pairs of tokens that the tokenizer does not"
            )
    _special_tokens(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))
    return notes


def _vocabulary(rules: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    added = {entry["id"]: entry for entry in rules["added_tokens"]}
    by_id = {index: token for token, index in rules["model"]["vocab"].items()}
    by_id |= {index: entry["content"] for index, entry in added.items()}
    if max(by_id) >= size:
        raise UserError(f"the tokenizer has {max(by_id) + 1} tokens, but the model has {size}")
    unknown = rules["model"].get("unk_token")
    byte_fallback = rules["model"].get("byte_fallback")
    tokens, types = [], []
    for index in range(size):
        token = by_id.get(index)
        if token is None:
            token, kind = f"[PAD{index}]", TokenType.UNUSED
        elif token == unknown and not _is_byte_level(rules):
            kind = TokenType.UNKNOWN
        elif byte_fallback and len(token) == 6 and token.startswith("<0x") and token[-1] == ">":
            kind = TokenType.BYTE
        elif index in added:
            kind = TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
        else:
            kind = TokenType.NORMAL
        tokens.append(token)
        types.append(int(kind))
    return tokens, types


def _steps(rule: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a rule that may be a sequence."""
    if rule is None:
        return []
    return list(rule[key]) if rule["type"] == "Sequence" else [rule]


def _is_byte_level(rules: dict[str, Any]) -> bool:
    return any(s["type"] == "ByteLevel" for s in _steps(rules["pre_tokenizer"], "pretokenizers"))


def _pre_tokenizer(rules: dict[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer splits text before merging.

    It is read off the rules themselves: a name from the model's name would be wrong for one whose
    tokenizer was changed.

    Raises:
        UserError: llama.cpp has no name for it.
    """
    steps = _steps(rules["pre_tokenizer"], "pretokenizers")
    byte_level = steps[-1]
    before = steps[:-1]
    if byte_level["type"] == "ByteLevel" and not byte_level["add_prefix_space"]:
        if byte_level["use_regex"]:
            if not before:
                return "gpt-2"
            if before == [{"type": "Digits", "individual_digits": True}]:
                return "smollm"
        elif len(before) == 1 and before[0]["type"] == "Split":
            regex = before[0]["pattern"].get("Regex")
            if regex == GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]:
                return "llama-bpe" if rules["model"].get("ignore_merges") else "smaug-bpe"
            for name in _SPLIT_NAMES:
                if regex == GGUF_PRE_TOKENIZER_SPLITS[name]:
                    return name
    raise UserError(
        "llama.cpp has no pre-tokenizer that splits text as this tokenizer does: "
        f"{json.dumps(rules['pre_tokenizer'], ensure_ascii=False)[:300]}"
    )


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """llama.cpp joins the pair whose merged token has the highest score: the earliest merge's."""
    rank: dict[str, int] = {}
    for index, pair in enumerate(merges):
        rank.setdefault("".join(pair), index)
    return [-float(rank.get(token, len(merges))) for token in tokens]


def _other_merges(vocab: dict[str, int], merges: list[tuple[str, ...]]) -> int:
    """How many pairs of tokens make a token by llama.cpp's scores that no merge makes."""
    scores = dict(zip(vocab, _scores(list(vocab), merges), strict=True))
    return len(set(map(tuple, generate_merges(vocab, scores))) - set(merges))


def _prepends_space(rules: dict[str, Any]) -> bool:
    if any(s["type"] == "Prepend" for s in _steps(rules["normalizer"], "normalizers")):
        return True
    return any(
        s["type"] == "Metaspace" and s.get("prepend_scheme", "always") != "never"
        for s in _steps(rules["pre_tokenizer"], "pretokenizers")
    )


def _special_tokens(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    sample = list(tokenizer("a").input_ids)
    begins = len(sample) > 1 and sample[0] == tokenizer.bos_token_id
    writer.add_add_bos_token(begins and _prompts_begin_with_bos(tokenizer))
    writer.add_add_eos_token(len(sample) > 1 and sample[-1] == tokenizer.eos_token_id)
    turn_ends = [i for i in stop_token_ids(tokenizer) if i != tokenizer.eos_token_id]
    if turn_ends:
        writer.add_eot_token_id(turn_ends[0])


def _prompts_begin_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the trained prompts do: llama.cpp adds the token to what the template renders."""
    if not tokenizer.chat_template:
        return True
    try:
        prompt = render(tokenizer, ({"role": "user", "content": "a"},), add_generation_prompt=True)
    except TemplateRejects:
        return True
    return prompt.startswith(str(tokenizer.bos_token))
