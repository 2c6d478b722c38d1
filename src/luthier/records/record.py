"""The base of all records: frozen, stored as JSON, read with care."""

from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from luthier.errors import UserError
from luthier.tables import Tabular


class Record(Tabular, BaseModel):
    """A frozen record that is stored as JSON.

    A field whose default is None is written only where it has a value.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", protected_namespaces=(), ser_json_inf_nan="constants"
    )

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The record stored at ``path``.

        Raises:
            UserError: the file is missing, or is not what Luthier writes there.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path} is missing") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        except ValidationError as error:
            raise UserError(f"{path} is damaged: {_first(error)}") from None

    def to_dict(self) -> dict[str, Any]:
        """As it is stored."""
        return self.model_dump(mode="json")

    @model_serializer(mode="wrap")
    def _without_defaults_of_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        stored: dict[str, Any] = handler(self)
        for name, field in type(self).model_fields.items():
            if field.default is None and stored.get(name) is None:
                stored.pop(name, None)
        return stored


def _first(error: ValidationError) -> str:
    issue = error.errors()[0]
    where = ".".join(map(str, issue["loc"]))
    return f"'{where}': {issue['msg']}" if where else str(issue["msg"])
