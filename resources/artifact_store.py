"""The artifact store as a Dagster resource, and the IO manager that loads artifacts as inputs."""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_origin
from urllib.parse import quote

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    BetaWarning,
    ConfigurableIOManager,
    ConfigurableResource,
    DagsterEventType,
    DagsterInstance,
    DagsterLogManager,
    DataVersion,
    InputContext,
    JsonMetadataValue,
    MetadataValue,
    Output,
    OutputContext,
    TableColumn,
    TableSchema,
)
from dagster._core.errors import DagsterInvalidPropertyError
from pydantic import Field

from resources.leases import locked
from tts_assets.core.artifacts import (
    UNPARTITIONED,
    ArtifactError,
    ArtifactStore,
    Build,
    Facts,
    Handle,
    disk_full_named,
    open_artifact,
    verify,
)
from tts_assets.core.artifacts.handle import asset_name
from tts_assets.core.artifacts.store import corpora_of, withdrawals
from tts_assets.core.metadata import Columns, Link, Markdown, Metadata, Table, literal
from tts_assets.core.tracking import keep_files

# Output(data_version=...) is "beta" in Dagster 1.13. Lineage depends on it, and tests cover it.
warnings.filterwarnings("ignore", message=".*data_version.*", category=BetaWarning)

H = TypeVar("H", bound=Handle)
FILES_URL = "http://127.0.0.1:3001"  # of make ui; TTS_FILES_URL replaces it
LOCATION = "tts"  # the code location of workspace.yaml, whose server reads notebooks
EXPERIMENT = "experiment"  # metadata of results that do not become current: what differs
LOGGED_SECONDS = 2.0  # a verification that takes longer is logged
BOOKKEEPING = "bookkeeping"
FIRST = (
    *("wer", "speaker_similarity", "dnsmos_p808"),
    *("val_loss", "train_loss", "loss", "reward"),
)
DIGITS = 4  # significant ones of a number on an asset page


class ArtifactStoreResource(ConfigurableResource):
    """Immutable artifacts below ``root``; see :mod:`tts_assets.core.artifacts`."""

    root: str
    refused: dict[str, str] = Field(
        default_factory=dict, description="by corpus: why its consent is not valid"
    )

    @property
    def store(self) -> ArtifactStore:
        """The store, independent of Dagster."""
        return ArtifactStore(Path(self.root))

    def materialize(
        self,
        context: AssetExecutionContext,
        kind: type[H],
        build: Build,
        run: Callable[[Path], Facts | Mapping[str, Any]],
        describe: Callable[[H], Metadata] | None = None,
        experiment: str = "",
    ) -> Output[H]:
        """Return the artifact of ``build``, and call ``run(work_folder)`` if there is none yet.

        ``run`` writes files to ``work_folder / "result"`` and returns the facts. The work folder is
        the same after a failure or a restart, so that programs resume in it. ``describe`` returns
        further metadata, such as tables, plots and players. The metadata ``reused`` says that
        ``run`` was not called, ``unchanged`` that the current artifact had the same content.

        With ``experiment``, a text that says what differs from the recipe, the artifact does not
        become the current one. Its data version is that of the current one, if there is one, so
        that no later asset counts as outdated.
        """
        self._check_consents(build)
        before = self._current_content(build)
        handle = self._reuse(context, build, not experiment)
        reused = handle is not None
        if handle is None:
            work = self.store.work_folder(build)
            waiting = f"waiting: another run builds {build.asset} as {build.fingerprint}"
            # The second of two runs of the same build waits here, and reuses the artifact of the
            # first. Pools of Dagster do not replace this lock: they limit ops of one instance, not
            # builds, and a daemon has to free the slots of killed runs. The kernel frees a file
            # lock when its process dies.
            with locked(Path(f"{work}.lock"), lambda: context.log.info(waiting)):
                handle = self._reuse(context, build, not experiment) or self._build(
                    kind, build, work, run, not experiment
                )
        assert isinstance(handle, kind)
        unchanged = handle.content == before
        if unchanged and not reused:
            context.log.info(
                f"{build.asset}: built again, unchanged: later assets are not affected"
            )
        flags = {"reused": reused, "unchanged": unchanged}
        described = describe(handle) if describe else {}
        metadata = asset_metadata(handle, self.store.root, described, flags)
        version = handle.content
        if experiment:
            metadata = {EXPERIMENT: experiment} | metadata
            version = before or version
        # Added, so that it comes after what the launcher has added: Dagster puts that last.
        with suppress(DagsterInvalidPropertyError):  # an asset that is called as a function
            context.add_output_metadata({BOOKKEEPING: metadata[BOOKKEEPING]})
            del metadata[BOOKKEEPING]
        return Output(handle, data_version=DataVersion(version), metadata=metadata)

    def _check_consents(self, build: Build) -> None:
        """Raise :class:`ArtifactError` for a model or report that is made from a refused corpus.

        Data of a single corpus, which nobody hears, are not refused.
        """
        gone = withdrawals(self.store.root).items()  # also those of this run's time
        refused = self.refused | {name: f"was withdrawn on {day}" for name, day in gone}
        if not refused or build.partition != UNPARTITIONED:
            return
        used = corpora_of(self.store, build.references().values())
        for corpus in sorted(used & refused.keys()):
            raise ArtifactError(
                f"{build.asset} is not made: its inputs were made from corpora.{corpus}, whose "
                f"consent {refused[corpus]}. Make the inputs again, which leaves this corpus "
                "out, or remove it from the recipes (docs/consent.md)"
            )

    def _current_content(self, build: Build) -> str | None:
        """The content of the current artifact; None if there is none that can be opened."""
        try:
            return self.store.current(build.asset, build.partition).content
        except ArtifactError:
            return None

    def _reuse(self, context: AssetExecutionContext, build: Build, select: bool) -> Handle | None:
        handle = self.store.find(build)
        if handle is not None:
            verify_logged(self.store, handle, context.log)
            context.log.info(f"{build.asset}: already built as {build.fingerprint}, nothing to do")
            if select:
                self.store.select(handle)
        return handle

    def _build(
        self,
        kind: type[Handle],
        build: Build,
        work: Path,
        run: Callable[[Path], Facts | Mapping[str, Any]],
        select: bool,
    ) -> Handle:
        with disk_full_named(self.store.root):
            (work / "result").mkdir(parents=True, exist_ok=True)
            facts = run(work)
            handle = self.store.publish(kind, build, work / "result", facts, select)
        keep_files(work, self.store.root / "wandb")
        shutil.rmtree(work)
        return handle


