"""Answers and losses of base models, kept between evaluations: all runs over one base ask it the same.

They lie in ``answers.sqlite`` in the cache, under a hash of all that decides them: the files of the
model, how its weights are stored, the tokenizer and its template, the device, and the code that
computes them. Change any of it, and the base is asked anew.
"""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version

import torch
from transformers import PreTrainedTokenizerBase

from luthier.data.token_cache import definition
from luthier.data.tokens import Tokenizer
from luthier.evaluate.store import key_of
from luthier.events import OnEvent, during
from luthier.files import code_hash, sha256
from luthier.models.dtype import pick_device
from luthier.models.pull import cache_folder
from luthier.models.source import resolve
from luthier.run import Run

log = logging.getLogger(__name__)

_WORTH = 2**26  # bytes of a model; a smaller one answers sooner than it is looked up
_KEPT = 90 * 24 * 3600.0  # seconds after its last use that an answer is deleted
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT, used REAL) WITHOUT ROWID"
)


def base_name(run: Run, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent) -> str | None:
    """What answers and losses of the base of ``run`` depend on besides what is asked, as a hash.

    None where nothing of it is to be kept: small models, and bases that the run has given new tokens.
    """
    recipe = run.recipe()
    folder = resolve(recipe.model.source, recipe.model.revision).folder
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if sum(file.stat().st_size for file in files) < _WORTH or recipe.data.add_tokens:
        return None
    with during("looking for answers of the base that are kept", on_event):
        content = {file.name: sha256(file) for file in files}
    method = recipe.method
    stored = (method.name, method.bnb_4bit_quant_type, method.bnb_4bit_use_double_quant)
    device = pick_device()
    return key_of(
        "base",
        content,
        run.provenance().dtype,
        stored if method.name == "qlora" else None,
        recipe.model.rope_scaling,
        hashlib.sha256(definition(Tokenizer(tokenizer, "completions"))).hexdigest(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        [version(name) for name in ("torch", "transformers", "luthier")],
        code_hash("data", "evaluate", "generate", "kernels", "models", "objectives"),
    )


def find_answers(keys: Sequence[str]) -> dict[str, str]:
    """Those of ``keys`` that are kept, with their answers."""
    try:
        with closing(_open()) as database, database:
            found = {
                key: row[0]
                for key in keys
                for row in database.execute("SELECT value FROM answers WHERE key = ?", (key,))
            }
            used = [(time.time(), key) for key in found]
            database.executemany("UPDATE answers SET used = ? WHERE key = ?", used)
            database.execute("DELETE FROM answers WHERE used < ?", (time.time() - _KEPT,))
    except (sqlite3.Error, OSError) as error:
        log.debug("kept answers of the base were not read: %s", error)
        return {}
    return found


def keep_answers(answers: Mapping[str, str]) -> None:
    """Keep ``answers`` by key. A cache that cannot be written is not an error."""
    rows = [(key, value, time.time()) for key, value in answers.items()]
    try:
        with closing(_open()) as database, database:
            database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", rows)
    except (sqlite3.Error, OSError) as error:
        log.debug("answers of the base were not kept: %s", error)


def _open() -> sqlite3.Connection:
    path = cache_folder().parent / "answers.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, timeout=30)
    database.execute(_TABLE)
    return database
