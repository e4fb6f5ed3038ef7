"""``token_arrays``: what depends on a tokenizer, made once a corpus and not in every epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dagster import AssetExecutionContext, AssetsDefinition, Output, ResourceParam, asset

from resources.artifact_store import ArtifactStoreResource
from resources.launcher import Launcher, Program
from tts_assets.core.artifacts import Build, CodeArrays, TokenArrays
from tts_assets.core.compute import Shape
from tts_assets.orchestration.conditions import follow_data
from tts_assets.orchestration.launchpad import Machines
from tts_assets.orchestration.partitions import corpus_partitions
from tts_assets.speechlm.config import TokenizerConfig, TokenProgram, identified

CODE_VERSION = "2"


def build_assets(
    tokenizers: Mapping[str, Sequence[TokenizerConfig]], pretraining: bool, shape: Shape
) -> list[AssetsDefinition]:
    """``tokenizers``: by corpus, those of the recipes that train on it, each once."""
    streams = "; the streams that pretraining reads" if pretraining else ""

    @asset(
        group_name="arrays",
        partitions_def=corpus_partitions,
        code_version=CODE_VERSION,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description=f"All texts of a corpus as token ids, for each tokenizer in use{streams}.",
    )
    def token_arrays(
        context: AssetExecutionContext,
        store: ArtifactStoreResource,
        launcher: ResourceParam[Launcher],
        config: Machines,
        code_arrays: CodeArrays,
    ) -> Output[TokenArrays]:
        wanted = tokenizers.get(context.partition_key, ())
        build = Build(
            asset="token_arrays",
            partition=context.partition_key,
            inputs={"code_arrays": code_arrays},
            config={"tokenizers": [identified(one) for one in wanted], "pretraining": pretraining},
            code_version=CODE_VERSION,
        )

        def tokenize(work: Path) -> dict[str, Any]:
            program = TokenProgram(
                run_dir=work,
                arrays=code_arrays.path,
                tokenizers=tuple(wanted),
                pretraining=pretraining,
            )
            module = "tts_assets.speechlm.tokens"
            machines = config.of(shape).alone()
            return launcher.run(context, Program(module, program, machines)).facts

        return store.materialize(context, TokenArrays, build, tokenize)

    return [token_arrays]
