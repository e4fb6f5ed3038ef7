"""Dagster assets ``token_arrays`` and ``texts/<name>``.

``token_arrays`` are the token ids of a corpus, made once for each tokenizer. Each of the texts, for
training beside speech, has a check that no line is lost.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dagster import AssetChecksDefinition, AssetsDefinition

from tts_assets.core.accounting import ValidationSplit
from tts_assets.core.artifacts import CodeArrays, Texts, TokenArrays, sha256_file
from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.orchestration.checks import artifact_check
from tts_assets.orchestration.dependencies import corpus_partitions, follow_data
from tts_assets.orchestration.program_asset import Plan, Request, artifact_asset, program_asset
from tts_assets.speechlm.config import (
    TOKENS_VERSION,
    TokenizerConfig,
    TokenProgram,
    identified,
    with_commit,
)
from tts_assets.speechlm.formats import TextSource, count_all_lines, describe_texts, write_texts

TEXTS_VERSION = "1"


def build_assets(
    tokenizers: Mapping[str, Sequence[TokenizerConfig]], pretraining: bool, shape: Shape
) -> list[AssetsDefinition]:
    """``token_arrays``. ``tokenizers``: by corpus, those of the recipes that train on it."""

    def plan(request: Request, code_arrays: CodeArrays) -> Plan[TokenArrays]:
        wanted = tuple(tokenizers.get(request.partition, ()))
        return Plan(
            {"tokenizers": [identified(one) for one in wanted], "pretraining": pretraining},
            program=lambda work: TokenProgram(
                run_dir=work,
                arrays=code_arrays.path,
                tokenizers=tuple(map(with_commit, wanted)),
                pretraining=pretraining,
            ),
        )

    streams = "; the token streams of pretraining" if pretraining else ""
    asset = program_asset(
        "token_arrays",
        "tts_assets.speechlm.tokens",
        plan,
        shape=shape,
        limit=Shape.alone,
        ins={"code_arrays": "code_arrays"},
        code_version=TOKENS_VERSION,
        group_name="arrays",
        partitions_def=corpus_partitions,
        automation_condition=follow_data(),
        kinds={"numpy"},
        description=f"All texts of a corpus as token ids, for each tokenizer in use{streams}.",
    )
    return [asset]


def build_text_assets(
    sources: Mapping[str, TextSource], validation: ValidationSplit, root: Path
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """An asset and its check for each ``[texts.<name>]``. Paths are relative to ``root``."""
    about = "Lines of the file = train + val + set aside, and some are left."
    built: list[AssetsDefinition | AssetChecksDefinition] = []
    for name, source in sources.items():
        texts = texts_asset(name, source, validation, root)
        built += [texts, artifact_check(texts, "no_line_is_lost", about, count_all_lines)]
    return built


def texts_asset(
    name: str, source: TextSource, validation: ValidationSplit, root: Path
) -> AssetsDefinition:
    """The asset ``texts/<name>``. A run raises :class:`ConfigError` if the file is missing."""
    path = (root / source.path).resolve()

    def plan(request: Request) -> Plan[Texts]:
        if not path.is_file():
            raise ConfigError(f"texts.{name}: there is no file {path}; set path to a JSONL file")

        def make(work: Path) -> dict[str, Any]:
            counts = write_texts(path, validation, work / "result")
            return {"name": name, "licence": source.licence, **counts}

        known = {"source": sha256_file(path), "licence": source.licence, "validation": validation}
        return Plan(known, make, describe=describe_texts)

    return artifact_asset(
        ["texts", name],
        plan,
        code_version=TEXTS_VERSION,
        group_name="texts",
        kinds={"json"},
        description=f"The lines of {path.name} that can be trained on beside speech.",
    )
