"""Deals by event, threads, what a webhook is told besides its URL, the delivery log's requests, blocked senders."""

import sqlalchemy as sa
from alembic import context, op

revision = "0003"
down_revision = "0002"

# To the only site of a message, or to the only one of several whose webhook took it.
_GIVE_DEALS = """
UPDATE events SET deal_id = m.deal_id, deal_url = m.deal_url FROM messages AS m
WHERE m.id = events.message_id AND (m.deal_id IS NOT NULL OR m.deal_url IS NOT NULL) AND (
    NOT EXISTS (
        SELECT 1 FROM deliveries AS d WHERE d.message_id = events.message_id AND d.site_id <> events.site_id
    ) OR events.site_id = (
        SELECT min(e.site_id) FROM events AS e JOIN posts AS p ON p.event_id = e.id AND p.state = 'delivered'
        WHERE e.message_id = events.message_id GROUP BY e.message_id HAVING count(DISTINCT e.site_id) = 1
    )
)
"""
# Letters whose deal nobody got: without a receipt (a bounce, say, whose deal somebody had set), and with some.
_LOST_DEALS = """
SELECT count(CASE WHEN e.message_id IS NULL THEN 1 END), count(e.message_id) FROM messages AS m LEFT JOIN (
    SELECT message_id, count(deal_id) + count(deal_url) AS given FROM events GROUP BY message_id
) AS e ON e.message_id = m.id
WHERE (m.deal_id IS NOT NULL OR m.deal_url IS NOT NULL) AND (e.given IS NULL OR e.given = 0)
"""


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
    _give_deals_to_their_sites()
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


def _give_deals_to_their_sites() -> None:
    """A message had one deal, whichever of its sites' CRMs had given it, and a site must not see another's.

    Where it cannot be told whose it is, nobody gets it: a number can be set again, but not be unseen.
    """
    op.execute(_GIVE_DEALS)
    unread, shared = op.get_bind().execute(sa.text(_LOST_DEALS)).one()
    progress = context.config.attributes["progress"]
    if shared:
        progress(f"deal numbers dropped: {shared}, of letters to several sites: whose CRM gave them is not known")
    if unread:
        progress(f"deal numbers dropped: {unread}, of letters that are for no site's CRM")
