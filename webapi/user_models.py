"""Users and tokens as the API takes and shows them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from relay.config import fields as f
from relay.config.models import Section
from relay.store.users import User
from webapi.values import moment, moment_or_none

#: A name that goes in a path and a log line as it is; an e-mail address is one, too.
USER_NAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")


def folded_name(text: str) -> str:
    """Names are compared without regard to case, and stored so."""
    return text.strip().lower()


def _user_name(text: str) -> str:
    name = folded_name(text)
    if not USER_NAME.fullmatch(name):
        raise ValueError("must be letters, digits and . _ - @ +, at most 64, beginning with a letter or digit")
    return name


UserName = Annotated[str, AfterValidator(_user_name)]
RoleName = Literal["admin", "manager", "viewer"]
Sites = Annotated[f.Listed[f.SiteName], Field(max_length=1000)]


class NewUser(Section):
    """``sites`` null: all."""

    name: UserName
    role: RoleName = "viewer"
    sites: Sites | None = None


class ChangedUser(Section):
    """Both are given whole."""

    role: RoleName
    sites: Sites | None = None


class NewToken(Section):
    """``sites`` null: all."""

    name: f.ShortText
    role: RoleName = "viewer"
    sites: Sites | None = None


class UserShown(BaseModel):
    name: str
    role: str
    sites: list[str] | None = Field(description="null: all.")
    created_at: str
    seen_at: str | None = Field(description="Last logged in.")
    waiting: bool = Field(description="Has not chosen a password yet.")


class UserList(BaseModel):
    items: list[UserShown]


class Invited(UserShown):
    link: str = Field(description="By which the password is chosen, once, within three days. Shown this once.")


class TokenShown(BaseModel):
    name: str
    role: str
    sites: list[str] | None = Field(description="null: all.")
    created_at: str


class TokenList(BaseModel):
    items: list[TokenShown]


class TokenCreated(TokenShown):
    token: str = Field(description="Shown this once: only its hash is stored.")


def shown(user: User) -> UserShown:
    return UserShown(
        name=user.name,
        role=user.role,
        sites=None if user.sites is None else list(user.sites),
        created_at=moment(user.created_at),
        seen_at=moment_or_none(user.seen_at),
        waiting=user.waiting,
    )
