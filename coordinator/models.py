"""Releases as jobs see them: where weights come from, and where a trained model goes."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from coordinator.builder import BlockingBuilder
from coordinator.releases.ports import InspectBundle
from coordinator.releases.service import ReleaseService
from coordinator.rounds.ports import ModelState
from shared.blobs import Blobs
from shared.bundle import inspect_bundle
from shared.signing.manifest import FileEntry


def inspector(builder: BlockingBuilder) -> InspectBundle:
    """Checks a bundle whole: its files here, its weights against its network in the builder's process, which has torch."""

    def inspect(folder: Path) -> Mapping[str, FileEntry]:
        files = inspect_bundle(folder)
        builder.check(folder, files)
        return files

    return inspect


class ReleasePublisher:
    """Implements `coordinator.rounds.ports.Publisher` over the builder and the releases."""

    def __init__(self, releases: ReleaseService, builder: BlockingBuilder, blobs: Blobs, work: Path) -> None:
        self._releases = releases
        self._builder = builder
        self._blobs = blobs
        self._work = work

    def start(self, model: str, release: int) -> ModelState:
        """The float weights of a release; 0 is the newest. Raises `NotFound`."""
        files = self._releases.release(model, release).manifest.files
        return ModelState(
            model_json=self._blobs.read(files["model.json"].digest).decode(),
            arrays=self._blobs.read(files["weights.safetensors"].digest),
        )

    def publish(self, model: str, state: ModelState, public_data: str, lineage: Mapping[str, str | int]) -> int:
        """Build a bundle, sign it as the next release and return its number. Raises what building and signing raise.

        A job has one release at most: who asks again is told its number.
        """
        for release in self._releases.releases():
            if release.model == model and release.manifest.lineage.get("job") == lineage["job"]:
                return release.number
        folder = Path(tempfile.mkdtemp(prefix="bundle-", dir=self._work))
        try:
            self._builder.bundle(state, public_data, folder / "bundle", lineage)
            return self._releases.publish(folder / "bundle", model, lineage).number
        finally:
            shutil.rmtree(folder, ignore_errors=True)
