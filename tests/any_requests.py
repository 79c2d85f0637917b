"""Any requests that a document of OpenAPI allows, and as many that it does not: made by schemathesis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.ledger import SOAK
from webapi.app import OPERATIONS
from webapi.openapi import document

#: Right requests for each operation, and as many wrong ones: to make them is most of the work.
EXAMPLES = 200 if SOAK else 3
#: What an answer to a right request must be: no 5xx, a status and a type that are documented, a body as documented.
CONFORMING = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def attack(url: str, token: str, known: Mapping[str, str]) -> None:
    """Try every operation of the API at ``url``; ``known``: what its paths name, by parameter."""
    schema = schemathesis.openapi.from_dict(json.loads(json.dumps(document(OPERATIONS))))
    schema.config.update(base_url=url)
    seen = 0
    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        bombard(right, token, known, CONFORMING)
        if operation.body or operation.query:
            wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
            bombard(wrong, token, known, [not_a_server_error])
        seen += 1
    assert seen == len(OPERATIONS)


def bombard(cases: st.SearchStrategy[Any], token: str, known: Mapping[str, str], checks: list[Any]) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, there=st.booleans())
    def hit(case: Any, there: bool) -> None:
        if there:
            case.path_parameters = {name: known.get(name, value) for name, value in case.path_parameters.items()}
        headers = {"Authorization": f"Bearer {token}", "Origin": "https://www.shop.example"}
        response = case.call(headers=headers, timeout=10)
        case.validate_response(response, checks=checks)

    hit()
