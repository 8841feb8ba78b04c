"""What differential privacy has cost this device's examples, in a file that is written before any noise is drawn.

A data epoch is one ingested file: its examples are the same for ever, under the digest of its bytes. A round spends on every file
that was there before or after its training, so each file's ledger holds all the rounds that could have seen it, replay included. A
new file begins with nothing spent; an old one that is used up keeps the device out of private jobs until it is removed
(`edge-agent data remove`), and ingested again it is still used up. A device that has no ingested file, since its app reads
elsewhere, has one epoch.

What this cannot know: the same examples in another file have another digest, and begin anew. Nor does it help to delete the file.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from shared.errors import Corrupt
from shared.files import write_atomic
from shared.privacy.accountant import Budget
from shared.privacy.ledger import Charge, Ledger, charged

_log = structlog.get_logger()
WHOLE_DEVICE = "device"  # the epoch of a device without ingested files
_USED_UP = (
    "`edge-agent data remove` takes a used-up file out of training (`edge-agent data list` has what each has spent), and new data "
    "brings new budget"
)
Epochs = frozenset[str]


class Ledgers(Protocol):
    """Of all data epochs of one device."""

    def epochs(self) -> Epochs:
        """Those that training would use now."""
        ...

    def check(self, charge: Charge, epochs: Iterable[str]) -> None:
        """Raises what `spend` would raise; records nothing."""
        ...

    def spend(self, charge: Charge, epochs: Iterable[str]) -> None:
        """Durable when it returns: noise may be drawn then, once.

        Raises `Conflict` if an epoch would be overspent or the round is recorded already, `Corrupt`, `StorageFull`.
        """
        ...


class FileLedgers:
    """A file of JSON lines, one epoch each. `own` is the device's budget for all jobs together; `epochs` says what data it has.

    Safe among processes of one device: the kernel lets go of the lock when a process ends, however it ends.
    """

    def __init__(self, path: Path, epochs: Callable[[], Epochs], own: Budget | None = None) -> None:
        self._path = path
        self._epochs = epochs
        self._own = own

    def epochs(self) -> Epochs:
        return self._epochs() or frozenset({WHOLE_DEVICE})

    def check(self, charge: Charge, epochs: Iterable[str]) -> None:
        charged(self.read(), epochs, charge, self._own, advice=_USED_UP)

    def spend(self, charge: Charge, epochs: Iterable[str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(self._path.parent):
            after = charged(self.read(), epochs, charge, self._own, advice=_USED_UP)
            lines = "".join(f"{ledger.to_json()}\n" for ledger in after.values())
            write_atomic(self._path, lines.encode(), mode=0o600)

    def read(self) -> Mapping[str, Ledger]:
        """By epoch. Raises `Corrupt`: then nothing more may be spent."""
        return read_ledgers(self._path)


class MemoryLedgers:
    """For simulations: what was spent is forgotten when the process ends, so nothing holds across two of them."""

    def __init__(self, own: Budget | None = None) -> None:
        self._own = own
        self._ledgers: Mapping[str, Ledger] = {}
        _log.warning("privacy is accounted for in memory: not for devices whose data is worth protecting")

    def epochs(self) -> Epochs:
        return frozenset({WHOLE_DEVICE})

    def check(self, charge: Charge, epochs: Iterable[str]) -> None:
        charged(self._ledgers, epochs, charge, self._own)

    def spend(self, charge: Charge, epochs: Iterable[str]) -> None:
        self._ledgers = charged(self._ledgers, epochs, charge, self._own)

    def read(self) -> Mapping[str, Ledger]:
        return self._ledgers


def read_ledgers(path: Path) -> Mapping[str, Ledger]:
    """By epoch. Raises `Corrupt`."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    ledgers = [Ledger.from_json(line) for line in lines]
    found = {ledger.epoch: ledger for ledger in ledgers}
    if len(found) != len(ledgers):
        raise Corrupt("the privacy ledger has an epoch twice, so nothing more may be spent: restore it")
    return found


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
