"""Who may call what: one table, RPC → roles. A test proves that every RPC of every service has a row.

`anyone` needs no certificate and exists on the enrolment port alone; `local` is the Unix socket, whose file mode guards it.
"""

from collections.abc import Mapping
from enum import StrEnum


class Caller(StrEnum):
    ANYONE = "anyone"
    DEVICE = "device"
    ADMIN = "admin"
    LOCAL = "local"


_ADMIN = frozenset({Caller.ADMIN, Caller.LOCAL})
_LOCAL = frozenset({Caller.LOCAL})
_DEVICE = frozenset({Caller.DEVICE})
_ANYONE = frozenset({Caller.ANYONE, Caller.DEVICE})

ALLOWED: Mapping[str, frozenset[Caller]] = {
    "/fleet.v1.Enrolment/GetAuthority": _ANYONE,
    "/fleet.v1.Enrolment/Enrol": _ANYONE,
    "/fleet.v1.Enrolment/Renew": _DEVICE,
    "/fleet.v1.Session/Attach": _DEVICE,
    "/fleet.v1.Blobs/Stat": _DEVICE,
    "/fleet.v1.Blobs/Fetch": _DEVICE,
    "/fleet.v1.Blobs/Put": _DEVICE,
    "/fleet.v1.Metrics/Report": _DEVICE,
    "/fleet.v1.Admin/CreateToken": _ADMIN,
    "/fleet.v1.Admin/ListTokens": _ADMIN,
    "/fleet.v1.Admin/RevokeToken": _ADMIN,
    "/fleet.v1.Admin/ListDevices": _ADMIN,
    "/fleet.v1.Admin/GetDevice": _ADMIN,
    "/fleet.v1.Admin/ApproveDevice": _ADMIN,
    "/fleet.v1.Admin/QuarantineDevice": _ADMIN,
    "/fleet.v1.Admin/ReleaseDevice": _ADMIN,
    "/fleet.v1.Admin/RevokeDevice": _ADMIN,
    "/fleet.v1.Admin/ListModels": _ADMIN,
    "/fleet.v1.Admin/GetModel": _ADMIN,
    "/fleet.v1.Admin/PublishModel": _LOCAL,  # reads a folder of the coordinator's machine
    "/fleet.v1.Admin/SubmitJob": _ADMIN,
    "/fleet.v1.Admin/ListJobs": _ADMIN,
    "/fleet.v1.Admin/GetJob": _ADMIN,
    "/fleet.v1.Admin/WatchJob": _ADMIN,
    "/fleet.v1.Admin/StopJob": _ADMIN,
    "/fleet.v1.Admin/ListRounds": _ADMIN,
    "/fleet.v1.Admin/GetRound": _ADMIN,
    "/fleet.v1.Admin/StartRollout": _ADMIN,
    "/fleet.v1.Admin/ListRollouts": _ADMIN,
    "/fleet.v1.Admin/GetRollout": _ADMIN,
    "/fleet.v1.Admin/WatchRollout": _ADMIN,
    "/fleet.v1.Admin/PauseRollout": _ADMIN,
    "/fleet.v1.Admin/ResumeRollout": _ADMIN,
    "/fleet.v1.Admin/UndoRollout": _ADMIN,
    "/fleet.v1.Admin/ListAudit": _ADMIN,
    "/fleet.v1.Admin/ListAdmins": _ADMIN,
    "/fleet.v1.Admin/IssueAdmin": _LOCAL,  # an admin from afar makes no other admins
    "/fleet.v1.Admin/RevokeAdmin": _LOCAL,
    "/fleet.v1.Admin/RotateKeys": _LOCAL,  # whoever may do this decides what devices believe
}
