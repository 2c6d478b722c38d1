"""What becomes of each setting of a configuration: a key of ours, nothing to do, or no counterpart."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.credentials import masked
from luthier.errors import UserError
from luthier.recipe.elsewhere import counterpart
from luthier.recipe.schema import Recipe, known_keys

_SECRET = re.compile(r"(hub|hf|auth|access)_?token|api_?key|secret|password|webhook", re.IGNORECASE)

# Values of settings without a counterpart that say what happens anyway.
_USUAL: dict[str, tuple[Any, ...]] = {
    "adam_beta1": (0.9,),
    "adam_beta2": (0.999,),
    "adam_epsilon": (1e-8,),
    "label_smoothing_factor": (0,),
    "loss_type": ("nll", "chunked_nll"),
    "bias": ("none",),
    "init_lora_weights": (True,),
    "dataset_text_field": ("text",),
    "metric_for_best_model": ("loss", "eval_loss"),
    "load_best_model_at_end": (True,),
    "greater_is_better": (False,),
    "mix_strategy": ("concat",),
    "train_sampling_strategy": ("random",),
    "roles_to_train": (["assistant"],),
}


@dataclass(frozen=True)
class Entry:
    """What became of one setting.

    Attributes:
        name: there; with a path where it stands in a list (``datasets.1.type``).
        outcome: ``default``: the file does not say it, but the tool does it so.
        keys: ours, with their values.
        note: why, or what to know.
    """

    name: str
    value: Any
    outcome: Literal["taken", "default", "not needed", "no counterpart"]
    keys: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class Conversion:
    """The settings of a file on their way into a recipe.

    Attributes:
        tool: the name that people know it by.
        file: where the settings stand.
        out: where the recipe will be.
        said: the settings that nothing has become of yet.
        tree: the recipe so far, by group and key.
        commands: what must be typed before the recipe can be used.
    """

    def __init__(self, tool: str, file: Path, out: Path, said: Mapping[str, Any]) -> None:
        self.tool, self.file, self.out = tool, file, out
        self.said = dict(said)
        self.tree: dict[str, dict[str, Any]] = {}
        self.entries: list[Entry] = []
        self.commands: list[str] = []

    def get(self, *names: str) -> Any:
        """The first of ``names`` that has a value, None where none has."""
        return next((self.said[n] for n in names if self.said.get(n) is not None), None)

    def number(self, *names: str) -> float | None:
        """Like ``get``, for numbers.

        Raises:
            UserError: it is none.
        """
        for name in names:
            value = self.said.get(name)
            if value is None:
                continue
            try:
                if isinstance(value, bool):
                    raise ValueError
                number = float(value)
                if not math.isfinite(number):
                    raise ValueError
            except (ValueError, TypeError, OverflowError):
                raise UserError(
                    f"{self.file}: '{name}' is {masked(repr(value))[:80]} and must be a number"
                ) from None
            return int(number) if number == int(number) else number
        return None

    def listed(self, name: str) -> list[str]:
        """The names in a list, or in a text with commas.

        Raises:
            UserError: it is neither.
        """
        value = self.said.get(name)
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list):
            raise UserError(
                f"{self.file}: '{name}' is {masked(repr(value))[:80]} and must be a list of names"
            )
        return list(map(str, value))

    def has(self, key: str) -> bool:
        """Whether the recipe has a key already."""
        group, _, name = key.partition(".")
        return name in self.tree.get(group, {})

    def put(self, name: str, keys: Mapping[str, Any], note: str = "") -> None:
        """A setting becomes keys of ours."""
        self._write(keys)
        self._tell(name, "taken", keys, note)

    def default(self, name: str, value: Any, keys: Mapping[str, Any], note: str = "") -> None:
        """What the tool does where nothing is said, unless the keys are there already."""
        if not any(map(self.has, keys)):
            self._write(keys)
            self.entries.append(Entry(name, value, "default", keys, note))

    def drop(self, name: str, why: str) -> None:
        """A setting is not needed."""
        self._tell(name, "not needed", {}, why)

    def lose(self, name: str, why: str, value: Any = None) -> None:
        """A setting has no counterpart; ``value`` where it is not a setting of its own."""
        if value is not None:
            self.entries.append(Entry(name, _shown(name, value), "no counterpart", note=why))
        else:
            self._tell(name, "no counterpart", {}, why)

    def lose_if_set(self, names: Iterable[str], why: str) -> None:
        """``lose`` those of ``names`` that are not off."""
        for name in names:
            if not _off(self.said.get(name)):
                self.lose(name, why)

    def refuse(self, what: str) -> UserError:
        """The error for training of another kind."""
        return UserError(
            f"{self.file}: {what} is not supervised fine-tuning, and a recipe for that would train "
            "something else; nothing is written"
        )

    def rest(self) -> None:
        """What no rule has looked at: names that are ours, too, renamed ones, and the others."""
        ours = {key.rpartition(".")[2]: key for key in known_keys() if _may_be_copied(key)}
        for name, value in list(self.said.items()):
            if _off(value):
                self.drop(name, "it is off there")
            elif name in ours:
                self.put(name, {ours[name]: value})
        for name, value in list(self.said.items()):
            there = counterpart(name)
            if there is None:
                self.lose(name, "Luthier does not know this setting")
            elif there.key is not None and self.has(there.key):
                self.lose(name, f"another setting says what {there.key} is")
            elif there.key is not None and there.said is None:
                self.put(name, {there.key: value})
            elif there.needless:
                self.drop(name, there.why or "")
            elif value in _USUAL.get(name, ()):
                self.drop(name, f"it is so here, too: {there.why}")
            else:
                self.lose(name, there.why or f"write '{there.said}'")

    def without_ours(self) -> None:
        """Take out the tool's defaults that are ours as well."""
        bare = {"model": {"source": "m"}, "data": {"train": "t"}}
        method = {"name": self.tree["method"]["name"]}
        recipe = Recipe.from_tree({**bare, "method": method}, str(self.file))
        kept = []
        for entry in self.entries:
            same = entry.outcome == "default" and all(
                key != "method.name" and _value(recipe, key) == value
                for key, value in entry.keys.items()
            )
            if same:
                for key in entry.keys:
                    group, _, name = key.partition(".")
                    del self.tree[group][name]
            else:
                kept.append(entry)
        self.entries = kept

    def _write(self, keys: Mapping[str, Any]) -> None:
        for key, value in keys.items():
            group, _, name = key.partition(".")
            self.tree.setdefault(group, {})[name] = value

    def _tell(
        self,
        name: str,
        outcome: Literal["taken", "not needed", "no counterpart"],
        keys: Mapping[str, Any],
        note: str,
    ) -> None:
        value = self.said.pop(name)
        self.entries.append(Entry(name, _shown(name, value), outcome, keys, note))


def _may_be_copied(key: str) -> bool:
    """Keys in the names of Transformers and PEFT; ``method.name`` is one of ours."""
    group, _, name = key.partition(".")
    return (group in ("train", "method") and name != "name") or key in (
        "data.packing",
        "data.streaming",
    )


def _off(value: Any) -> bool:
    return value is None or value is False or value == "" or value in ([], {})


def _value(recipe: Recipe, key: str) -> Any:
    group, _, name = key.partition(".")
    return getattr(getattr(recipe, group), name)


def _shown(name: str, value: Any) -> Any:
    if _SECRET.search(name) and value:
        return "[secret]"
    return masked(value) if isinstance(value, str) else value
