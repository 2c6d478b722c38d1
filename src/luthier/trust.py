"""Consent to what the recipe of a run folder can do. It belongs to a person on this machine.

A run folder may come from anyone, and its recipe may name code to run, files to read and addresses to
send to. Who trains a run here has consented by the recipe that he gave; anyone else is asked once.
Consent is kept in the user's state folder, never in the run, by hashes of what was consented to: so it
holds for a run that was moved or copied, and no longer for one whose dangerous settings, or whose
code, have changed. SECURITY.md lists every key.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_state_path

from luthier.errors import UserError
from luthier.files import sha256, user_path, write_json
from luthier.recipe import OBJECTIVES, EvaluateGroup, Recipe

log = logging.getLogger(__name__)

_SHOWN = 8  # files of code in a message
_LONGEST_CONFIG = 2**20  # bytes; Transformers looks for names of code in small files alone

# What this process was told, where the state folder cannot be written.
_granted: set[str] = set()


class Untrusted(UserError):
    """A run from elsewhere asks for what needs consent.

    Attributes:
        asks: what it asks for, a line each.
    """

    def __init__(self, root: Path, asks: str) -> None:
        super().__init__(
            f"{root} was not trained here by you, and it asks for what needs your consent:\n{asks}\n"
            "look at that first; if you trust it, say so once with --trust (trust=True in Python)"
        )
        self.asks = asks


@dataclass(frozen=True)
class Risk:
    """Something that a run asks for.

    Attributes:
        key: of the recipe.
        does: what would happen, as the end of a sentence.
        depends_on: what consent to it covers; consent ends where this changes.
    """

    key: str
    value: str
    does: str
    depends_on: tuple[str | None, ...]

    def __str__(self) -> str:
        return f"  {self.key}: {self.value} ({self.does})"

    @property
    def mark(self) -> str:
        """Hex SHA-256 of what consent to it covers."""
        covered = json.dumps([self.key, *self.depends_on])
        return hashlib.sha256(covered.encode("utf-8", "surrogatepass")).hexdigest()


def require(recipe: Recipe, root: Path, *, to_train: bool = False) -> None:
    """Raise unless this user consented to all that the run at ``root`` asks for.

    Args:
        to_train: also what only training acts on.

    Raises:
        Untrusted: a key is named with its value and what it would do.
    """
    open_risks = [
        risk for risk in risks(recipe, root, to_train=to_train) if risk.mark not in _granted
    ]
    if open_risks:
        kept = _kept()
        open_risks = [risk for risk in open_risks if risk.mark not in kept]
    if open_risks:
        lines = [str(risk) for risk in open_risks[:_SHOWN]]
        if len(open_risks) > _SHOWN:
            lines.append(f"  and {len(open_risks) - _SHOWN} more")
        raise Untrusted(root, "\n".join(lines))


def consent(recipe: Recipe, root: Path, *, to_train: bool = False, code: bool = True) -> None:
    """Keep that this user trusts what the run at ``root`` asks for.

    Where the state folder cannot be written it holds for this process, and a warning says so.

    Args:
        to_train: also what only training acts on.
        code: also the Python files that lie in the folder.
    """
    given = {r.mark: r for r in risks(recipe, root, to_train=to_train, code=code)}
    _granted.update(given)
    if not given:
        return
    path = _consents()
    try:
        if given.keys() <= _kept():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            shown = {
                mark: {"run": str(root.absolute()), "key": risk.key, "value": risk.value}
                for mark, risk in given.items()
            }
            write_json(path, {**_read(path), **shown})
    except (OSError, UserError) as error:
        log.warning("what you trust cannot be kept in %s: %s", path, error)


def risks(recipe: Recipe, root: Path, *, to_train: bool = False, code: bool = True) -> list[Risk]:
    """All that the run at ``root`` asks for and that needs consent; see ``consent``."""
    found = [*_of_model(recipe), *_of_evaluation(recipe, root)]
    if recipe.model.trust_remote_code and code:
        found += _of_code(root)
    if to_train:
        found += _of_training(recipe)
    return found


def _of_model(recipe: Recipe) -> Iterator[Risk]:
    model = recipe.model
    origin = (model.source, model.revision)
    if model.trust_remote_code:
        does = f"runs the Python code that ships with {model.source}, and that in the run folder"
        yield Risk("model.trust_remote_code", "true", does, origin)
    if model.allow_pickle:
        does = f"opens pickled weights of {model.source}, as tensors only"
        yield Risk("model.allow_pickle", "true", does, origin)


def _of_code(root: Path) -> Iterator[Risk]:
    """The Python files in the folder, and the code elsewhere that its configs name."""
    for path in _files(root):
        where = str(path.relative_to(root))
        if path.suffix == ".py":
            yield Risk("model.trust_remote_code", where, "is code that would run", (_digest(path),))
        elif path.suffix == ".json" and path.stat().st_size <= _LONGEST_CONFIG:
            with suppress(ValueError, RecursionError, OSError):  # whoever loads it will complain
                config = json.loads(path.read_bytes())
                named = config.get("auto_map") if isinstance(config, dict) else None
                if named:
                    text = json.dumps(named, sort_keys=True)
                    does = f"names the code {text[:200]}"
                    yield Risk("model.trust_remote_code", where, does, (text,))


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _files(root: Path) -> Iterator[Path]:
    """All files below ``root``, through links too, each folder once."""
    seen = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        yield from (path for name in sorted(names) if (path := Path(folder) / name).is_file())


def _of_evaluation(recipe: Recipe, root: Path) -> Iterator[Risk]:
    settings = recipe.evaluate
    for name in settings.metrics:
        if name.endswith(".py"):
            path = Path(os.path.abspath(user_path(name)))  # noqa: PTH100  # links stay as they are
            inside = path.resolve().is_relative_to(root.resolve())
            content = _digest(path) if inside and path.is_file() else None
            yield Risk("evaluate.metrics", name, "runs this Python file", (str(path), content))
    fields = EvaluateGroup.model_fields
    target = (settings.judge_url, settings.judge_key_env)
    usual = (fields["judge_url"].default, fields["judge_key_env"].default)
    if "judge" in settings.metrics or recipe.judge_compares or target != usual:
        does = "sends questions, references and answers to this address"
        yield Risk("evaluate.judge_url", settings.judge_url, does, target)
        does = f"sends the value of this environment variable to {settings.judge_url}"
        yield Risk("evaluate.judge_key_env", settings.judge_key_env, does, target)
    if settings.sql_databases is not None:
        does = "reads the databases in this folder"
        yield Risk(
            "evaluate.sql_databases", settings.sql_databases, does, (settings.sql_databases,)
        )
    if settings.reward_model is not None:
        reward = settings.reward_model
        yield Risk("evaluate.reward_model", reward, "reads the reward model there", (reward,))
    if settings.json_schema is not None:
        yield Risk(
            "evaluate.json_schema", settings.json_schema, "reads this file", (settings.json_schema,)
        )


def _of_training(recipe: Recipe) -> Iterator[Risk]:
    data = recipe.data
    sources = [("data.train", source) for source in recipe.train_files]
    if data.validation is not None:
        sources.append(("data.validation", data.validation))
    if data.replay is not None:
        sources.append(("data.replay", data.replay.source))
    if recipe.model.adapter is not None:
        adapter = recipe.model.adapter
        yield Risk("model.adapter", adapter, "reads the adapter of the run there", (adapter,))
    if recipe.objective.teacher is not None:
        teacher = recipe.objective.teacher
        yield Risk("objective.teacher", teacher, "reads or fetches this model", (teacher,))
    for key, source in sources:
        yield Risk(key, source, "reads it, and copies its rows into the run folder", (source,))
    if data.template not in ("auto", "model", "alpaca"):
        yield Risk("data.template", data.template, "reads this file", (data.template,))
    if recipe.objective.name not in OBJECTIVES:
        name = recipe.objective.name
        yield Risk("objective.name", name, "runs an objective of an installed package", (name,))
    for name in recipe.train.report_to:
        if name != "tensorboard":  # which writes into the run folder alone
            yield Risk("train.report_to", name, "sends the figures of the run there", (name,))


def _consents() -> Path:
    return user_state_path("luthier") / "trust.json"


def _kept() -> set[str]:
    return set(_read(_consents()))


def _read(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_bytes())
    except OSError:
        return {}
    except ValueError as error:
        raise UserError(
            f"{path}, which holds what you trust, is damaged: {error}; delete it to be asked again"
        ) from None
    if not isinstance(kept, dict):
        raise UserError(
            f"{path}, which holds what you trust, is damaged; delete it to be asked again"
        )
    return kept
