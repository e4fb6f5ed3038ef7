"""Dagster assets of texts: ``texts/<name>``, each with a check that no line is lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster import AssetCheckResult, AssetChecksDefinition, AssetsDefinition, asset_check

from tts_assets.arrays.arrays import SPLITS, count_lines
from tts_assets.core.accounting import (
    SET_ASIDE_FILE,
    ValidationSplit,
    count_reasons,
    read_set_aside,
)
from tts_assets.core.artifacts import Texts, sha256_file
from tts_assets.core.config import ConfigError
from tts_assets.orchestration.program_asset import Plan, Request, artifact_asset
from tts_assets.texts.source import TextSource, write_texts

CODE_VERSION = "1"


def build_assets(
    sources: Mapping[str, TextSource], validation: ValidationSplit, root: Path
) -> list[AssetsDefinition | AssetChecksDefinition]:
    """An asset and its check for each ``[texts.<name>]``. Paths are relative to ``root``."""
    built: list[AssetsDefinition | AssetChecksDefinition] = []
    for name, source in sources.items():
        texts = texts_asset(name, source, validation, root)
        built += [texts, lines_check(texts)]
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
        Texts,
        plan,
        code_version=CODE_VERSION,
        group_name="texts",
        kinds={"json"},
        description=f"The lines of {path.name} that can be trained on beside speech.",
    )


def describe_texts(texts: Texts) -> dict[str, Any]:
    """Metadata: the number of lines that were set aside for each reason."""
    reasons = count_reasons(read_set_aside(texts.path / SET_ASIDE_FILE))
    return {f"set_aside/{reason}": count for reason, count in reasons.items()}


def lines_check(texts: AssetsDefinition) -> AssetChecksDefinition:
    """The blocking check ``no_line_is_lost``: lines of the file = train + val + set aside."""

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
