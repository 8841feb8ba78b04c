"""One install, step by step. Each step is written to the journal before the next begins, and may be repeated after a crash."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import structlog

from edge_agent.inference.probe import Probe
from edge_agent.journal import InstallRecord, Proven
from edge_agent.judge import Evidence, judge
from edge_agent.state import InstallEvent
from edge_agent.trainer.ports import SignedFile, SpecialiseRequest
from edge_agent.trainer.variant import Variant, read_variant
from edge_agent.updater.measuring import MAX_EXAMPLES, Marks, Proof, Questions, mark, prove
from edge_agent.updater.serving import BUNDLE_PREFIX, Shelf
from edge_agent.updater.tools import Tools
from shared.errors import (
    ChildFailed,
    Corrupt,
    DeadlineExceeded,
    Malformed,
    NotFound,
    StorageFull,
    Unavailable,
    Untrusted,
)
from shared.learning.spec import ModelSpec as ModelDescription
from shared.session import Gate, Install
from shared.signing.manifest import MAX_MANIFEST_BYTES, Manifest

_log = structlog.get_logger()
_SPECIALISE_S = 900.0
_OFFLINE_S = 1.0
_SPARE_BYTES = 16 << 20
_NO_MARKS = Marks(None, None, None, 0)
T = TypeVar("T")


class NotGoodEnough(Exception):
    """The candidate was measured and does not pass. `args[0]` says why."""


class NotProven(Exception):
    """The candidate was swapped in, did not answer as it should, and was swapped out again."""


@dataclass
class Measured:
    """What the receipt will say, filled in as it becomes known."""

    variant: Variant | None = None
    before: Marks = _NO_MARKS
    after: Marks = _NO_MARKS
    proof: Proof | None = None

    def clear(self) -> None:
        self.variant, self.before, self.after, self.proof = None, _NO_MARKS, _NO_MARKS, None


class Installation:
    """`run` ends with a `Proven` that serves, or raises and leaves the live model as it was."""

    def __init__(self, tools: Tools, shelf: Shelf, probe: Probe, record: InstallRecord, measured: Measured) -> None:
        order = record.order
        if not isinstance(order, Install):
            raise TypeError("only an install can be installed")
        self.measured = measured
        self._tools = tools
        self._shelf = shelf
        self._probe = probe
        self._record = record
        self._order = order
        self._swapped = False

    @property
    def _gate(self) -> Gate:
        return self._order.gate

    async def run(self) -> Proven:
        """Raises `NotGoodEnough`, `NotProven`, and every typed error of the steps."""
        model, release = self._order.model, self._order.release
        serving = self._serving_already()
        if serving is not None:
            return await self._prove_again(serving)
        try:
            manifest = await self._fetch()
            self._step(InstallEvent.FETCH)
            folder, variant = await self._specialise(manifest)
            self._step(InstallEvent.SPECIALISE)
            questions = await self._questions()
            with _present_slots():
                await self._load(folder, variant)
                self._step(InstallEvent.LOAD)
                await self._judge(questions, variant)
                self._step(InstallEvent.JUDGE)
                self._step(InstallEvent.SWAP)  # before it is visible: a crash from here on brings back what was proven
                await self._tools.inference.slots.swap(model, release)
                self._swapped = True
                await self._prove(questions, variant)
        except BaseException:
            await asyncio.shield(self._withdraw_candidate())
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, self._bundle_dir, ignore_errors=True)
        return self._proven(folder, variant, tuple(questions.x.shape[1:]))

    def _step(self, event: InstallEvent) -> None:
        state = self._tools.journal.advance(self._record.command_id, event)
        _log.info("install", model=self._order.model, release=self._order.release, state=state.value)

    # ---- fetch

    async def _fetch(self) -> Manifest:
        data = (await self._online(lambda: self._tools.link.fetch(self._record.bundle_digest))).read_bytes()
        if len(data) > min(self._record.bundle_length, MAX_MANIFEST_BYTES):
            raise Malformed("the manifest is longer than was signed")
        manifest = Manifest.from_bytes(data)
        if (manifest.model, manifest.release) != (self._order.model, self._order.release):
            raise Untrusted(f"the signed manifest is of {manifest.model}:{manifest.release}, not of what was ordered")
        needed = sum(entry.size for entry in manifest.files.values()) * 2 + _SPARE_BYTES
        free = shutil.disk_usage(self._tools.home.path).free
        if free < needed:
            raise StorageFull(
                f"{free >> 20} MiB are free and the release needs {needed >> 20} MiB; free some and try again"
            )
        folder = self._bundle_dir
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, entry in manifest.files.items():
            path = await self._online(lambda digest=entry.digest: self._tools.link.fetch(digest))  # type: ignore[misc]
            if path.stat().st_size != entry.size:
                raise Malformed(f"{name} has another size than was signed")
            _link(path, folder / name)
        return manifest

    @property
    def _bundle_dir(self) -> Path:
        return self._tools.home.models / self._order.model / f"{BUNDLE_PREFIX}{self._record.command_id}"

    async def _online(self, call: Callable[[], Awaitable[T]]) -> T:
        """A lost connection holds an install up; it does not fail it."""
        while True:
            try:
                return await call()
            except Unavailable as error:
                _log.info("install waits for the coordinator", reason=error.message)
                await asyncio.sleep(_OFFLINE_S)
                await self._tools.link.attached.wait()

    # ---- specialise

    async def _specialise(self, manifest: Manifest) -> tuple[Path, Variant]:
        name = f"r{manifest.release}-{self._record.bundle_digest[:12]}{'-q' if self._gate.requantize else ''}"
        folder = self._tools.home.models / manifest.model / name
        if folder.exists():  # finished before a crash
            try:
                self.measured.variant = await asyncio.to_thread(read_variant, folder)
                return folder, self.measured.variant
            except Corrupt:
                shutil.rmtree(folder)
        request = SpecialiseRequest(
            bundle_dir=self._bundle_dir,
            out_dir=folder,
            gate=self._gate,
            recovery_batches=self._tools.config.recovery_batches,
            seed=manifest.release,
            timeout_s=_SPECIALISE_S,
            files={name: SignedFile(entry.digest, entry.size) for name, entry in manifest.files.items()},
        )
        self.measured.variant = await self._tools.trainer.specialise(request)
        return folder, self.measured.variant

    # ---- load and judge

    async def _load(self, folder: Path, variant: Variant) -> None:
        model, release = self._order.model, self._order.release
        self._shelf.candidate(model, release, self._record.bundle_digest)
        spec = self._shelf.spec(model, release, variant, folder)
        if self._tools.journal.proven(model):  # a service that was just restarted is no device without a model
            await self._shelf.back([model])
        async with self._shelf.changing:
            await self._shelf.make_room(model, 0)  # also a stale candidate of the same number
            await self._tools.inference.slots.load(spec)

    async def _questions(self) -> Questions:
        """Held-out examples that the model takes; patterns of the right shape where this device has no examples."""
        schema = ModelDescription.from_json((self._bundle_dir / "model.json").read_bytes()).schema
        try:
            split = await asyncio.to_thread(self._tools.data.split, shape=schema.shape, classes=len(schema.classes))
        except NotFound:
            return patterns(schema.shape)
        if len(split.held_y):
            return Questions(split.held_x[:MAX_EXAMPLES], split.held_y[:MAX_EXAMPLES])
        return Questions(split.train_x[:MAX_EXAMPLES], None)

    async def _judge(self, questions: Questions, variant: Variant) -> None:
        model, release, limit = self._order.model, str(self._order.release), self._tools.profile.max_batch
        before = await self._shelf.status(model)
        self.measured.after = await mark(self._probe, model, release, questions, limit)
        after = await self._shelf.status(model)
        errors = self.measured.after.errors
        if before is not None and after is not None and before.live is not None:
            if after.requests > before.requests:  # applications ask: let the candidate answer copies
                errors += await self._shadow(model)
            self.measured.before = await mark(self._probe, model, "", questions, limit)
            if failed := self.measured.before.errors:  # unmeasured, it would give way to anything
                raise ChildFailed(f"the release that serves failed {failed} requests that it was to be compared on")
        evidence = Evidence(
            accuracy_before=self.measured.before.accuracy,
            accuracy_after=self.measured.after.accuracy,
            max_logit_difference=variant.max_logit_difference,
            top1_agreement=variant.top1_agreement,
            held_out=0 if questions.y is None else len(questions.y),
            candidate_errors=errors,
        )
        if reason := judge(self._gate, evidence):
            raise NotGoodEnough(reason)

    async def _shadow(self, model: str) -> int:
        config = self._tools.config
        report = await self._tools.inference.slots.shadow(
            model, self._order.release, requests=config.shadow_requests, timeout_s=config.shadow_wait_s
        )
        _log.info("shadowed", model=model, requests=report.requests, agreement=report.agreement, errors=report.errors)
        return report.errors

    # ---- prove

    async def _prove(self, questions: Questions, variant: Variant) -> None:
        proof = await prove(self._probe, self._order.model, variant.digest, questions, self._gate.min_answers)
        self.measured.proof = proof
        if proof.reason:
            raise NotProven(proof.reason)

    def _serving_already(self) -> Proven | None:
        standing = self._tools.journal.proven(self._order.model)[:1]
        return next((one for one in standing if one.bundle_digest == self._record.bundle_digest), None)

    async def _prove_again(self, proven: Proven) -> Proven:
        """The release is proven already: show once more that it answers."""
        folder = self._tools.home.path / proven.folder
        variant = self.measured.variant = await asyncio.to_thread(read_variant, folder)
        status = await self._shelf.status(proven.model)
        if status is None or status.live is None or status.live.digest != variant.digest:
            await self._shelf.serve(proven)
        for event in (
            InstallEvent.FETCH,
            InstallEvent.SPECIALISE,
            InstallEvent.LOAD,
            InstallEvent.JUDGE,
            InstallEvent.SWAP,
        ):
            self._step(event)
        self.measured.after = Marks(proven.accuracy, proven.loss, proven.latency_ms, 0)
        await self._prove(patterns(proven.shape), variant)
        return proven

    def _proven(self, folder: Path, variant: Variant, shape: tuple[int, ...]) -> Proven:
        proof = self.measured.proof
        return Proven(
            model=self._order.model,
            release=self._order.release,
            bundle_digest=self._record.bundle_digest,
            folder=str(folder.relative_to(self._tools.home.path)),
            variant_digest=variant.digest,
            runtime=variant.runtime,
            shape=shape,
            accuracy=self.measured.after.accuracy,
            loss=self.measured.after.loss,
            latency_ms=proof.latency_ms if proof else None,
        )

    async def _withdraw_candidate(self) -> None:
        """The live model stays, or comes back; the candidate is closed."""
        model, release = self._order.model, self._order.release
        try:
            if self._swapped:
                self._swapped = False
                if self._tools.journal.proven(model):
                    await self._tools.inference.slots.revert(model)
                else:
                    await self._tools.inference.slots.remove(model)
                    return
            await self._shelf.close(model, release)
        except Exception as error:  # noqa: BLE001  # the reason for closing matters more than this one
            _log.warning("candidate not closed", model=model, release=release, reason=str(error))


def patterns(shape: tuple[int, ...]) -> Questions:
    """The same few examples each time, for a device that has none of its own."""
    return Questions(np.random.default_rng(0).random((32, *shape)).astype(np.float32), None)


@contextlib.contextmanager
def _present_slots() -> Iterator[None]:
    """A candidate that is not loaded any more, or a service that does not answer: the inference service was restarted."""
    try:
        yield
    except DeadlineExceeded:
        raise
    except (NotFound, Unavailable) as error:
        raise ChildFailed("the inference service lost the candidate", detail=error.message) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
