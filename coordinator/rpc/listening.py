"""Where servers listen, and why one cannot: gRPC says that it failed to bind, and not why."""

import socket

from shared.errors import LocalError


def joined(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def cannot_listen(address: str, flags: str) -> LocalError:
    """For whoever may not listen on HOST:PORT. `flags` of `coordinator serve` name another place."""
    return LocalError(f"cannot listen on {address}: {_reason(address)}; free it, or choose another with {flags}")


def _reason(address: str) -> str:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.socket(family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
            probe.bind((host, int(port)))
    except OSError as error:
        return error.strerror or str(error)
    return "it was taken for a moment"
