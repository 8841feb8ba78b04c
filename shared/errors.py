"""Every error that Shoal raises on purpose, in one tree. One class per decision that a caller can make.

    ShoalError
    ├── InputError            what a person gave us is wrong: fix it and try again            exit 2
    │   ├── ConfigError           a settings, job, recipe or scenario file
    │   ├── NotFound              no such device, job, round, release …
    │   ├── Conflict              valid, but not in the present state
    │   └── Unsupported           valid, but this combination is refused (the message names alternatives)
    ├── PeerError             what another process sent is wrong: drop it, name the peer
    │   ├── Malformed             cannot be parsed, or is outside its schema
    │   ├── ProtocolError         well formed, but not now (a state machine refuses it)
    │   │   ├── NoKeys                this device has no keys for a secure round, or no longer: make others
    │   │   └── FalseShares           what other members of a round dealt is unusable: complain, naming them
    │   ├── DigestMismatch        bytes are not what their digest says
    │   ├── UpdateRejected        a device's update is unusable (NaN, shape, range, weight)
    │   ├── Unauthenticated       no identity, or one that does not verify
    │   │   └── SignatureInvalid      a signature or certificate chain does not verify
    │   ├── Forbidden             known, but not allowed (role, quarantine, revoked)
    │   └── Untrusted             release metadata refused: rollback, freeze, mix-and-match, arbitrary install
    ├── LocalError            our own side cannot go on
    │   ├── StorageFull           no space left; nothing was changed
    │   ├── Corrupt               a file or row of ours fails its check
    │   ├── Unavailable           a needed service or peer is not reachable now: retry later
    │   │   ├── DeadlineExceeded      it did not answer in time
    │   │   └── Overloaded            its queue is full: nothing was done, slow down and retry
    │   └── ChildFailed           a worker, trainer or inference process died or reported failure
    └── RoundAborted          a round cannot finish (below threshold or quorum): run it again with fresh keys

`status` is the gRPC status name an RPC answers with, `exit_code` what a command exits with. The classes carry no
grpc import so that the cores may raise them; `tests/unit/test_errors.py` proves both maps complete.
"""

from typing import ClassVar


class ShoalError(Exception):
    """Root of the tree. `message` is one clear line that says what to do next; `detail` is optional context."""

    status: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.message} ({self.detail})" if self.detail else self.message


class InputError(ShoalError):
    status = "INVALID_ARGUMENT"
    exit_code = 2


class ConfigError(InputError):
    """A file that a person wrote does not describe something we can run. `path` names the key at fault."""

    def __init__(self, message: str, *, path: str = "", detail: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message, detail=detail)
        self.path = path


class NotFound(InputError):
    status = "NOT_FOUND"
    exit_code = 3


class Conflict(InputError):
    status = "FAILED_PRECONDITION"
    exit_code = 4


class Unsupported(InputError):
    status = "UNIMPLEMENTED"
    exit_code = 5


class PeerError(ShoalError):
    status = "INVALID_ARGUMENT"
    exit_code = 10


class Malformed(PeerError):
    pass


class ProtocolError(PeerError):
    status = "FAILED_PRECONDITION"
    exit_code = 11


class NoKeys(ProtocolError):
    pass


class FalseShares(ProtocolError):
    """`dealers` are the seats of those who dealt them."""

    exit_code = 18

    def __init__(self, message: str, *, dealers: tuple[int, ...] = (), detail: str = "") -> None:
        super().__init__(message, detail=detail)
        self.dealers = dealers


class DigestMismatch(PeerError):
    status = "DATA_LOSS"
    exit_code = 12


class UpdateRejected(PeerError):
    exit_code = 13


class Unauthenticated(PeerError):
    status = "UNAUTHENTICATED"
    exit_code = 14


class SignatureInvalid(Unauthenticated):
    exit_code = 15


class Forbidden(PeerError):
    status = "PERMISSION_DENIED"
    exit_code = 16


class Untrusted(PeerError):
    status = "PERMISSION_DENIED"
    exit_code = 17


class LocalError(ShoalError):
    status = "INTERNAL"
    exit_code = 20


class StorageFull(LocalError):
    status = "RESOURCE_EXHAUSTED"
    exit_code = 21


class Corrupt(LocalError):
    status = "DATA_LOSS"
    exit_code = 22


class Unavailable(LocalError):
    status = "UNAVAILABLE"
    exit_code = 23


class DeadlineExceeded(Unavailable):
    status = "DEADLINE_EXCEEDED"
    exit_code = 24


class Overloaded(Unavailable):
    status = "RESOURCE_EXHAUSTED"
    exit_code = 26


class ChildFailed(LocalError):
    exit_code = 25


class RoundAborted(ShoalError):
    status = "ABORTED"
    exit_code = 30
