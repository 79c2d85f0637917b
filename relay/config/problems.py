"""What is wrong with a configuration, in words: pydantic's errors as (key path, message) for the operator."""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_TYPES = {
    "string_type": 'must be a string ("…")',
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list ([…])",
    "model_type": "must be a table",
}
_BOUNDS = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le")}


class OptionError(ValueError):
    """An option that is sound, but does not go with the others; ``field`` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Problem:
    """``path`` as in ``site[0].target[1].lease``; empty when the file as a whole is meant."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every error of a validation of ``model``, in the order of the fields. Values are named by their type only."""
    return [
        Problem(path_of(_place(details)), _message(details, model))
        for details in error.errors(include_url=False, include_input=True)
        # pydantic counts sound items only: a list whose items are all reported is not empty on top of it
        if not (details["type"] == "too_short" and details["input"])
    ]


def _place(details: ErrorDetails) -> tuple[int | str, ...]:
    """Where the error is: what a table as a whole is refused for may be one key of it."""
    error = details.get("ctx", {}).get("error")
    return (*details["loc"], error.field) if isinstance(error, OptionError) else details["loc"]


def path_of(location: Sequence[int | str]) -> str:
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + _suggestion(details["loc"], model)
    if kind == "missing":
        return "is required"
    if kind == "tuple_type" and isinstance(details["input"], dict):
        table = ".".join(step for step in details["loc"] if isinstance(step, str))
        return f"must be a list: write [[{table}]] for a table in it"
    if kind in _TYPES:
        return f"{_TYPES[kind]}, not {_type_name(details['input'])}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {context[bound]}, not {details['input']}"
    if kind in ("literal_error", "enum"):
        found = details["input"] if isinstance(details["input"], str) else None
        instead = _type_name(details["input"]) if found is None else f'"{found:.40}"'
        expected = str(context["expected"]).replace("'", '"').replace("True", "true").replace("False", "false")
        return f"must be {expected}, not {instead}"
    if kind == "too_short":
        return "must not be empty"
    if kind == "value_error":
        return str(context["error"])
    return details["msg"]


def _type_name(value: object) -> str:
    """The TOML type of a value (toml.io, "Spec"); the value itself may be a secret."""
    if isinstance(value, bool):  # before int, which it is too
        return "true or false"
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (str, "a string"),
        (int, "a whole number"),
        (float, "a fraction"),
        (list, "a list"),
        (dict, "a table"),
        ((datetime.date, datetime.time), "a date or time"),
    )
    return next((name for types, name in names if isinstance(value, types)), "empty")


def _suggestion(location: Sequence[int | str], model: type[BaseModel]) -> str:
    keys = _keys_at(location[:-1], model)
    close = difflib.get_close_matches(str(location[-1]), keys, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _keys_at(location: Sequence[int | str], model: type[BaseModel]) -> list[str]:
    """The keys of the table at ``location``, which leads through tables and lists of tables only."""
    for step in location:
        if isinstance(step, str):
            model = table_of(
                {key_of(model, name): field.annotation for name, field in model.model_fields.items()}[step]
            )
    return [key_of(model, name) for name in model.model_fields]


def key_of(model: type[BaseModel], name: str) -> str:
    """The TOML key of a field."""
    return model.model_fields[name].alias or name


def table_of(annotation: Any) -> Any:
    """The model of a table, or of a list of tables; None for the type of a plain value."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