class ArtifactIOManager(ConfigurableIOManager):
    """Loads inputs as typed handles. Outputs are published before, by the store.

    An input is the artifact that the same run materialized, or else the current one. Its files are
    verified on first use. An input with
    the annotation ``dict[str, CodeArrays]`` gets all partitions of its partition mapping, one with
    ``CodeArrays`` that of its own partition.
    """

    root: str

    def handle_output(self, context: OutputContext, obj: Handle) -> None:
        """Check that the output is a handle; raises TypeError."""
        if not isinstance(obj, Handle):
            raise TypeError(f"{context.asset_key} must return an artifact handle, not {type(obj)}")

    def load_input(self, context: InputContext) -> Handle | dict[str, Handle]:
        """The handle of an input, or a dict of handles by partition."""
        store = ArtifactStore(Path(self.root))
        asset = "/".join(context.asset_key.path)
        made = made_in_own_run(context)

        def handle(partition: str) -> Handle:
            folder = store.folder(asset, partition)
            own = made.get(partition)
            found = open_artifact(folder / own) if own else store.current(asset, partition)
            verify_logged(store, found, context.log)
            return found

        if not context.has_asset_partitions:
            return handle(UNPARTITIONED)
        handles = {key: handle(key) for key in context.asset_partition_keys}
        wants_all = get_origin(context.dagster_type.typing_type) is dict
        return handles if wants_all else handles[context.asset_partition_key]


def verify_logged(store: ArtifactStore, handle: Handle, log: DagsterLogManager) -> None:
    """Verify an artifact that was not verified before, and log what that took.

    Raises :class:`ArtifactError` with the asset's name and what to do.
    """
    started = time.monotonic()
    try:
        read = verify(store, handle)
    except ArtifactError as error:
        raise ArtifactError(f"{asset_name(handle.manifest)} is damaged: {error}") from None
    if (seconds := time.monotonic() - started) > LOGGED_SECONDS:
        log.info(f"verified {asset_name(handle.manifest)}: {read / 1e9:.1f} GB in {seconds:.0f} s")


def made_in_own_run(context: InputContext) -> dict[str, str]:
    """Fingerprints by partition of the artifacts of this input that the current run materialized.

    They need not be the current ones: another run may have materialized the input meanwhile.
    """
    events = context.instance.all_logs(
        context.step_context.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION
    )
    made = {}
    for event in events:
        found = event.asset_materialization
        if found is not None and found.asset_key == context.asset_key:
            kept = found.metadata.get(BOOKKEEPING)
            if isinstance(kept, JsonMetadataValue) and isinstance(kept.data, dict):
                made[found.partition or UNPARTITIONED] = str(kept.data["fingerprint"])
    return made


def for_dagster(metadata: Metadata, root: Path | None = None) -> dict[str, Any]:
    """Metadata of :mod:`tts_assets.core.metadata` with Dagster's types.

    ``root`` is the storage; without it files are shown as paths.
    """
    return {name: shown(value, root) for name, value in metadata.items()}


