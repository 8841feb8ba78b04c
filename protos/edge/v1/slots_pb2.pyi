from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BatchPolicy(_message.Message):
    __slots__ = ("target_ms", "min_batch", "max_batch", "max_delay_ms", "queue_limit")
    TARGET_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LIMIT_FIELD_NUMBER: _ClassVar[int]
    target_ms: float
    min_batch: int
    max_batch: int
    max_delay_ms: float
    queue_limit: int
    def __init__(self, target_ms: _Optional[float] = ..., min_batch: _Optional[int] = ..., max_batch: _Optional[int] = ..., max_delay_ms: _Optional[float] = ..., queue_limit: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("model", "version", "digest", "path", "runtime", "threads", "policy")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    digest: str
    path: str
    runtime: str
    threads: int
    policy: BatchPolicy
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., runtime: _Optional[str] = ..., threads: _Optional[int] = ..., policy: _Optional[_Union[BatchPolicy, _Mapping]] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("slot", "load_s", "warm_up_ms")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    WARM_UP_MS_FIELD_NUMBER: _ClassVar[int]
    slot: SlotStatus
    load_s: float
    warm_up_ms: float
    def __init__(self, slot: _Optional[_Union[SlotStatus, _Mapping]] = ..., load_s: _Optional[float] = ..., warm_up_ms: _Optional[float] = ...) -> None: ...

class SwapRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RevertRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class RemoveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ShadowRequest(_message.Message):
    __slots__ = ("model", "version", "requests", "timeout_s")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    requests: int
    timeout_s: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., requests: _Optional[int] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ShadowResponse(_message.Message):
    __slots__ = ("requests", "rows", "agreement", "max_abs_diff", "live_p50_ms", "candidate_p50_ms", "errors", "live_version")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MAX_ABS_DIFF_FIELD_NUMBER: _ClassVar[int]
    LIVE_P50_MS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_P50_MS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    LIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    requests: int
    rows: int
    agreement: float
    max_abs_diff: float
    live_p50_ms: float
    candidate_p50_ms: float
    errors: int
    live_version: int
    def __init__(self, requests: _Optional[int] = ..., rows: _Optional[int] = ..., agreement: _Optional[float] = ..., max_abs_diff: _Optional[float] = ..., live_p50_ms: _Optional[float] = ..., candidate_p50_ms: _Optional[float] = ..., errors: _Optional[int] = ..., live_version: _Optional[int] = ...) -> None: ...

class SlotStatus(_message.Message):
    __slots__ = ("version", "digest", "runtime", "state", "since", "requests", "errors", "reason")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    version: int
    digest: str
    runtime: str
    state: str
    since: float
    requests: int
    errors: int
    reason: str
    def __init__(self, version: _Optional[int] = ..., digest: _Optional[str] = ..., runtime: _Optional[str] = ..., state: _Optional[str] = ..., since: _Optional[float] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("bounds", "counts", "sum")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("model", "live_version", "slots", "requests", "errors", "rejected", "expired", "queued", "batch_limit", "latency_ms", "batch_rows", "since")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    BATCH_LIMIT_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    model: str
    live_version: int
    slots: _containers.RepeatedCompositeFieldContainer[SlotStatus]
    requests: int
    errors: int
    rejected: int
    expired: int
    queued: int
    batch_limit: int
    latency_ms: Histogram
    batch_rows: Histogram
    since: float
    def __init__(self, model: _Optional[str] = ..., live_version: _Optional[int] = ..., slots: _Optional[_Iterable[_Union[SlotStatus, _Mapping]]] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., rejected: _Optional[int] = ..., expired: _Optional[int] = ..., queued: _Optional[int] = ..., batch_limit: _Optional[int] = ..., latency_ms: _Optional[_Union[Histogram, _Mapping]] = ..., batch_rows: _Optional[_Union[Histogram, _Mapping]] = ..., since: _Optional[float] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("models", "pid", "started")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    pid: int
    started: float
    def __init__(self, models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., pid: _Optional[int] = ..., started: _Optional[float] = ...) -> None: ...

class ShutdownRequest(_message.Message):
    __slots__ = ("timeout_s",)
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    timeout_s: float
    def __init__(self, timeout_s: _Optional[float] = ...) -> None: ...

class ShutdownResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
