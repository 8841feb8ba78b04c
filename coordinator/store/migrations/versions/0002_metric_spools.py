"""metric spools, admins

Admins from afar have rows. Batches are numbered within a spool, and how far each spool is acknowledged outlives its
batches. What is here belongs to the spool without a name.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ACKNOWLEDGED = """
    INSERT INTO metric_spools (device_id, spool, acknowledged, updated_at)
    SELECT batch.device_id, '', CASE WHEN MIN(batch.sequence) = 1 THEN (
        SELECT MIN(last.sequence) FROM metric_batches AS last
        WHERE last.device_id = batch.device_id AND NOT EXISTS (
            SELECT 1 FROM metric_batches AS next
            WHERE next.device_id = last.device_id AND next.sequence = last.sequence + 1)
    ) ELSE 0 END, MAX(batch.received_at)
    FROM metric_batches AS batch GROUP BY batch.device_id
"""


def upgrade() -> None:
    op.create_table(
        "admins",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("public_key_sha256", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_admins")),
        sa.UniqueConstraint("public_key_sha256", name=op.f("uq_admins_public_key_sha256")),
    )
    op.create_table(
        "metric_spools",
        sa.Column("device_id", sa.String(length=32), nullable=False),
        sa.Column("spool", sa.String(length=64), nullable=False),
        sa.Column("acknowledged", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_metric_spools_device_id_devices")),
        sa.PrimaryKeyConstraint("device_id", "spool", name=op.f("pk_metric_spools")),
    )
    op.execute(_ACKNOWLEDGED)
    with op.batch_alter_table("metric_batches", schema=None) as batch_op:
        batch_op.add_column(sa.Column("spool", sa.String(length=64), nullable=False, server_default=""))
        batch_op.drop_constraint(op.f("pk_metric_batches"), type_="primary")
        batch_op.create_primary_key(op.f("pk_metric_batches"), ["device_id", "spool", "sequence"])
    with op.batch_alter_table("metric_batches", schema=None) as batch_op:
        batch_op.alter_column("spool", server_default=None)
