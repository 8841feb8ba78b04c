"""What several parts of Shoal need. Importing any of it first says what libraries would otherwise decide for themselves.

- Flower and Ray report usage to their makers, and Flower looks for updates. Users deserve silence.
- gRPC hooks into `fork`, for children that go on as copies of their parent. Ours run another program instead, and uvloop forks to
  start one: the hooks then run amid other threads' calls, and once in some hundred starts the child dies of them
  (`Check failed: next_worker->state == KICKED`).
- gRPC writes lines of its own to standard error: for each port that is taken, and each caller whose certificate does not do. What
  concerns anybody reaches us as an exception, and people then get a line of ours.

An environment that says otherwise is heeded.
"""

import os

_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    "GRPC_VERBOSITY": "NONE",
}

for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
