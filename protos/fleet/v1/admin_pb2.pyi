from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateTokenRequest(_message.Message):
    __slots__ = ("valid_for_s", "labels", "require_approval", "count")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VALID_FOR_S_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_APPROVAL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    valid_for_s: float
    labels: _containers.ScalarMap[str, str]
    require_approval: bool
    count: int
    def __init__(self, valid_for_s: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ..., require_approval: _Optional[bool] = ..., count: _Optional[int] = ...) -> None: ...

class CreateTokenResponse(_message.Message):
    __slots__ = ("tokens", "expires_at")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[str]
    expires_at: float
    def __init__(self, tokens: _Optional[_Iterable[str]] = ..., expires_at: _Optional[float] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListTokensResponse(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[JoinToken]
    def __init__(self, tokens: _Optional[_Iterable[_Union[JoinToken, _Mapping]]] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class JoinToken(_message.Message):
    __slots__ = ("id", "state", "labels", "require_approval", "created_at", "created_by", "expires_at", "used_at", "device", "device_name", "revoked_at")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_APPROVAL_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    USED_AT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    labels: _containers.ScalarMap[str, str]
    require_approval: bool
    created_at: float
    created_by: str
    expires_at: float
    used_at: float
    device: str
    device_name: str
    revoked_at: float
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., require_approval: _Optional[bool] = ..., created_at: _Optional[float] = ..., created_by: _Optional[str] = ..., expires_at: _Optional[float] = ..., used_at: _Optional[float] = ..., device: _Optional[str] = ..., device_name: _Optional[str] = ..., revoked_at: _Optional[float] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("cohort",)
    COHORT_FIELD_NUMBER: _ClassVar[int]
    cohort: str
    def __init__(self, cohort: _Optional[str] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class DeviceRequest(_message.Message):
    __slots__ = ("device", "reason")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    device: str
    reason: str
    def __init__(self, device: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("id", "name", "state", "labels", "profile", "connected", "enrolled_at", "last_seen_at", "certificate_expires_at", "agent_version", "models", "node_id", "reason", "client_apps")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLIENT_APPS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    state: str
    labels: _containers.ScalarMap[str, str]
    profile: str
    connected: bool
    enrolled_at: float
    last_seen_at: float
    certificate_expires_at: float
    agent_version: str
    models: _containers.RepeatedCompositeFieldContainer[DeviceModel]
    node_id: int
    reason: str
    client_apps: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., profile: _Optional[str] = ..., connected: _Optional[bool] = ..., enrolled_at: _Optional[float] = ..., last_seen_at: _Optional[float] = ..., certificate_expires_at: _Optional[float] = ..., agent_version: _Optional[str] = ..., models: _Optional[_Iterable[_Union[DeviceModel, _Mapping]]] = ..., node_id: _Optional[int] = ..., reason: _Optional[str] = ..., client_apps: _Optional[_Iterable[str]] = ...) -> None: ...

class DeviceModel(_message.Message):
    __slots__ = ("model", "release", "bundle_digest", "proven")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    release: int
    bundle_digest: str
    proven: bool
    def __init__(self, model: _Optional[str] = ..., release: _Optional[int] = ..., bundle_digest: _Optional[str] = ..., proven: _Optional[bool] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class ModelRequest(_message.Message):
    __slots__ = ("model", "release")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    model: str
    release: int
    def __init__(self, model: _Optional[str] = ..., release: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "release", "bundle_digest", "created_at", "lineage_json", "report_json", "files", "withdrawn")
    class FilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_JSON_FIELD_NUMBER: _ClassVar[int]
    REPORT_JSON_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    name: str
    release: int
    bundle_digest: str
    created_at: float
    lineage_json: str
    report_json: str
    files: _containers.ScalarMap[str, int]
    withdrawn: bool
    def __init__(self, name: _Optional[str] = ..., release: _Optional[int] = ..., bundle_digest: _Optional[str] = ..., created_at: _Optional[float] = ..., lineage_json: _Optional[str] = ..., report_json: _Optional[str] = ..., files: _Optional[_Mapping[str, int]] = ..., withdrawn: _Optional[bool] = ...) -> None: ...

class PublishModelRequest(_message.Message):
    __slots__ = ("name", "bundle_path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    bundle_path: str
    def __init__(self, name: _Optional[str] = ..., bundle_path: _Optional[str] = ...) -> None: ...

class SubmitJobRequest(_message.Message):
    __slots__ = ("toml", "idempotency_key")
    TOML_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    toml: str
    idempotency_key: str
    def __init__(self, toml: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs",)
    JOBS_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ...) -> None: ...

class JobRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: str
    def __init__(self, job: _Optional[str] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("id", "name", "state", "rounds_committed", "rounds_total", "strategy", "secure", "created_at", "ended_at", "reason", "toml", "model", "release", "privacy", "epsilon", "delta", "epsilon_spent")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_COMMITTED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TOML_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    EPSILON_SPENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    state: str
    rounds_committed: int
    rounds_total: int
    strategy: str
    secure: bool
    created_at: float
    ended_at: float
    reason: str
    toml: str
    model: str
    release: int
    privacy: str
    epsilon: float
    delta: float
    epsilon_spent: float
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., rounds_committed: _Optional[int] = ..., rounds_total: _Optional[int] = ..., strategy: _Optional[str] = ..., secure: _Optional[bool] = ..., created_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., reason: _Optional[str] = ..., toml: _Optional[str] = ..., model: _Optional[str] = ..., release: _Optional[int] = ..., privacy: _Optional[str] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., epsilon_spent: _Optional[float] = ...) -> None: ...

class JobEvent(_message.Message):
    __slots__ = ("at", "job", "round", "kind", "detail_json")
    AT_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DETAIL_JSON_FIELD_NUMBER: _ClassVar[int]
    at: float
    job: str
    round: int
    kind: str
    detail_json: str
    def __init__(self, at: _Optional[float] = ..., job: _Optional[str] = ..., round: _Optional[int] = ..., kind: _Optional[str] = ..., detail_json: _Optional[str] = ...) -> None: ...

class RoundRequest(_message.Message):
    __slots__ = ("job", "round", "attempt")
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job: str
    round: int
    attempt: int
    def __init__(self, job: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class ListRoundsResponse(_message.Message):
    __slots__ = ("rounds",)
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    def __init__(self, rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("job", "round", "attempt", "state", "started_at", "ended_at", "total_weight", "model_digest", "metrics", "devices", "events", "reason", "bytes_down", "bytes_up")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    JOB_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    job: str
    round: int
    attempt: int
    state: str
    started_at: float
    ended_at: float
    total_weight: int
    model_digest: str
    metrics: _containers.ScalarMap[str, float]
    devices: _containers.RepeatedCompositeFieldContainer[RoundDevice]
    events: _containers.RepeatedCompositeFieldContainer[JobEvent]
    reason: str
    bytes_down: int
    bytes_up: int
    def __init__(self, job: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., state: _Optional[str] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., total_weight: _Optional[int] = ..., model_digest: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., devices: _Optional[_Iterable[_Union[RoundDevice, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[JobEvent, _Mapping]]] = ..., reason: _Optional[str] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ...) -> None: ...

class RoundDevice(_message.Message):
    __slots__ = ("device", "name", "outcome", "reason", "weight", "bytes_down", "bytes_up", "seconds", "group")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    device: str
    name: str
    outcome: str
    reason: str
    weight: int
    bytes_down: int
    bytes_up: int
    seconds: float
    group: int
    def __init__(self, device: _Optional[str] = ..., name: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., weight: _Optional[int] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., seconds: _Optional[float] = ..., group: _Optional[int] = ...) -> None: ...

class StartRolloutRequest(_message.Message):
    __slots__ = ("model", "release", "plan_toml", "cohort")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    PLAN_TOML_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    model: str
    release: int
    plan_toml: str
    cohort: str
    def __init__(self, model: _Optional[str] = ..., release: _Optional[int] = ..., plan_toml: _Optional[str] = ..., cohort: _Optional[str] = ...) -> None: ...

class ListRolloutsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRolloutsResponse(_message.Message):
    __slots__ = ("rollouts",)
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[Rollout]
    def __init__(self, rollouts: _Optional[_Iterable[_Union[Rollout, _Mapping]]] = ...) -> None: ...

class RolloutRequest(_message.Message):
    __slots__ = ("rollout", "reason")
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout: str
    reason: str
    def __init__(self, rollout: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("id", "model", "release", "state", "stage", "stages", "reason", "started_at", "ended_at", "devices", "events")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    release: int
    state: str
    stage: int
    stages: int
    reason: str
    started_at: float
    ended_at: float
    devices: _containers.RepeatedCompositeFieldContainer[RolloutDevice]
    events: _containers.RepeatedCompositeFieldContainer[JobEvent]
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., release: _Optional[int] = ..., state: _Optional[str] = ..., stage: _Optional[int] = ..., stages: _Optional[int] = ..., reason: _Optional[str] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., devices: _Optional[_Iterable[_Union[RolloutDevice, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[JobEvent, _Mapping]]] = ...) -> None: ...

class RolloutDevice(_message.Message):
    __slots__ = ("device", "name", "stage", "state", "reason", "receipt_json")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_JSON_FIELD_NUMBER: _ClassVar[int]
    device: str
    name: str
    stage: int
    state: str
    reason: str
    receipt_json: str
    def __init__(self, device: _Optional[str] = ..., name: _Optional[str] = ..., stage: _Optional[int] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., receipt_json: _Optional[str] = ...) -> None: ...

class ListAuditRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListAuditResponse(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("id", "at", "actor", "action", "subject", "detail_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_JSON_FIELD_NUMBER: _ClassVar[int]
    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail_json: str
    def __init__(self, id: _Optional[int] = ..., at: _Optional[float] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., subject: _Optional[str] = ..., detail_json: _Optional[str] = ...) -> None: ...

class IssueAdminRequest(_message.Message):
    __slots__ = ("name", "csr_der", "valid_for_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CSR_DER_FIELD_NUMBER: _ClassVar[int]
    VALID_FOR_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    csr_der: bytes
    valid_for_s: float
    def __init__(self, name: _Optional[str] = ..., csr_der: _Optional[bytes] = ..., valid_for_s: _Optional[float] = ...) -> None: ...

class IssueAdminResponse(_message.Message):
    __slots__ = ("certificate_der", "ca_certificate_der", "expires_at", "fleet_address")
    CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    CA_CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    FLEET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    certificate_der: bytes
    ca_certificate_der: bytes
    expires_at: float
    fleet_address: str
    def __init__(self, certificate_der: _Optional[bytes] = ..., ca_certificate_der: _Optional[bytes] = ..., expires_at: _Optional[float] = ..., fleet_address: _Optional[str] = ...) -> None: ...

class ListAdminsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdminsResponse(_message.Message):
    __slots__ = ("admins",)
    ADMINS_FIELD_NUMBER: _ClassVar[int]
    admins: _containers.RepeatedCompositeFieldContainer[AdminIdentity]
    def __init__(self, admins: _Optional[_Iterable[_Union[AdminIdentity, _Mapping]]] = ...) -> None: ...

class RevokeAdminRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class AdminIdentity(_message.Message):
    __slots__ = ("name", "issued_at", "expires_at", "revoked_at")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    name: str
    issued_at: float
    expires_at: float
    revoked_at: float
    def __init__(self, name: _Optional[str] = ..., issued_at: _Optional[float] = ..., expires_at: _Optional[float] = ..., revoked_at: _Optional[float] = ...) -> None: ...

class RotateKeysRequest(_message.Message):
    __slots__ = ("role",)
    ROLE_FIELD_NUMBER: _ClassVar[int]
    role: str
    def __init__(self, role: _Optional[str] = ...) -> None: ...

class RotateKeysResponse(_message.Message):
    __slots__ = ("root_version",)
    ROOT_VERSION_FIELD_NUMBER: _ClassVar[int]
    root_version: int
    def __init__(self, root_version: _Optional[int] = ...) -> None: ...
