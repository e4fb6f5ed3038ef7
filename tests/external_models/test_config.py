"""Validation of recipes of external models."""

from __future__ import annotations

from typing import Any

import pytest

from tts_assets.core.config import ConfigError
from tts_assets.external_models.config import ExternalModelsConfig
from tts_assets.settings import load_settings

RECIPE = {"family": "vits", "corpora": ["asterisk_en"]}


def recipes(python: str | None = "/opt/coqui/bin/python", **values: Any) -> dict[str, Any]:
    given = {"recipes": {"other": {**RECIPE, **values}}}
    return given | ({"python": python} if python else {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"family": "speechlm"}, r"write it as \[sft.<name>\]"),
        ({"model": "/models/vits"}, "leave model out"),
        ({"family": "xtts", "sample_rate": 16000}, "leave sample_rate out"),
        ({"family": "xtts", "max_seconds": 20.0}, "11.6 s"),
        ({"python": None}, "set external_models.python"),
    ],
)
def test_invalid_recipes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExternalModelsConfig.parse(recipes(**values), "external_models")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (recipes(corpora=["nowhere"]), "external_models.recipes.other has corpus 'nowhere'"),
        ({"python": "p", "recipes": {"announcer": RECIPE}}, "both would have report/announcer"),
        ({"notes": {"nobody": "hello"}}, "notes has 'nobody', which is no recipe"),
    ],
)
def test_recipes_fit_the_project(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_settings(environment={}, overrides={"external_models": values})
