"""A round of ours as it runs in a fleet: `SecureGrid` in this process, `SecureMod` on every client in another.

Devices sign with certificates of a fleet's authority, unless asked not to; updates carry over what rounding took; everything else
is a job's default. How large changes are is known, as it is after a job's first round, and so are certificates, unless devices are
strangers: one check of each then stands for all that devices made in earlier groups.
"""

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from coordinator.rounds.exchange import SecureConfig
from coordinator.rounds.secure_grid import Carried, SecureGrid
from edge_agent.secure_mod import SecureMod, make_secure_mod
from shared.clock import SystemClock
from shared.flower import record_to_numpy, reply_with
from shared.secagg.graph import Rates
from shared.secagg.keys import InsecureWarning, Secret, UnsignedIdentity, UnsignedVerifier, Verifier
from shared.secagg.masks import Mask, apply_masks
from shared.secagg.messages import RECORD, Phase
from shared.secagg.packing import Layout, Words
from shared.secagg.server import Apply
from shared.signing.certificates import Authority
from shared.signing.identity import DeviceIdentity, FleetVerifier
from simulations.benchmarks.two_processes import Handle, Idle, PipeGrid

DAY_S = 86_400.0
Vector = NDArray[np.float32]


def vector_of(client: int, elements: int) -> Vector:
    """A client's update: the same in every run, and for both sides."""
    return np.random.default_rng(client).standard_normal(elements, dtype=np.float32)


def clients(idle: Idle, count: int, signed: bool, strangers: bool) -> tuple[Handle, bytes]:
    """In the child: `count` devices from 1 on. The greeting is the authority's certificate, or nothing."""
    warnings.simplefilter("ignore", InsecureWarning)
    now = SystemClock().now()
    authority = Authority.create("benchmark", now)
    known = FleetVerifier(authority.certificate_der, SystemClock().now)

    def mod(node: int) -> SecureMod:
        if not signed:
            return make_secure_mod(UnsignedIdentity(f"device-{node}"), UnsignedVerifier())
        identity = DeviceIdentity.create(authority, f"device-{node}", now=now, valid_for_s=DAY_S)
        verifier = FleetVerifier(authority.certificate_der, SystemClock().now) if strangers else known
        return make_secure_mod(identity, verifier)

    def train(message: Message, context: Context) -> Message:
        with idle():
            (elements,) = message.content.array_records["arrays"]["w"].shape
            arrays = ArrayRecord({"w": Array(vector_of(context.node_id, elements))})
        return reply_with(message, RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}))

    mods = {node: mod(node) for node in range(1, count + 1)}
    return lambda message, context: mods[context.node_id](message, context, train), authority.certificate_der


def stage_of(message: Message) -> str:
    return str(message.content.config_records[RECORD]["phase"])


class TimedGrid(SecureGrid):
    """Knows how many masks the last sum was freed of, and on one core."""

    masks = 0

    def apply(self, words: Words, masks: list[Mask]) -> None:
        self.masks = len(masks)
        apply_masks(words, masks)


@dataclass(frozen=True)
class Round:
    """What one cost: CPU seconds, and bytes, of a client that takes part to the end; and how many masks the server expanded."""

    client_s: float
    server_s: float
    bytes_up: float
    masks: int
    makes_keys: bool


@dataclass
class Fleet:
    """`count` devices and their server. Close its `grid` when done."""

    count: int
    rates: Rates
    _: KW_ONLY
    signed: bool = True
    strangers: bool = False

    def __post_init__(self) -> None:
        self.grid = PipeGrid(clients, (self.count, self.signed, self.strangers), stage_of)
        self._verifier: Verifier = UnsignedVerifier()
        if self.signed:
            self._verifier = FleetVerifier(self.grid.greeting, SystemClock().now)
        self.begin(self.rates)

    def begin(self, rates: Rates) -> None:
        """The next round makes keys anew. How large changes are is known: they are of a unit Gaussian."""
        self._config = SecureConfig(rates=rates)
        settings = self._config.settings("train")
        self._carried = Carried(settings={"train": replace(settings, unit_weight=1.0, scales={"w": 1.0})})

    def round(
        self, nodes: Sequence[int], elements: int, gone: frozenset[int], *, after_masking: bool = False
    ) -> tuple[Round, Vector]:
        """`gone` fall silent when they are asked for their vectors, or right after they sent them. Also returns the mean.

        Raises `RoundAborted` where there is none.
        """
        grid = self.grid
        grid.begin(Phase.CONFIRMED if after_masking else Phase.MASKED, gone)
        secure = TimedGrid(grid, self._config, self._verifier, carried=self._carried)
        model = ArrayRecord({"w": Array(np.zeros(elements, np.float32))})
        messages = [secure.create_message(RecordDict({"arrays": model}), "train", node, "1") for node in nodes]
        began = time.process_time()
        (reply,) = secure.send_and_receive(messages)
        server_s = time.process_time() - began - grid.own_s
        mean = record_to_numpy(reply.content.array_records["arrays"])["w"]
        return Round(grid.client_s, server_s, grid.bytes_up, secure.masks, Phase.KEYS in grid.stages), mean


def unmasking_s(length: int, bits: int, count: int, apply: Apply) -> float:
    """Seconds of wall time to take `count` masks out of a sum."""
    masks, words = [Mask(Secret(os.urandom(32))) for _ in range(count)], Layout(length, bits).zeros()
    began = time.perf_counter()
    apply(words, masks)
    return time.perf_counter() - began


def keystream_s(length: int, bits: int) -> float:
    """CPU seconds of AES-256-CTR for one mask, in blocks that stay in the cache, measured here: what no server can do without."""
    size, block = Layout(length, bits).zeros().nbytes, bytearray(1 << 18)
    spent = []
    for _ in range(5):
        start = time.process_time()
        for _ in range(8):
            cipher = Cipher(AES(bytes(32)), CTR(bytes(16))).encryptor()
            for done in range(0, size, len(block)):
                part = memoryview(block)[: size - done]
                cipher.update_into(part, part)
        spent.append((time.process_time() - start) / 8)
    return sorted(spent)[2]
