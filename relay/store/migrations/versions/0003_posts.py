"""Deals by event, threads, what a webhook is told besides its URL, the delivery log's requests, blocked senders."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    for table, name, kind in (
        ("events", "deal_id", sa.Text()),
        ("events", "deal_url", sa.Text()),
        ("events", "data", sa.Text()),
        ("messages", "thread_id", sa.Integer()),
        ("webhooks", "access", sa.Text()),
        ("webhooks", "previous_secret", sa.Text()),
        ("webhooks", "previous_until", sa.Float()),
        ("post_attempts", "digest", sa.LargeBinary()),
        ("post_attempts", "size", sa.Integer()),
        ("texts", "html", sa.Text()),
    ):
        op.add_column(table, sa.Column(name, kind, nullable=True))
    op.add_column("webhooks", sa.Column("settings", sa.Text(), server_default=sa.text("'{}'"), nullable=False))
    # A message had one deal, whichever of its sites' CRMs had answered it.
    op.execute(
        "UPDATE events SET deal_id = m.deal_id, deal_url = m.deal_url FROM messages AS m "
        "WHERE m.id = events.message_id AND (m.deal_id IS NOT NULL OR m.deal_url IS NOT NULL)"
    )
    op.drop_column("messages", "deal_id")
    op.drop_column("messages", "deal_url")
    for name, table, columns, condition in (
        ("ix_messages_thread_id", "messages", ["thread_id"], "thread_id IS NOT NULL"),
        ("ix_posts_failed", "posts", ["webhook_id", "id"], "state = 'failed'"),
    ):
        op.create_index(name, table, columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))
    op.drop_index("ix_posts_event_id", table_name="posts")
    op.create_index("ix_posts_event_id_webhook_id", "posts", ["event_id", "webhook_id"])
    op.create_index("ix_posts_webhook_id_id", "posts", ["webhook_id", "id"])
    op.create_table(
        "blocked_senders",
        sa.Column("site_id", sa.Integer(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["site_id"], ["sites.id"], name=op.f("fk_blocked_senders_site_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("site_id", "address", name=op.f("pk_blocked_senders")),
    )
