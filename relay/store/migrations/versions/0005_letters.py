"""The label under which a letter to a static substitute came, which its route no longer tells once it has another."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# As they were shown until now: which label a route had before is not known.
_LABELS = """
UPDATE deliveries SET label = (SELECT routes.label FROM routes WHERE routes.id = deliveries.route_id)
WHERE attribution_method = 'static/1'
"""


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("label", sa.Text(), nullable=True))
    op.execute(_LABELS)
