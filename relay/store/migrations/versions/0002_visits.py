"""Where visits came from, touches of one browser, devices; settings of a site; threads by Message-ID."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("sites", sa.Column("settings", sa.Text(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("targets", sa.Column("additional", sa.Integer(), server_default=sa.text("0"), nullable=False))
    for name in ("mark", "channel", "ym_uid", "device", "browser", "os"):
        op.add_column("visits", sa.Column(name, sa.Text(), nullable=True))
    for name in ("first_id", "touch_id"):
        op.add_column("visits", sa.Column(name, sa.Integer(), nullable=True))
    op.add_column("visits", sa.Column("erased_at", sa.Float(), nullable=True))
    # Until now only the landing page's address said where a visit came from.
    op.execute("UPDATE visits SET mark = marker, channel = 'campaign' WHERE marker IS NOT NULL")
    op.execute("UPDATE visits SET channel = 'direct' WHERE marker IS NULL AND referrer IS NULL")
    for name, column, condition in (
        ("ix_visits_first_id", "first_id", "first_id IS NOT NULL"),
        ("ix_visits_traced", "started_at", "(ip IS NOT NULL OR user_agent IS NOT NULL)"),
    ):
        op.create_index(name, "visits", [column], sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))
    named = sa.text("message_id IS NOT NULL")
    op.create_index("ix_messages_message_id", "messages", ["message_id"], sqlite_where=named, postgresql_where=named)
