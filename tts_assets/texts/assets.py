"""Texts in the graph: one asset a source, ``texts/<name>``, and the check that no line is lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetChecksDefinition,
    AssetExecutionContext,
    AssetsDefinition,
    Output,
    asset,
    asset_check,
)

from resources.artifact_store import ArtifactStoreResource
from tts_assets.arrays.arrays import SPLITS
from tts_assets.arrays.files import count_lines
from tts_assets.core.accounting import SET_ASIDE_FILE, count_reasons, read_set_aside
from tts_assets.core.artifacts import Build, Texts, sha256_file
from tts_assets.core.config import ConfigError
from tts_assets.core.split import ValidationSplit
from tts_assets.texts.source import TextSource, write_texts

CODE_VERSION = "1"
Built = AssetsDefinition | AssetChecksDefinition


def build_assets(
    sources: Mapping[str, TextSource], validation: ValidationSplit, root: Path
) -> list[Built]:
    """An asset and its check for each ``[texts.<name>]``; paths are relative to ``root``."""
    built: list[Built] = []
    for name, source in sources.items():
        texts = texts_asset(name, source, validation, root)
        built += [texts, lines_check(texts)]
    return built


def texts_asset(
    name: str, source: TextSource, validation: ValidationSplit, root: Path
) -> AssetsDefinition:
    path = (root / source.path).resolve()

    @asset(
        key=["texts", name],
        group_name="texts",
        code_version=CODE_VERSION,
        kinds={"json"},
        description=f"The lines of {path.name} that can be trained on beside speech.",
    )
    def texts(context: AssetExecutionContext, store: ArtifactStoreResource) -> Output[Texts]:
        if not path.is_file():
            raise ConfigError(f"texts.{name}: there is no file {path}; set path to a JSONL file")
        config = {
            "source": sha256_file(path),
            "licence": source.licence,
            "validation": validation.model_dump(),
        }
        build = Build(f"texts/{name}", {}, config, CODE_VERSION)

        def run(work: Path) -> dict[str, Any]:
            counts = write_texts(path, validation, work / "result")
            return {"name": name, "licence": source.licence, **counts}

        return store.materialize(context, Texts, build, run, describe_texts)

    return texts


def describe_texts(texts: Texts) -> dict[str, Any]:
    """Why lines were set aside, each reason with its count."""
    reasons = count_reasons(read_set_aside(texts.path / SET_ASIDE_FILE))
    return {f"set_aside/{reason}": count for reason, count in reasons.items()}


def lines_check(texts: AssetsDefinition) -> AssetChecksDefinition:
    @asset_check(
        asset=texts,
        blocking=True,
        description="Lines of the file = train + val + set aside, and some are left.",
    )
    def no_line_is_lost(texts: Texts) -> AssetCheckResult:
        kept = sum(count_lines(texts.path / f"{split}_samples.jsonl") for split in SPLITS)
        aside = count_lines(texts.path / SET_ASIDE_FILE)
        return AssetCheckResult(
            passed=texts.facts.lines == kept + aside and kept > 0,
            metadata={"lines": texts.facts.lines, "kept": kept, "set_aside": aside},
        )

    return no_line_is_lost
