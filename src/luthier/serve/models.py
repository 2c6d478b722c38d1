"""The models of a server by name: runs, and the base they were tuned from."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from luthier.data.spans import stop_token_ids
from luthier.data.thoughts import answer_shape
from luthier.errors import UserError
from luthier.generate.answer import Prompt, encode_prompt
from luthier.models.load import load_tokenizer
from luthier.models.tuned import TunedModel, load_base, load_tuned
from luthier.recipe import Recipe
from luthier.run import Run, open_run
from luthier.serve.grammar import Vocabulary
from luthier.serve.weights import Weights

_NAME = re.compile(r"[\w.:/@+-]{1,128}")


class Speech:
    """How a run writes: its tokenizer, with the template it trained with."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, chats: bool) -> None:
        self.tokenizer = tokenizer
        self.chats = chats
        self.stop_tokens = frozenset(stop_token_ids(tokenizer))
        self.shape = answer_shape(tokenizer)
        self.vocabulary = Vocabulary(tokenizer, size, sorted(self.stop_tokens))
        self._one_at_a_time = threading.Lock()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids, from any thread; see ``encode_prompt``.

        Raises:
            UnicodeError: the text holds half a surrogate pair, which JSON can write.
        """
        for text in [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]:
            text.encode()
        with self._one_at_a_time:
            return encode_prompt(self.tokenizer, prompt)


@dataclass(frozen=True)
class Served:
    """What one name answers with.

    Attributes:
        adapter: PEFT's name of the adapter within ``weights``; None for the model without one.
        parent: the name of the base, for a run's adapter.
        run: None for the base.
    """

    name: str
    weights: Weights
    adapter: str | None
    speech: Speech
    parent: str | None
    run: Run | None
    created: int = field(default_factory=lambda: int(time.time()))


class Models:
    """All that is served.

    Attributes:
        by_name: replaced completely when a model comes or goes, so that readers need no lock.
    """

    def __init__(self, runs: Sequence[str], base_of_full: bool = False) -> None:
        """Load ``runs``, each a path or ``name=path``.

        Adapters that were trained on the same base share it, and the base itself is served under
        the name that the recipe gives it. For a full fine-tuning run the base is a second model:
        ``base_of_full`` loads that too.

        Raises:
            UserError: a run is not finished, or two would have the same name.
        """
        self.by_name: dict[str, Served] = {}
        self._shared: dict[tuple[Any, ...], tuple[Weights, str]] = {}
        self._count = 0
        self._base_of_full = base_of_full
        for text in runs:
            name, path = parse_run(text)
            self.load(name, path)

    def load(
        self, name: str, path: Path, between_steps: Callable[[Callable[[], Any]], Any] | None = None
    ) -> Served:
        """Serve another run.

        Args:
            between_steps: runs a function when no other thread uses the models; once the server
                answers, only adapters over a base that is there can be loaded, through this.

        Raises:
            UserError: as above, or the run needs weights that are not there.
        """
        check_name(name)
        if name in self.by_name:
            raise UserError(f"two models would be called '{name}'; write another_name={path}")
        run = open_run(path)
        recipe = run.recipe()
        kind = base_key(run)
        if recipe.method.name != "full" and kind in self._shared:
            served = self._add_adapter(name, run, recipe, between_steps or (lambda f: f()))
        elif between_steps is not None:
            raise UserError(
                f"{path} is not an adapter of a base model that is being served; start another server with it"
            )
        else:
            served = self._load_weights(name, run, recipe)
        self.by_name = {**self.by_name, name: served}
        return served

    def hide(self, served: Served) -> None:
        """Serve an adapter no more; its weights are still there, for answers on their way.

        Raises:
            UserError: it is not an adapter.
        """
        if served.adapter is None:
            raise UserError(f"'{served.name}' is not an adapter; only those can be unloaded")
        self.by_name = {name: s for name, s in self.by_name.items() if s is not served}

    def _load_weights(self, name: str, run: Run, recipe: Recipe) -> Served:
        tuned = load_tuned(run)
        weights = Weights(tuned.tuned)
        speech = self._speech(run, tuned.tokenizer, weights)
        base_name = base_name_of(recipe)
        if isinstance(tuned.tuned, PeftModel):
            if (
                recipe.method.bias != "none"
            ):  # they are in the base, which others must not share then
                return Served(name, weights, tuned.tuned.active_adapter, speech, None, run)
            parent = self._free_name(base_name, name)
            self._shared[base_key(run)] = weights, parent
            self._add_base(parent, weights, speech)
            return Served(name, weights, tuned.tuned.active_adapter, speech, parent, run)
        if self._base_of_full:
            base = TunedModel(run, load_base(run), tuned.tokenizer).tuned
            self._add_base(self._free_name(base_name, name), Weights(base), speech)
        return Served(name, weights, None, speech, None, run)

    def _add_adapter(
        self, name: str, run: Run, recipe: Recipe, between_steps: Callable[[Callable[[], Any]], Any]
    ) -> Served:
        run.require_finished()
        weights, parent = self._shared[base_key(run)]
        self._count += 1
        adapter = f"adapter{self._count}"
        speech = self._speech(
            run, load_tokenizer(run.adapter_path, recipe.model.trust_remote_code), weights
        )
        between_steps(lambda: weights.load_adapter(run.adapter_path, adapter))
        return Served(name, weights, adapter, speech, parent, run)

    def _add_base(self, name: str, weights: Weights, speech: Speech) -> None:
        self.by_name = {
            **self.by_name,
            name: Served(name, weights, None, speech, None, None),
        }

    def _free_name(self, wanted: str, other: str) -> str:
        taken = {*self.by_name, other}
        return wanted if wanted not in taken else f"{wanted}:base"

    @staticmethod
    def _speech(run: Run, tokenizer: PreTrainedTokenizerBase, weights: Weights) -> Speech:
        return Speech(tokenizer, weights.vocabulary, run.provenance().learned_turns)


def check_name(name: str) -> None:
    """Raise unless ``name`` may be that of a model.

    Raises:
        UserError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"'{name}' is not a valid model name: use letters, digits and .:/@+-_ only")


def parse_run(text: str) -> tuple[str, Path]:
    """``name=path`` or a path alone, whose last part is then the name."""
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, Path(path)
    return Path(text).resolve().name, Path(text)


def base_name_of(recipe: Recipe) -> str:
    """What the base is called: a known name or hub id as it is, of a path its last part."""
    source = recipe.model.source
    return Path(source).name if Path(source).exists() else source


def base_key(run: Run) -> tuple[Any, ...]:
    """Runs with the same one can share a base in memory."""
    recipe = run.recipe()
    model, method = recipe.model, recipe.method
    storage = (
        (method.bnb_4bit_quant_type, method.bnb_4bit_use_double_quant)
        if method.name == "qlora"
        else None
    )
    return (
        model.source,
        model.revision,
        run.provenance().dtype,
        storage,
        repr(model.rope_scaling),
    )
