"""Settings: one's own account for everybody; people, tokens, data, keys and the log of changes for administrators."""

from __future__ import annotations

from webapi.ui import settings_account, settings_data, settings_log, settings_senders, settings_tokens, settings_users

PAGES = (
    *settings_account.PAGES,
    *settings_users.PAGES,
    *settings_tokens.PAGES,
    *settings_senders.PAGES,
    *settings_data.PAGES,
    *settings_log.PAGES,
)