def shown(value: Any, root: Path | None) -> Any:
    """One value; Dagster takes texts, whole numbers and dicts as they are."""
    if isinstance(value, Markdown):
        return MetadataValue.md(value)
    if isinstance(value, Table):
        return MetadataValue.md(markdown_of(value, root))
    if isinstance(value, Columns):
        return TableSchema(
            [TableColumn(name, str(t), value.about.get(name)) for name, t in value.types.items()]
        )
    if isinstance(value, float):
        return rounded(value)
    return link(value, root) if isinstance(value, Path) else value


def rounded(value: float) -> float:
    """A number with :data:`DIGITS` significant digits, and all digits before the point."""
    if not value or not math.isfinite(value):
        return value
    return round(value, max(0, DIGITS - 1 - math.floor(math.log10(abs(value)))))


def link(path: Path, root: Path | None) -> MetadataValue[Any]:
    """A link that opens a file or folder of the storage ``root``; elsewhere a path."""
    found = address(path, root)
    return MetadataValue.url(found) if found else MetadataValue.path(str(path))


def address(path: Path, root: Path | None) -> str:
    """The URL of a file or folder of the storage ``root``; empty for other files.

    Notebooks open in the viewer of the UI, other files at :data:`FILES_URL`, where ``make ui``
    serves them.
    """
    if root is None or not path.is_relative_to(root):
        return ""
    if path.suffix == ".ipynb":
        return f"/notebook?path={quote(str(path))}&repoLocName={LOCATION}"
    base = os.environ.get("TTS_FILES_URL", FILES_URL)
    return f"{base}/{quote(str(path.relative_to(root)))}"


def markdown_of(table: Table, root: Path | None) -> str:
    """A table in Markdown with links to files of the storage ``root``."""

    def cell(value: str | Link) -> str:
        if isinstance(value, str):
            return literal(value)
        url = address(value.path, root)
        anchor = f"#{quote(value.anchor)}" if value.anchor else ""
        return f"[{literal(value.text)}]({url}{anchor})" if url else literal(value.text)

    head = list(table.rows[0]) if table.rows else []
    lines = [head, ["---"] * len(head), *([cell(v) for v in row.values()] for row in table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def asset_metadata(
    handle: Handle, root: Path, described: Metadata, flags: Mapping[str, bool]
) -> dict[str, Any]:
    """Metadata of an artifact in the order of its asset page.

    Figures and links come first, then texts, tables and plots, then further numbers, which the UI
    plots. Bookkeeping comes last, in one value that the UI folds. ``described`` is what the stage
    adds; it replaces facts of the same name.
    """
    facts = {
        name: value
        for name, value in handle.facts.model_dump().items()
        if name not in handle.facts.folded
    }
    entries = {**flattened(facts), "artifact": handle.path, **described}
    known = [(name, value) for name, value in entries.items() if value is not None]
    known.sort(key=lambda entry: place(entry[0], entry[1], entry[0] in facts))
    metadata = for_dagster(dict(known), root) | dict(flags)
    return metadata | {BOOKKEEPING: MetadataValue.json(bookkeeping(handle))}


def record_by_hand(handle: Handle, description: str, metadata: Mapping[str, Any]) -> None:
    """Add an artifact that no run made to its asset's history, if there is a ``DAGSTER_HOME``."""
    if not os.environ.get("DAGSTER_HOME"):
        return
    event = AssetMaterialization(
        AssetKey(handle.asset.split("/")),
        description=description,
        metadata=metadata,
        tags={"dagster/data_version": handle.content},
    )
    with DagsterInstance.get() as instance:
        instance.report_runless_asset_event(event)


def flattened(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without nesting, as ``name/key``, and without the bounds of intervals."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if not isinstance(value, dict):
            flat[name] = value
            continue
        bounds = {f"{key}{end}" for key in value for end in ("_low", "_high")}
        flat |= {f"{name}/{key}": one for key, one in value.items() if key not in bounds}
    return flat


def place(name: str, value: Any, is_fact: bool) -> tuple[int, int]:
    """The place of an entry on an asset page: its section, and the place in the section."""
    if name in FIRST:
        return 0, FIRST.index(name)
    if isinstance(value, Path):
        return 2, 0
    if is_fact:
        return 1, 0
    if isinstance(value, int | float):
        return 4 + ("/" in name), 0
    return 3, 0


def bookkeeping(handle: Handle) -> dict[str, Any]:
    """What identifies an artifact, and what it was made of; all facts with all digits."""
    manifest = handle.manifest
    return {
        "content": manifest.content,
        "fingerprint": manifest.fingerprint,
        "code_version": manifest.code_version,
        "inputs": {name: ref.model_dump() for name, ref in manifest.inputs.items()},
        "libraries": manifest.libraries,
        "facts": manifest.facts,
    }
