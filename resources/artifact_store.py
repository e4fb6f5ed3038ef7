"""The artifact store as a Dagster resource, and the IO manager that hands artifacts on."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_origin

from dagster import (
    AssetExecutionContext,
    BetaWarning,
    ConfigurableIOManager,
    ConfigurableResource,
    DagsterEventType,
    DataVersion,
    InputContext,
    MetadataValue,
    Output,
    OutputContext,
    TextMetadataValue,
)

from resources.leases import locked
from tts_assets.core.artifacts import (
    UNPARTITIONED,
    ArtifactStore,
    Build,
    Facts,
    Handle,
    disk_full_named,
    open_artifact,
)
from tts_assets.core.tracking import keep_files

# Output(data_version=...) is "beta" in 1.13; lineage here is built on it, and tests hold it.
warnings.filterwarnings("ignore", message=".*data_version.*", category=BetaWarning)

H = TypeVar("H", bound=Handle)
Metadata = Mapping[str, Any]


class ArtifactStoreResource(ConfigurableResource):
    """Immutable artifacts below ``root`` (see ``tts_assets/core/artifacts.py``)."""

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
        handle = self._reuse(context, build)
        reused = handle is not None
        if handle is None:
            work = self.store.work_folder(build)
            waiting = f"waiting: another run builds {build.asset} as {build.fingerprint}"
            # Of two runs of one build the second takes over.
            with locked(Path(f"{work}.lock"), lambda: context.log.info(waiting)):
                handle = self._reuse(context, build) or self._build(kind, build, work, run)
        assert isinstance(handle, kind)
        metadata = standard_metadata(handle) | {"reused": reused}
        metadata |= dict(describe(handle) if describe else {})
        return Output(handle, data_version=DataVersion(handle.content), metadata=metadata)

    def _reuse(self, context: AssetExecutionContext, build: Build) -> Handle | None:
        handle = self.store.find(build)
        if handle is not None:
            context.log.info(f"{build.asset}: already built as {build.fingerprint}, nothing to do")
            self.store.select(handle)
        return handle

    def _build(
        self,
        kind: type[Handle],
        build: Build,
        work: Path,
        run: Callable[[Path], Facts | Mapping[str, Any]],
    ) -> Handle:
        with disk_full_named(self.store.root):
            (work / "result").mkdir(parents=True, exist_ok=True)
            facts = run(work)
            handle = self.store.publish(kind, build, work / "result", facts)
        keep_files(work, self.store.root / "wandb")
        shutil.rmtree(work)
        return handle


class ArtifactIOManager(ConfigurableIOManager):
    """Inputs arrive as typed handles of what their own run made, else of the current artifacts;
    outputs were published already.

    An input annotated ``dict[str, CodeArrays]`` gets all partitions that its mapping names; one
    annotated ``CodeArrays`` gets the one of its own partition.
    """

    root: str

    def handle_output(self, context: OutputContext, obj: Handle) -> None:
        if not isinstance(obj, Handle):
            raise TypeError(f"{context.asset_key} must return an artifact handle, not {type(obj)}")

    def load_input(self, context: InputContext) -> Handle | dict[str, Handle]:
        store = ArtifactStore(Path(self.root))
        asset = "/".join(context.asset_key.path)
        made = made_in_own_run(context)

        def handle(partition: str) -> Handle:
            if partition in made:
                return open_artifact(store.folder(asset, partition) / made[partition])
            return store.current(asset, partition)

        if not context.has_asset_partitions:
            return handle(UNPARTITIONED)
        handles = {key: handle(key) for key in context.asset_partition_keys}
        wants_all = get_origin(context.dagster_type.typing_type) is dict
        return handles if wants_all else handles[context.asset_partition_key]


def made_in_own_run(context: InputContext) -> dict[str, str]:
    """Fingerprints, by partition, of the artifacts of this input that the step's run has made.
    Another run may have made another meanwhile, which is then the current one."""
    events = context.instance.all_logs(
        context.step_context.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION
    )
    made = {}
    for event in events:
        found = event.asset_materialization
        if found is not None and found.asset_key == context.asset_key:
            fingerprint = found.metadata.get("fingerprint")
            if isinstance(fingerprint, TextMetadataValue) and fingerprint.value:
                made[found.partition or UNPARTITIONED] = fingerprint.value
    return made


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
