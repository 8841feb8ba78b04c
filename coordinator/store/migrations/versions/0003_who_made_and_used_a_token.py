"""who made and used a token, and whether it was revoked

Tokens of before say who used them where the device still has the key that it joined with.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_USED_BY = """
    UPDATE join_tokens SET device_id = (
        SELECT devices.id FROM devices WHERE devices.public_key_sha256 = join_tokens.spent_by_key_sha256)
    WHERE spent_by_key_sha256 IS NOT NULL
"""


def upgrade() -> None:
    with op.batch_alter_table("join_tokens", schema=None) as batch_op:
        batch_op.add_column(sa.Column("created_by", sa.String(length=128), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("device_id", sa.String(length=32), nullable=True))
        batch_op.add_column(sa.Column("revoked_at", sa.Float(), nullable=True))
    op.execute(_USED_BY)
    with op.batch_alter_table("join_tokens", schema=None) as batch_op:
        batch_op.alter_column("created_by", server_default=None)
