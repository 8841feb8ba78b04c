"""What really serves on this device, and bringing back the last proven release."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from edge_agent.inference.batching import BatchPolicy
from edge_agent.inference.ports import ModelSpec, ModelStatus, SlotStatus
from edge_agent.journal import Proven
from edge_agent.trainer.variant import Variant, read_variant
from edge_agent.updater.tools import Tools
from shared.errors import Conflict, NotFound, ShoalError
from shared.ids import Digest
from shared.session import Serving

_log = structlog.get_logger()
BUNDLE_PREFIX = ".bundle-"
_BACK_TRIES, _BACK_S = 20, 0.25


class Shelf:
    """The slots, seen through the journal."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self.changing = asyncio.Lock()  # a restore and an install must not take each other's slots
        self._candidates: dict[tuple[str, int], Digest] = {}  # bundles that are not proven yet

    async def restore(self) -> None:
        """Serve each model's last proven release again, or the one before it when that is damaged."""
        for model in self._tools.journal.models():
            for proven in self._tools.journal.proven(model):
                try:
                    await self.serve(proven)
                except ShoalError as error:
                    _log.error(
                        "a proven release cannot be served", model=model, release=proven.release, reason=str(error)
                    )
                    continue
                _log.info("serving", model=model, release=proven.release, runtime=proven.runtime)
                break

    async def back(self, models: Sequence[str] = ()) -> None:
        """Wait, within reason, until the inference service answers and these models, which were proven, are live again."""
        for _ in range(_BACK_TRIES):
            try:
                status = await self._tools.inference.slots.status()
                if all((found := status.model(model)) is not None and found.live is not None for model in models):
                    return
            except ShoalError as error:
                _log.info("waiting for the inference service", reason=error.message)
            await asyncio.sleep(_BACK_S)

    async def serve(self, proven: Proven) -> None:
        """Load what was proven, check it against the journal, and make it live. Raises `Corrupt` and what loading raises."""
        folder = self._tools.home.path / proven.folder
        variant = await asyncio.to_thread(read_variant, folder)
        if variant.digest != proven.variant_digest:
            raise Conflict(f"{folder} holds another model than the one that was proven")
        spec = replace(self.spec(proven.model, proven.release, variant, folder), runtime=proven.runtime)
        async with self.changing:
            await self.make_room(proven.model, proven.release)
            await self._tools.inference.slots.load(spec)
            await self._tools.inference.slots.swap(proven.model, proven.release)

    def spec(self, model: str, release: int, variant: Variant, folder: Path) -> ModelSpec:
        profile = self._tools.profile
        policy = BatchPolicy(
            target_ms=profile.latency_budget_ms, min_batch=profile.min_batch, max_batch=profile.max_batch
        )
        path = folder / variant.file
        return ModelSpec(model, release, variant.digest, path, variant.runtime, threads=profile.threads, policy=policy)

    async def make_room(self, model: str, release: int) -> None:
        """Close every slot that is neither live nor `release`."""
        status = await self.status(model)
        for slot in status.slots if status else ():
            live = status is not None and status.live is not None and slot.version == status.live.version
            if not live and slot.version != release:
                await self._close(model, slot)

    async def close(self, model: str, release: int) -> None:
        """Close a version that is not live; an unknown one is no error."""
        status = await self.status(model)
        for slot in status.slots if status else ():
            if slot.version == release:
                await self._close(model, slot)

    async def _close(self, model: str, slot: SlotStatus) -> None:
        try:
            await self._tools.inference.slots.release(model, slot.version)
        except (NotFound, Conflict) as error:
            _log.info("slot not released", model=model, version=slot.version, reason=error.message)

    async def status(self, model: str) -> ModelStatus | None:
        return (await self._tools.inference.slots.status()).model(model)

    def candidate(self, model: str, release: int, bundle: Digest) -> None:
        """Which bundle a release's slot holds, before it is proven."""
        self._candidates[model, release] = bundle

    async def serving(self) -> tuple[Serving, ...]:
        """Live versions, whatever was last commanded. Empty while the inference service is away."""
        try:
            status = await self._tools.inference.slots.status()
        except ShoalError:
            return ()
        found = []
        for model in status.models:
            if model.live is None:
                continue
            version = model.live.version
            for proven in self._tools.journal.proven(model.model):
                if proven.release == version and proven.variant_digest == model.live.digest:
                    found.append(Serving(model.model, version, proven.bundle_digest, proven=True))
                    break
            else:
                if (bundle := self._candidates.get((model.model, version))) is not None:
                    found.append(Serving(model.model, version, bundle, proven=False))
        return tuple(found)

    def collect_garbage(self, model: str) -> None:
        """Forget variants that are neither served nor the way back. Blocking."""
        folder = self._tools.home.models / model
        kept = {self._tools.home.path / proven.folder for proven in self._tools.journal.proven(model)}
        for path in folder.iterdir() if folder.is_dir() else ():
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)
