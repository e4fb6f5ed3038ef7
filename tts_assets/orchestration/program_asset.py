"""Assets that publish an artifact: ``artifact_asset``, and ``program_asset`` for launched programs.

A stage defines the inputs of an asset (``ins``), what determines the result (a :class:`Plan`, from
which the fingerprint is computed), and the program that computes it. This module does the rest for
all stages: reuse of an existing artifact, launch, publication, and metadata.

:class:`Machines` and :class:`Training` are the options of a single run in Dagster's launchpad.
Resources are not part of a fingerprint. Other steps or another seed are an *experiment*: they give
another fingerprint, and an artifact that does not become the current one, nor do those that later
assets make from it in the same run. Automation and promotion therefore never see it. The metadata
``experiment`` says what differs, and the run has the tag ``tts/experiment``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, get_args, get_type_hints

import dagster
from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    DagsterEventType,
    Output,
    ResourceParam,
    asset,
)
from pydantic import BaseModel, Field, create_model

from resources.artifact_store import EXPERIMENT, ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.core.artifacts import ArtifactStore, Build, Facts, Handle
from tts_assets.core.compute import Shape
from tts_assets.core.config import Config, ConfigError
from tts_assets.core.program import ProgramConfig
from tts_assets.orchestration.dependencies import EXPERIMENT_TAG, corpus_partitions

H = TypeVar("H", bound=Handle)
R = TypeVar("R", bound=Config)
Inputs = Mapping[str, Any]  # by name: a handle, or a dict of handles by partition
Made = Facts | Mapping[str, Any]
LAUNCHPAD = "the launchpad"  # the source in messages about invalid options


class Machines(dagster.Config):
    """Resources of the programs of this run, instead of ``[compute]``."""

    gpus: int | None = Field(
        None,
        ge=0,
        description="GPUs per node, if the program uses any; 0: none. Unset: [compute]",
    )
    processes: int | None = Field(
        None,
        ge=1,
        description="Ranks per node, at most one per GPU; ignored by programs of one process. "
        "Unset: [compute]",
    )
    cpus: int | None = Field(None, ge=1, description="Cores per node. Unset: [compute]")
    memory_gb: float | None = Field(
        None, gt=0, description="Memory per node, for a job that ran out of it. Unset: [compute]"
    )
    hours: float | None = Field(
        None, gt=0, description="Time limit of a batch job. Unset: [compute]"
    )

    def of(self, shape: Shape) -> Shape:
        """``shape`` with these options. Raises :class:`ConfigError` if they are invalid."""
        asked = self.model_dump(include=set(Machines.model_fields), exclude_none=True)
        if not asked:
            return shape
        return Shape.parse({**shape.model_dump(exclude_unset=True), **asked}, LAUNCHPAD)


class Training(Machines):
    """Resources, and options that change the result."""

    steps: int | None = Field(
        None,
        gt=0,
        description="Optimizer steps instead of the recipe's, such as 50 for a test. Gives another "
        "result, an experiment, which does not replace that of the recipe",
    )
    seed: int | None = Field(
        None,
        ge=0,
        description="Seed instead of the recipe's, to measure its influence. Gives another result, "
        "an experiment, which does not replace that of the recipe",
    )

    @classmethod
    def shown_for(cls, recipe: Config) -> type["Training"]:
        """This form with the steps and the seed of ``recipe`` filled in."""
        filled: dict[str, Any] = {}
        for name in ("steps", "seed"):
            form = copy(cls.model_fields[name])
            form.default = getattr(recipe, name)
            filled[name] = (form.annotation, form)
        return create_model("Training", __base__=cls, **filled)

    def of_recipe(self, recipe: R) -> R:
        """``recipe`` with these options. Raises :class:`ConfigError` if they are invalid."""
        given = self.model_dump(include={"steps", "seed"}, exclude_none=True)
        asked = {name: value for name, value in given.items() if value != getattr(recipe, name)}
        if not asked:
            return recipe
        if "steps" in asked and "epochs" in type(recipe).model_fields:
            asked["epochs"] = None
        return type(recipe).parse({**recipe.model_dump(exclude_unset=True), **asked}, LAUNCHPAD)


def group_of(prefix: str, recipe: str, suite: bool = False) -> str:
    """The group ``prefix``, or ``<prefix>_<recipe>`` of assets on further suites of a recipe.

    A node of the graph shows the last part of its key only, which is the same for all recipes if it
    is the name of a suite. Groups are named by letters, digits and underscores.
    """
    return re.sub(r"\W", "_", f"{prefix}_{recipe}") if suite else prefix


@dataclass(frozen=True)
class Request:
    """One materialization, as the plan of an asset sees it."""

    context: AssetExecutionContext
    store: ArtifactStore
    options: Machines | None = None
    launcher: Launcher | None = None
    differs: list[str] = field(default_factory=list)  # how :meth:`recipe` differs from the recipe

    @property
    def partition(self) -> str:
        """The corpus of the run. Raises :class:`ConfigError` if the run has none."""
        if self.context.has_partition_key:
            return self.context.partition_key
        assert corpus_partitions.name is not None
        known = self.context.instance.get_dynamic_partitions(corpus_partitions.name)
        raise ConfigError(
            f"{self.context.asset_key.to_user_string()} needs a corpus: launch the run with "
            f"--partition and one of {', '.join(known) or 'none yet'}"
        )

    def recipe(self, recipe: R) -> R:
        """``recipe`` with the steps and the seed that the launchpad asks for, if any."""
        asked = cast(Training, self.options).of_recipe(recipe)
        self.differs[:] = differences(recipe, asked)
        return asked

    def experiment(self) -> str:
        """What makes the result an experiment; empty if it is that of the recipe.

        Marks the run, so that automation does not follow it.
        """
        context = self.context
        if self.differs:
            context.instance.add_run_tags(context.run_id, {EXPERIMENT_TAG: "yes"})
            return ", ".join(self.differs)
        run = context.instance.get_run_by_id(context.run_id)
        if run is None or EXPERIMENT_TAG not in run.tags:
            return ""
        used = context.assets_def.asset_deps[context.asset_key] & experiments(context)
        return ", ".join(f"made from {key.to_user_string()}" for key in sorted(used))

    def shape(self, shape: Shape) -> Shape:
        """``shape`` with the machines that the launchpad asks for, if any."""
        assert self.options is not None
        return self.options.of(shape)

    def launch(self, program: Program) -> dict[str, Any]:
        """Run a program to its end and return its facts. Raises :class:`LaunchError`."""
        assert self.launcher is not None
        return self.launcher.run(self.context, program).facts


def differences(recipe: Config, asked: Config) -> list[str]:
    """``steps 50 instead of 2400``: the options of :class:`Training` that differ."""
    epochs = getattr(recipe, "epochs", None)
    found = []
    for name in ("steps", "seed"):
        was, now = getattr(recipe, name), getattr(asked, name)
        if was != now:
            known = f"{epochs} epochs" if was is None and epochs is not None else was
            found.append(f"{name} {now} instead of {known}")
    return found


def experiments(context: AssetExecutionContext) -> set[AssetKey]:
    """The assets of which this run has materialized an experiment."""
    events = context.instance.all_logs(
        context.run_id, of_type=DagsterEventType.ASSET_MATERIALIZATION
    )
    made = (event.asset_materialization for event in events)
    return {one.asset_key for one in made if one is not None and EXPERIMENT in one.metadata}


@dataclass(frozen=True)
class Plan(Generic[H]):
    """What determines an artifact, and how it is computed.

    ``config`` is part of the fingerprint and holds no path of a machine. ``inputs`` are the inputs
    in the fingerprint; None: all inputs of the asset. ``make`` writes to ``work / "result"`` and
    returns the facts. An asset of :func:`program_asset` gives ``program`` instead, which builds the
    program's configuration for the work folder. ``describe`` adds metadata of the artifact.
    ``after`` is called with the artifact once it is published or reused.
    """

    config: BaseModel | Mapping[str, Any]
    make: Callable[[Path], Made] | None = None
    program: Callable[[Path], ProgramConfig] | None = None
    inputs: Inputs | None = None
    seed: int = 0
    describe: Callable[[H], Mapping[str, Any]] | None = None
    code_version: str | None = None  # None: that of the asset
    after: Callable[[H], None] | None = None


def artifact_asset(
    key: str | Sequence[str],
    plan: Callable[..., Plan[H]],
    *,
    code_version: str,
    ins: Mapping[str, AssetIn | str] | None = None,
    options: type[Machines] | None = None,
    **asset_options: Any,
) -> AssetsDefinition:
    """The asset ``key``, whose artifact ``plan(request, **inputs)`` describes.

    The annotation of the result of ``plan``, such as ``Plan[Report]``, names the kind of artifact.
    ``ins``: inputs by parameter name of ``plan``; a string is an asset key. ``options``: the class
    of the launchpad's form; with None the asset launches nothing. ``asset_options`` go to
    :func:`dagster.asset`.
    """
    path = [key] if isinstance(key, str) else list(key)
    kind: type[H] = get_args(get_type_hints(plan)["return"])[0]

    def materialize(request: Request, store: ArtifactStoreResource, inputs: Inputs) -> Output[H]:
        found = plan(request, **inputs)
        # The run of an asset without partitions may have the partition key of another asset.
        partitioned = asset_options.get("partitions_def") is not None
        build = Build(
            asset="/".join(path),
            inputs=inputs if found.inputs is None else found.inputs,
            config=found.config,
            code_version=found.code_version or code_version,
            seed=found.seed,
            **({"partition": request.partition} if partitioned else {}),
        )
        assert found.make is not None
        output = store.materialize(
            request.context, kind, build, found.make, found.describe, request.experiment()
        )
        if found.after is not None:
            found.after(output.value)
        return output

    def local(
        context: AssetExecutionContext, store: ArtifactStoreResource, **inputs: Any
    ) -> Output[Any]:
        return materialize(Request(context, store.store), store, inputs)

    def launching(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        **inputs: Any,
    ) -> Output[Any]:
        return materialize(Request(context, store.store, config, launcher), store, inputs)

    compute = local if options is None else launching
    if options is not None:
        compute.__annotations__["config"] = options  # the form that the launchpad shows
    compute.__annotations__["return"] = Output[kind]  # type: ignore[valid-type]
    decorate = asset(
        key=AssetKey(path),
        ins={
            name: AssetIn(one) if isinstance(one, str) else one for name, one in (ins or {}).items()
        },
        code_version=code_version,
        **asset_options,
    )
    return decorate(compute)


def program_asset(
    key: str | Sequence[str],
    module: str,
    plan: Callable[..., Plan[H]],
    *,
    shape: Shape,
    limit: Callable[[Shape], Shape] | None = None,
    options: type[Machines] = Machines,
    **asset_options: Any,
) -> AssetsDefinition:
    """The asset ``key``, which the program ``python -m module run.json`` makes on ``shape``.

    ``plan(request, **inputs)`` gives a :class:`Plan` with ``program``. ``limit`` is applied after
    the launchpad: :meth:`Shape.alone` for a program that is one process. ``options`` is
    :meth:`Training.shown_for` where the launchpad may change steps and seed.
    """

    @wraps(plan)  # also its annotations
    def launched(request: Request, **inputs: Any) -> Plan[H]:
        found = plan(request, **inputs)
        assert found.program is not None
        configure = found.program

        def make(work: Path) -> dict[str, Any]:
            asked = request.shape(shape)
            machines = limit(asked) if limit is not None else asked
            return request.launch(Program(module, configure(work), machines))

        return replace(found, make=make)

    return artifact_asset(key, launched, options=options, **asset_options)
