"""The sites that people and tokens may see: JSON lists of names, NULL for all."""

from __future__ import annotations

from sqlalchemy import Table, bindparam, func, select, update

from relay.store.engine import Statement, Tx
from relay.store.schema import tokens, users


def _without(table: Table) -> Statement:
    named = func.json_each(table.c.sites).table_valued("value").c
    others = select(func.json_group_array(named.value)).where(named.value != bindparam("name_"))
    names_it = select(named.value).where(named.value == bindparam("name_")).correlate(table).exists()
    return Statement(update(table).where(names_it).values(sites=others.correlate(table).scalar_subquery()))


_OF_USERS = _without(users)
_OF_TOKENS = _without(tokens)


def leave_out(tx: Tx, site: str) -> None:
    """Take a site that is removed out of every list: a later one of its name is not for the former's people.

    A list of which nothing is left stays a list: no site, not all.
    """
    tx.run(_OF_USERS, name_=site)
    tx.run(_OF_TOKENS, name_=site)
