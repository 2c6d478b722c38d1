"""Answers that must be JSON."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonschema import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing.exceptions import Unresolvable

from luthier.data.conversation import Conversation
from luthier.errors import UserError

# An answer that is one fenced block and nothing else: what chat models write around JSON.
_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)


def parse_json(answer: str) -> Any:
    """The value that ``answer`` writes, in a fence or without.

    Raises:
        ValueError: it is not JSON (RFC 8259: NaN and Infinity are not).
    """
    fenced = _FENCED.fullmatch(answer)
    try:
        return json.loads(fenced[1] if fenced else answer, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def json_valid(answer: str, _row: Conversation) -> float:
    """1 if the answer is JSON."""
    try:
        parse_json(answer)
    except ValueError:
        return 0.0
    return 1.0


def schema_metric(path: Path) -> Callable[[str, Conversation], float]:
    """1 if the answer is JSON that meets the schema in ``path`` (the jsonschema package).

    Raises:
        UserError: the file is missing, is not JSON, or is not a schema.
    """
    validator = _read_schema(path)

    def score(answer: str, _row: Conversation) -> float:
        try:
            return float(validator.is_valid(parse_json(answer)))
        except ValueError:
            return 0.0
        except Unresolvable as error:
            raise UserError(f"{path}: a $ref leads nowhere: {error}") from None

    return score


def _read_schema(path: Path) -> Validator:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the JSON schema {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise UserError(f"{path} is not a JSON schema: it must be an object")
    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise UserError(
            f"{path} is not a JSON schema: {error.json_path}: {error.message}"
        ) from None
    return kind(schema)
