from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Part(_message.Message):
    __slots__ = ("inline", "digest")
    INLINE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    inline: bytes
    digest: str
    def __init__(self, inline: _Optional[bytes] = ..., digest: _Optional[str] = ...) -> None: ...

class AgentEvent(_message.Message):
    __slots__ = ("event_id", "hello", "heartbeat", "task_result", "install_report")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    TASK_RESULT_FIELD_NUMBER: _ClassVar[int]
    INSTALL_REPORT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    hello: Hello
    heartbeat: Heartbeat
    task_result: TaskResult
    install_report: InstallReport
    def __init__(self, event_id: _Optional[str] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., task_result: _Optional[_Union[TaskResult, _Mapping]] = ..., install_report: _Optional[_Union[InstallReport, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("agent_version", "profile_json", "labels", "serving", "running_tasks")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_TASKS_FIELD_NUMBER: _ClassVar[int]
    agent_version: str
    profile_json: str
    labels: _containers.ScalarMap[str, str]
    serving: _containers.RepeatedCompositeFieldContainer[Serving]
    running_tasks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, agent_version: _Optional[str] = ..., profile_json: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., serving: _Optional[_Iterable[_Union[Serving, _Mapping]]] = ..., running_tasks: _Optional[_Iterable[str]] = ...) -> None: ...

class Serving(_message.Message):
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

class Heartbeat(_message.Message):
    __slots__ = ("serving",)
    SERVING_FIELD_NUMBER: _ClassVar[int]
    serving: _containers.RepeatedCompositeFieldContainer[Serving]
    def __init__(self, serving: _Optional[_Iterable[_Union[Serving, _Mapping]]] = ...) -> None: ...

class TaskResult(_message.Message):
    __slots__ = ("task_id", "parts", "error_code", "error_reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    error_code: int
    error_reason: str
    def __init__(self, task_id: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., error_code: _Optional[int] = ..., error_reason: _Optional[str] = ...) -> None: ...

class InstallReport(_message.Message):
    __slots__ = ("command_id", "rollout_id", "receipt_json", "signature", "certificate_der")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_JSON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    rollout_id: str
    receipt_json: bytes
    signature: bytes
    certificate_der: bytes
    def __init__(self, command_id: _Optional[str] = ..., rollout_id: _Optional[str] = ..., receipt_json: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate_der: _Optional[bytes] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("command_id", "welcome", "run_task", "cancel_task", "install", "withdraw", "acknowledged", "renew")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RUN_TASK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_TASK_FIELD_NUMBER: _ClassVar[int]
    INSTALL_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    welcome: Welcome
    run_task: RunTask
    cancel_task: CancelTask
    install: Install
    withdraw: Withdraw
    acknowledged: str
    renew: Renew
    def __init__(self, command_id: _Optional[str] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., run_task: _Optional[_Union[RunTask, _Mapping]] = ..., cancel_task: _Optional[_Union[CancelTask, _Mapping]] = ..., install: _Optional[_Union[Install, _Mapping]] = ..., withdraw: _Optional[_Union[Withdraw, _Mapping]] = ..., acknowledged: _Optional[str] = ..., renew: _Optional[_Union[Renew, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("heartbeat_s",)
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    heartbeat_s: float
    def __init__(self, heartbeat_s: _Optional[float] = ...) -> None: ...

class RunTask(_message.Message):
    __slots__ = ("task_id", "job_id", "run_id", "node_id", "round", "message_id", "message_type", "client_app", "timeout_s", "secure", "parts")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_APP_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    job_id: str
    run_id: int
    node_id: int
    round: int
    message_id: str
    message_type: str
    client_app: str
    timeout_s: float
    secure: bool
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, task_id: _Optional[str] = ..., job_id: _Optional[str] = ..., run_id: _Optional[int] = ..., node_id: _Optional[int] = ..., round: _Optional[int] = ..., message_id: _Optional[str] = ..., message_type: _Optional[str] = ..., client_app: _Optional[str] = ..., timeout_s: _Optional[float] = ..., secure: _Optional[bool] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class CancelTask(_message.Message):
    __slots__ = ("task_id",)
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    def __init__(self, task_id: _Optional[str] = ...) -> None: ...

class Install(_message.Message):
    __slots__ = ("rollout_id", "model", "release", "metadata", "gate")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    model: str
    release: int
    metadata: _containers.ScalarMap[str, bytes]
    gate: Gate
    def __init__(self, rollout_id: _Optional[str] = ..., model: _Optional[str] = ..., release: _Optional[int] = ..., metadata: _Optional[_Mapping[str, bytes]] = ..., gate: _Optional[_Union[Gate, _Mapping]] = ...) -> None: ...

class Gate(_message.Message):
    __slots__ = ("accuracy_budget", "max_logit_difference", "min_top1_agreement", "min_answers", "requantize")
    ACCURACY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    MIN_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    REQUANTIZE_FIELD_NUMBER: _ClassVar[int]
    accuracy_budget: float
    max_logit_difference: float
    min_top1_agreement: float
    min_answers: int
    requantize: bool
    def __init__(self, accuracy_budget: _Optional[float] = ..., max_logit_difference: _Optional[float] = ..., min_top1_agreement: _Optional[float] = ..., min_answers: _Optional[int] = ..., requantize: _Optional[bool] = ...) -> None: ...

class Withdraw(_message.Message):
    __slots__ = ("rollout_id", "model", "release", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    model: str
    release: int
    metadata: _containers.ScalarMap[str, bytes]
    def __init__(self, rollout_id: _Optional[str] = ..., model: _Optional[str] = ..., release: _Optional[int] = ..., metadata: _Optional[_Mapping[str, bytes]] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
