"""The artifact store as a Dagster resource, and the IO manager that hands artifacts on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dagster import (
    AssetExecutionContext,
    ConfigurableIOManager,
    ConfigurableResource,
    DataVersion,
    InputContext,
    MetadataValue,
    Output,
    OutputContext,
)

from tts_assets.artifacts import UNPARTITIONED, ArtifactStore, Build, Facts, Handle

H = TypeVar("H", bound=Handle)
Metadata = Mapping[str, Any]


class ArtifactStoreResource(ConfigurableResource):
    """Immutable artifacts below ``root`` (see ``tts_assets/artifacts.py``)."""

    root: str

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(Path(self.root))

    def materialize(
        self,
        context: AssetExecutionContext,
        kind: type[H],
        build: Build,
        run: Callable[[Path], Facts | Mapping[str, Any]],
        describe: Callable[[H], Metadata] | None = None,
    ) -> Output[H]:
        """Return the published artifact of ``build``; call ``run(work_folder)`` only if there is
        none yet.

        ``run`` writes its files to ``work_folder / "result"`` and returns the facts. The work
        folder is the same after a failure or a restart, so that programs resume in it.
        ``describe`` adds metadata (tables, plots, players) to the numbers every artifact shows.
        """
        handle = self.store.find(build)
        if handle is not None:
            context.log.info(f"{build.asset}: already built as {build.fingerprint}, nothing to do")
            self.store.select(handle)
        else:
            handle = self._build(kind, build, run)
        assert isinstance(handle, kind)
        metadata = standard_metadata(handle) | dict(describe(handle) if describe else {})
        return Output(handle, data_version=DataVersion(handle.content), metadata=metadata)

    def _build(
        self,
        kind: type[Handle],
        build: Build,
        run: Callable[[Path], Facts | Mapping[str, Any]],
    ) -> Handle:
        work = self.store.work_folder(build)
        (work / "result").mkdir(exist_ok=True)
        facts = run(work)
        handle = self.store.publish(kind, build, work / "result", facts)
        shutil.rmtree(work)
        return handle


class ArtifactIOManager(ConfigurableIOManager):
    """Inputs arrive as typed handles of the current artifacts; outputs were published already."""

    root: str

    def handle_output(self, context: OutputContext, obj: Handle) -> None:
        if not isinstance(obj, Handle):
            raise TypeError(f"{context.asset_key} must return an artifact handle, not {type(obj)}")

    def load_input(self, context: InputContext) -> Handle | dict[str, Handle]:
        store = ArtifactStore(Path(self.root))
        asset = "/".join(context.asset_key.path)
        if not context.has_asset_partitions:
            return store.current(asset, UNPARTITIONED)
        if context.has_partition_key:
            return store.current(asset, context.asset_partition_key)
        return {key: store.current(asset, key) for key in context.asset_partition_keys}


def standard_metadata(handle: Handle) -> dict[str, Any]:
    """Facts as plain numbers, which the UI plots over time, and where the artifact lies."""
    metadata: dict[str, Any] = {
        "artifact": MetadataValue.path(str(handle.path)),
        "fingerprint": handle.manifest.fingerprint,
        "inputs": MetadataValue.json(
            {name: ref.model_dump() for name, ref in handle.manifest.inputs.items()}
        ),
        "code_version": handle.manifest.code_version,
        "libraries": MetadataValue.json(handle.manifest.libraries),
    }
    for name, value in handle.facts.model_dump().items():
        if isinstance(value, dict):
            metadata |= {f"{name}/{key}": number for key, number in value.items()}
        else:
            metadata[name] = value
    return metadata
