"""The coordinator's tables, as SQLAlchemy Core. Times are seconds since the epoch, UTC; `JSON` columns hold validated values only.

The same definitions serve SQLite (the default) and PostgreSQL; `store/migrations` brings an older database up to them.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite increments only INTEGER primary keys by itself.
_Serial = BigInteger().with_variant(Integer, "sqlite")

# ---- fleet

devices = Table(
    "devices",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("node_id", BigInteger, nullable=False, unique=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("profile_json", Text, nullable=False),
    Column("public_key_sha256", String(64), nullable=False, unique=True),
    Column("certificate_der", LargeBinary, nullable=False),  # empty while approval is pending
    Column("certificate_expires_at", Float, nullable=False),
    Column("csr_der", LargeBinary, nullable=False),
    Column("enrolled_at", Float, nullable=False),
    Column("last_seen_at", Float, nullable=False),
    Column("agent_version", String(32), nullable=False),
    Column("reason", Text, nullable=False),
)

device_models = Table(
    "device_models",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("release", Integer, nullable=False),
    Column("bundle_digest", String(64), nullable=False),
    Column("proven", Boolean, nullable=False),
    Column("updated_at", Float, nullable=False),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("secret_sha256", String(64), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("require_approval", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("created_by", String(128), nullable=False),  # empty: an older version did not note it
    Column("spent_by_key_sha256", String(64), nullable=True),
    Column("spent_at", Float, nullable=True),
    Column("device_id", String(32), nullable=True),  # who joined with it
    Column("revoked_at", Float, nullable=True),
)

admins = Table(
    "admins",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("public_key_sha256", String(64), nullable=False, unique=True),
    Column("issued_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float, nullable=True),
)

metric_spools = Table(  # how far each is acknowledged: known still when the batches themselves are too old to keep
    "metric_spools",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("spool", String(64), primary_key=True),
    Column("acknowledged", BigInteger, nullable=False),
    Column("updated_at", Float, nullable=False),
)

metric_batches = Table(
    "metric_batches",
    metadata,
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("spool", String(64), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("samples", JSON, nullable=False),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("detail", JSON, nullable=False),
)

# ---- rounds

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("toml", Text, nullable=False),
    Column("idempotency_key", String(64), nullable=True, unique=True),
    Column("run_id", BigInteger, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("reason", Text, nullable=False),
    Column("round", Integer, nullable=False),  # the last committed one
    Column("arrays_digest", String(64), nullable=True),  # global model after that round
    Column("model_json", Text, nullable=True),  # its ModelSpec
    Column("strategy_digest", String(64), nullable=True),  # the strategy's own state (momenta) after that round
    Column("release", Integer, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("total_weight", BigInteger, nullable=False),
    Column("arrays_digest", String(64), nullable=True),
    Column("metrics", JSON, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

round_events = Table(
    "round_events",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("round", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("detail", JSON, nullable=False),
    Index("ix_round_events_job", "job_id", "id"),
)

round_devices = Table(
    "round_devices",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("outcome", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("weight", BigInteger, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("group_number", Integer, nullable=False),  # 0: one sum for all
)

# ---- releases

releases = Table(
    "releases",
    metadata,
    Column("model", String(64), primary_key=True),
    Column("release", Integer, primary_key=True),
    Column("manifest_digest", String(64), nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("lineage", JSON, nullable=False),
    Column("report", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("withdrawn", Boolean, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("model", String(64), nullable=False),
    Column("release", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("stage_started_at", Float, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("cohort", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float, nullable=True),
    Column("reason", Text, nullable=False),
)

rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("rollout_id", ForeignKey("rollouts.id"), primary_key=True),
    Column("device_id", ForeignKey("devices.id"), primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("receipt", JSON, nullable=True),
    Column("signature", LargeBinary, nullable=True),
    Column("updated_at", Float, nullable=False),
)

rollout_events = Table(
    "rollout_events",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("rollout_id", ForeignKey("rollouts.id"), nullable=False),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("detail", JSON, nullable=False),
    Index("ix_rollout_events_rollout", "rollout_id", "id"),
)
