"""What ends an attempt, and how: every stage with every class of reply."""

from __future__ import annotations

import pytest

from relay.core.model import OutcomeKind
from relay.core.outcome import Stage, classify, is_too_large

BEFORE_RCPT = [Stage.DNS, Stage.CONNECT, Stage.GREETING, Stage.EHLO, Stage.TLS, Stage.AUTH, Stage.MAIL]


@pytest.mark.parametrize("stage", BEFORE_RCPT)
@pytest.mark.parametrize("code", [None, 250, 354, 421, 450, 500, 535, 550, 554, 599])
def test_nothing_before_rcpt_is_ever_permanent(stage: Stage, code: int | None) -> None:
    assert classify(stage, code) is OutcomeKind.TEMPORARY


@pytest.mark.parametrize("code", [None, 251, 354, 421, 450, 452])
def test_rcpt_is_temporary_unless_5xx(code: int | None) -> None:
    assert classify(Stage.RCPT, code) is OutcomeKind.TEMPORARY


@pytest.mark.parametrize("code", [500, 550, 552, 554, 599])
def test_a_5xx_to_rcpt_is_permanent(code: int) -> None:
    assert classify(Stage.RCPT, code) is OutcomeKind.PERMANENT


@pytest.mark.parametrize("code", [None, 250, 421, 451, 503, 554])
def test_whatever_refuses_the_data_command_is_temporary(code: int | None) -> None:
    assert classify(Stage.DATA, code) is OutcomeKind.TEMPORARY


def test_an_answer_while_content_is_sent_refuses_for_good_only_with_5xx() -> None:
    assert classify(Stage.CONTENT, 552) is OutcomeKind.PERMANENT
    assert classify(Stage.CONTENT, 452) is OutcomeKind.TEMPORARY
    assert classify(Stage.CONTENT, 250) is OutcomeKind.TEMPORARY


def test_a_connection_lost_before_the_dot_is_temporary_and_after_it_ambiguous() -> None:
    assert classify(Stage.CONTENT, None) is OutcomeKind.TEMPORARY
    assert classify(Stage.FINAL, None) is OutcomeKind.AMBIGUOUS


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (250, OutcomeKind.DELIVERED),
        (251, OutcomeKind.DELIVERED),
        (421, OutcomeKind.TEMPORARY),
        (451, OutcomeKind.TEMPORARY),
        (550, OutcomeKind.PERMANENT),
        (554, OutcomeKind.PERMANENT),
        (354, OutcomeKind.AMBIGUOUS),
    ],
)
def test_the_answer_to_the_final_dot_decides(code: int, kind: OutcomeKind) -> None:
    assert classify(Stage.FINAL, code) is kind


def test_stages_are_listed_in_the_order_of_a_session() -> None:
    assert [*BEFORE_RCPT, Stage.RCPT, Stage.DATA, Stage.CONTENT, Stage.FINAL] == list(Stage)


@pytest.mark.parametrize(
    ("code", "text", "said"),
    [
        (552, "5.3.4 Message size exceeds fixed limit", True),
        (554, "5.3.4 too big", True),
        (552, "5.3.45 what is that", False),
        (552, "Message size exceeds maximum permitted", False),
        (552, "5.2.2 mailbox full", False),
        (452, "4.3.4 not now", False),
        (452, "5.3.4 a server that mixes them up", False),
    ],
)
def test_a_letter_is_too_large_where_the_enhanced_code_says_so(code: int, text: str, said: bool) -> None:
    assert is_too_large(code, text, is_beyond=False) is said


@pytest.mark.parametrize(
    ("code", "text", "said"),
    [
        (552, "Message size exceeds maximum permitted", True),
        (552, "5.3.4 Message size exceeds fixed limit", True),
        (552, "5.2.2 mailbox full", False),
        (550, "go away", False),
        (452, "not now", False),
    ],
)
def test_a_letter_beyond_the_announced_size_is_too_large_where_552_says_nothing_else(
    code: int, text: str, said: bool
) -> None:
    assert is_too_large(code, text, is_beyond=True) is said


def test_what_lasts_is_permanent_at_any_stage() -> None:
    assert classify(Stage.MAIL, 552, is_lasting=True) is OutcomeKind.PERMANENT
    assert classify(Stage.MAIL, None, is_lasting=True) is OutcomeKind.PERMANENT
