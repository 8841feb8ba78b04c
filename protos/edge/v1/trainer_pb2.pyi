from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Piece(_message.Message):
    __slots__ = ("inline", "path", "digest")
    INLINE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    inline: bytes
    path: str
    digest: str
    def __init__(self, inline: _Optional[bytes] = ..., path: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("task_id", "run_id", "node_id", "message_id", "message_type", "client_app", "secure", "pieces")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_APP_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    PIECES_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    run_id: int
    node_id: int
    message_id: str
    message_type: str
    client_app: str
    secure: bool
    pieces: _containers.RepeatedCompositeFieldContainer[Piece]
    def __init__(self, task_id: _Optional[str] = ..., run_id: _Optional[int] = ..., node_id: _Optional[int] = ..., message_id: _Optional[str] = ..., message_type: _Optional[str] = ..., client_app: _Optional[str] = ..., secure: _Optional[bool] = ..., pieces: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ...) -> None: ...

class RunResponse(_message.Message):
    __slots__ = ("pieces", "error_code", "error_reason", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    PIECES_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    pieces: _containers.RepeatedCompositeFieldContainer[Piece]
    error_code: int
    error_reason: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, pieces: _Optional[_Iterable[_Union[Piece, _Mapping]]] = ..., error_code: _Optional[int] = ..., error_reason: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SpecialiseRequest(_message.Message):
    __slots__ = ("bundle_dir", "out_dir", "requantize", "recovery_batches", "seed", "max_logit_difference", "min_top1_agreement", "accuracy_budget", "files")
    class FilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SignedFile
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SignedFile, _Mapping]] = ...) -> None: ...
    BUNDLE_DIR_FIELD_NUMBER: _ClassVar[int]
    OUT_DIR_FIELD_NUMBER: _ClassVar[int]
    REQUANTIZE_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_BATCHES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGIT_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_BUDGET_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    bundle_dir: str
    out_dir: str
    requantize: bool
    recovery_batches: int
    seed: int
    max_logit_difference: float
    min_top1_agreement: float
    accuracy_budget: float
    files: _containers.MessageMap[str, SignedFile]
    def __init__(self, bundle_dir: _Optional[str] = ..., out_dir: _Optional[str] = ..., requantize: _Optional[bool] = ..., recovery_batches: _Optional[int] = ..., seed: _Optional[int] = ..., max_logit_difference: _Optional[float] = ..., min_top1_agreement: _Optional[float] = ..., accuracy_budget: _Optional[float] = ..., files: _Optional[_Mapping[str, SignedFile]] = ...) -> None: ...

class SignedFile(_message.Message):
    __slots__ = ("digest", "size")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size: int
    def __init__(self, digest: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class SpecialiseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
