"""Dagster asset ``token_arrays``: the token ids of a corpus, made once for each tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dagster import AssetsDefinition

from tts_assets.core.artifacts import CodeArrays, TokenArrays
from tts_assets.core.compute import Shape
from tts_assets.orchestration.conditions import follow_data
from tts_assets.orchestration.partitions import corpus_partitions
from tts_assets.orchestration.program_asset import Plan, Request, program_asset
from tts_assets.speechlm.config import TokenizerConfig, TokenProgram, identified, with_commit

CODE_VERSION = "2"


def build_assets(
    tokenizers: Mapping[str, Sequence[TokenizerConfig]], pretraining: bool, shape: Shape
) -> list[AssetsDefinition]:
    """``token_arrays``. ``tokenizers``: by corpus, those of the recipes that train on it."""

    def plan(request: Request, code_arrays: CodeArrays) -> Plan[TokenArrays]:
        wanted = tuple(tokenizers.get(request.partition, ()))

        def program(work: Path) -> TokenProgram:
            return TokenProgram(
                run_dir=work,
                arrays=code_arrays.path,
                tokenizers=tuple(map(with_commit, wanted)),
                pretraining=pretraining,
            )

        known = {"tokenizers": [identified(one) for one in wanted], "pretraining": pretraining}
        return Plan(known, program=program)

    streams = "; the token streams of pretraining" if pretraining else ""
    asset = program_asset(
        "token_arrays",
        "tts_assets.speechlm.tokens",
        plan,
        shape=shape,
        limit=Shape.alone,
        ins={"code_arrays": "code_arrays"},
        code_version=CODE_VERSION,
        group_name="arrays",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description=f"All texts of a corpus as token ids, for each tokenizer in use{streams}.",
    )
    return [asset]
