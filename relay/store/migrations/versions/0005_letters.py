"""Of a letter the label of its static substitute, and whether its session was ESMTP; of the daemon, when it ran last."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# As they were shown until now: which label a route had before is not known.
_LABELS = """
UPDATE deliveries SET label = (SELECT routes.label FROM routes WHERE routes.id = deliveries.route_id)
WHERE attribution_method = 'static/1'
"""

# Until now with the quotes that History shows around odd dots; senders are looked up without (address.sender_key).
_BLOCKED = """
UPDATE OR REPLACE blocked_senders
SET address = substr(address, 2, instr(address, '"@') - 2) || substr(address, instr(address, '"@') + 1)
WHERE address GLOB '"?*"@*'
  AND substr(address, 2, instr(address, '"@') - 2) NOT GLOB '*[^a-z0-9!#$%&''*+/=?^_`{|}~.-]*'
"""


def upgrade() -> None:
    op.add_column("messages", sa.Column("esmtp", sa.Integer(), server_default=sa.text("1"), nullable=False))
    op.add_column("deliveries", sa.Column("label", sa.Text(), nullable=True))
    op.execute(_LABELS)
    op.execute(_BLOCKED)
    op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("noted_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clock")),
    )
