"""the secret group that a device of a round was in

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("round_devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("group_number", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("round_devices", schema=None) as batch_op:
        batch_op.alter_column("group_number", server_default=None)
