from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetAuthorityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetAuthorityResponse(_message.Message):
    __slots__ = ("ca_certificate_der",)
    CA_CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    ca_certificate_der: bytes
    def __init__(self, ca_certificate_der: _Optional[bytes] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("token", "csr_der", "name", "labels", "profile_json")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CSR_DER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    token: str
    csr_der: bytes
    name: str
    labels: _containers.ScalarMap[str, str]
    profile_json: str
    def __init__(self, token: _Optional[str] = ..., csr_der: _Optional[bytes] = ..., name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., profile_json: _Optional[str] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("state", "device_id", "certificate_der", "fleet_address", "tuf_root_json")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[EnrolResponse.State]
        ISSUED: _ClassVar[EnrolResponse.State]
        PENDING_APPROVAL: _ClassVar[EnrolResponse.State]
    STATE_UNSPECIFIED: EnrolResponse.State
    ISSUED: EnrolResponse.State
    PENDING_APPROVAL: EnrolResponse.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    FLEET_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TUF_ROOT_JSON_FIELD_NUMBER: _ClassVar[int]
    state: EnrolResponse.State
    device_id: str
    certificate_der: bytes
    fleet_address: str
    tuf_root_json: bytes
    def __init__(self, state: _Optional[_Union[EnrolResponse.State, str]] = ..., device_id: _Optional[str] = ..., certificate_der: _Optional[bytes] = ..., fleet_address: _Optional[str] = ..., tuf_root_json: _Optional[bytes] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("csr_der",)
    CSR_DER_FIELD_NUMBER: _ClassVar[int]
    csr_der: bytes
    def __init__(self, csr_der: _Optional[bytes] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ("certificate_der",)
    CERTIFICATE_DER_FIELD_NUMBER: _ClassVar[int]
    certificate_der: bytes
    def __init__(self, certificate_der: _Optional[bytes] = ...) -> None: ...
