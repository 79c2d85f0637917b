"""The description of the API (OpenAPI 3.1), made of the operations themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from relay.core.hook import EventType
from webapi import problems, schemas
from webapi.operation import JSON, Operation
from webapi.problems import ProblemDocument

Document = dict[str, Any]

_TEMPLATE = "#/components/schemas/{model}"
_PARAMETERS: dict[str, Document] = {
    "id": {"description": "Its id.", "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,18}$"}},
    "number": {"description": "Number of a visit.", "schema": {"type": "string", "pattern": "^[0-9]{1,20}$"}},
    "post": {"description": "Id of a post.", "schema": {"type": "string", "pattern": "^[1-9][0-9]{0,18}$"}},
    "name": {"description": "Its name.", "schema": {"type": "string", "minLength": 1}},
    "address": {"description": "A bare address.", "schema": {"type": "string", "minLength": 3}},
    "token": {"description": "The signed part of the link.", "schema": {"type": "string", "minLength": 1}},
}
#: Statuses that every operation with a token can answer: no or a wrong token, no right, too many failures.
_OF_TOKENS = (401, 403, 429)
_SIGNED = ("webhook-id", "webhook-timestamp", "webhook-signature")
_ABOUT = {
    EventType.RECEIVED: "A message with its visit, posted to the site's webhooks.",
    EventType.FAILED: "A message could not be forwarded and is held; for webhooks that ask for it.",
    EventType.REATTRIBUTED: "A message was attributed anew, and came out otherwise; for webhooks that ask for it.",
}


def document(operations: Iterable[Operation]) -> Document:
    """The whole document. Every operation is in it, for it is made of nothing else."""
    operations = tuple(operations)
    models = {model for operation in operations for model in _models(operation)} | {ProblemDocument}
    inputs = {operation.body for operation in operations if operation.body} | {
        operation.query for operation in operations if operation.query
    }
    modes: list[Any] = sorted(
        ((model, "validation" if model in inputs else "serialization") for model in models),
        key=lambda pair: pair[0].__name__,
    )
    schemas, definitions = models_json_schema(modes, ref_template=_TEMPLATE)
    refs = {model: schemas[model, mode] for model, mode in modes}
    components: Document = definitions.get("$defs", {})
    paths: Document = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, refs, components)
    used = {"ProblemDocument"} | _referred(paths)
    while missing := {name for used_name in used for name in _referred(components[used_name])} - used:
        used |= missing
    components = {name: _tidy(components[name]) for name in sorted(used)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "visit-relay",
            "version": _version(),
            "description": "Which website visit an e-mail enquiry came from. Errors are problem JSON (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "webhooks": {kind.value: {"post": _webhook(kind)} for kind in EventType},
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _webhook(kind: EventType) -> Document:
    names = [name for name in schemas.documents() if name.removesuffix(".extended") == kind.value]
    found = [schemas.documents()[name] for name in names]
    return {
        "summary": _ABOUT[kind],
        "description": (
            "Signed after Standard Webhooks; webhook-id stays the same over retries and replays. The body is also a "
            f"document of its own: {', '.join(map(schemas.link, names))}."
        ),
        "externalDocs": {"url": schemas.link(names[0]), "description": "JSON Schema of the body."},
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}} for name in _SIGNED
        ],
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": found[0] if len(found) == 1 else {"anyOf": found}}},
        },
        "responses": {"200": {"description": "Taken. A JSON answer with deal_id and deal_url becomes the deal."}},
    }


def _models(operation: Operation) -> Iterable[type[BaseModel]]:
    for candidate in (operation.query, operation.body, operation.answer):
        if isinstance(candidate, type):
            yield candidate


def _referred(part: object) -> set[str]:
    """The names of the schemas that a part of the document refers to."""
    if isinstance(part, list):
        return {name for member in part for name in _referred(member)}
    if not isinstance(part, dict):
        return set()
    found = {name for member in part.values() for name in _referred(member)}
    return found | {_name_of(part)} if "$ref" in part else found


def _tidy(schema: Document) -> Document:
    """Make the defaults fit: a field that reads text has a default of what it reads, which is no text."""
    for member in schema.get("properties", {}).values():
        if member.get("type") == "string" and not isinstance(member.get("default", ""), str):
            member["type"] = ["string", "null"] if member.pop("default") is None else "string"
    return schema


def _name_of(ref: Document) -> str:
    return str(ref["$ref"]).rpartition("/")[2]


def _operation(operation: Operation, refs: dict[Any, Document], components: Document) -> Document:
    described: Document = {
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "tags": [_tag(operation.path)],
        "parameters": [*_path_parameters(operation.path), *_query_parameters(operation, refs, components)],
        "responses": _responses(operation, refs),
    }
    if operation.body is not None:
        schema = refs[operation.body]
        described["requestBody"] = {
            "required": True,
            "content": {media_type: {"schema": schema} for media_type in operation.body_types},
        }
    if operation.role is not None:
        described["security"] = [{"token": []}]
        described["description"] = f"Takes a token with the role {operation.role.name.lower()}."
    return described


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"[A-Za-z0-9]+", operation.path.removeprefix("/v1"))
    return "_".join([operation.method.lower(), *words])


def _tag(path: str) -> str:
    return path.removeprefix("/v1").strip("/").partition("/")[0]


def _path_parameters(path: str) -> list[Document]:
    found = []
    for name in re.findall(r"{(\w+)}", path):
        known = _PARAMETERS[name]
        found.append({"name": name, "in": "path", "required": True, **known})
    return found


def _query_parameters(operation: Operation, refs: dict[Any, Document], components: Document) -> list[Document]:
    if operation.query is None:
        return []
    schema = components[_name_of(refs[operation.query])]
    found = []
    for name, member in schema["properties"].items():
        present = _present(member)
        described = {"description": present.pop("description")} if "description" in present else {}
        required = name in schema.get("required", [])
        found.append({"name": name, "in": "query", "required": required, **described, "schema": present})
    return found


def _present(schema: Document) -> Document:
    """The schema of a parameter that is given: null is for those left out, and cannot be written in a query."""
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default", "title")}
    if schema.get("default") is not None:
        rest["default"] = schema["default"]
    choices = [choice for choice in schema.get("anyOf", []) if choice != {"type": "null"}]
    return {**choices[0], **rest} if len(choices) == 1 else rest


def _responses(operation: Operation, refs: dict[Any, Document]) -> Document:
    found: Document = {}
    answer = operation.answer
    status = operation.status if answer is not None else 204
    for code in (status, *operation.alike):
        found[str(code)] = {"description": problems.phrase(code)}
        if isinstance(answer, str):
            found[str(code)]["content"] = {answer.partition(";")[0]: {}}
        elif answer is not None:
            found[str(code)]["content"] = {JSON: {"schema": refs[answer]}}
    statuses = set(operation.problems) | {503}
    if operation.role is not None:
        statuses |= {400, *_OF_TOKENS}
    if operation.body is not None:
        statuses |= {400, 413, 415}
    problem = {problems.MEDIA_TYPE: {"schema": refs[ProblemDocument]}}
    for code in sorted(statuses):
        found[str(code)] = {"description": problems.phrase(code), "content": problem}
    return found


def _version() -> str:
    try:
        return version("visit-relay")
    except PackageNotFoundError:  # run from a source tree
        return "0"
