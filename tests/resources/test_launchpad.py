"""Options of the launchpad: typed, described and validated."""

from __future__ import annotations

from typing import Any

import pytest
from dagster import AssetChecksDefinition

from tts_assets.core.compute import Shape
from tts_assets.core.config import ConfigError
from tts_assets.definitions import build_assets
from tts_assets.orchestration.program_asset import Machines, Training
from tts_assets.settings import load_settings
from tts_assets.sft.config import SftRecipe

MACHINES = frozenset({"gpus", "processes", "cpus", "memory_gb", "hours"})
CORPORA = ["asterisk_en"]
EVERYTHING: dict[str, Any] = {
    "codec": {"decoder": {"corpora": {"asterisk_en": 1.0}}},
    "speakers": {"corpora": CORPORA, "train": {}, "purity": {}},
    "external_models": {
        "python": "/opt/coqui/bin/python",
        "recipes": {"other": {"family": "vits", "corpora": CORPORA}},
    },
}
TRAINED = {"codec", "codec_decoder", "sft/announcer", "rlhf/announcer_grpo", "speaker_encoder"}
LAUNCHED = {
    *("raw_corpus", "speech_segments", "filtered_samples", "codec_shards", "token_arrays"),
    *("codec_report", "resynthesis"),
    *("serving/announcer", "serving/announcer_grpo", "speaker_report", "speaker_purity"),
    *("report/announcer", "report/announcer_grpo", "report/other", "family/other", "spoken/other"),
}
RECIPE = {"base": {"llama": {}}, "corpora": {"a": 1}}


def launching() -> dict[str, dict[str, Any]]:
    """The fields that the launchpad offers, by asset that launches a program."""
    environment = {"TTS_PROFILE": "codec_demo"}
    found: dict[str, dict[str, Any]] = {}
    for made in build_assets(load_settings(environment=environment, overrides=EVERYTHING)):
        if (
            not isinstance(made, AssetChecksDefinition)
            and "launcher" in made.required_resource_keys
        ):
            fields = getattr(made.op.config_schema.config_type, "fields", {})
            found |= {key.to_user_string(): fields for key in made.keys}
    return found


def test_every_launchpad_field_has_a_type_and_a_description() -> None:
    offered = launching()
    for asset, fields in offered.items():
        for name, field in fields.items():
            assert field.description and not field.is_required, f"{asset}: {name}"
            assert field.config_type.kind.name == "NONEABLE", f"{asset}: {name}"
            assert field.config_type.inner_type.key in ("IntSourceType", "Float"), name
    assert {asset: frozenset(fields) for asset, fields in offered.items()} == {
        **dict.fromkeys(TRAINED, MACHINES | {"steps", "seed"}),
        **dict.fromkeys(LAUNCHED, MACHINES),
    }


def test_the_form_has_the_steps_and_the_seed_of_the_recipe() -> None:
    """Dagster fills the editor of the launchpad with defaults that are not null."""
    settings = load_settings(environment={})
    for key, recipe in {"sft": settings.sft, "rlhf": settings.rlhf}.items():
        for name, values in recipe.items():
            fields = launching()[f"{key}/{name}"]
            shown = {name: fields[name].default_value for name in ("steps", "seed")}
            assert shown == {"steps": values.steps, "seed": values.seed}


def test_without_options_recipe_and_shape_are_unchanged() -> None:
    recipe, shape = SftRecipe.model_validate({**RECIPE, "steps": 7}), Shape(processes=3)
    assert Training().of_recipe(recipe) is recipe
    assert Training().of(shape) is shape
    form = Training.shown_for(recipe)
    assert form().steps == 7 and form(hours=1).of_recipe(recipe) is recipe
    assert form(steps=8).of_recipe(recipe).steps == 8


def test_steps_replace_epochs() -> None:
    recipe = SftRecipe.model_validate({**RECIPE, "epochs": 2.0, "batch_tokens": 4096})
    asked = Training(steps=5).of_recipe(recipe)
    assert (asked.steps, asked.epochs, asked.batch_tokens) == (5, None, 4096)


def test_ranks_follow_gpus_and_invalid_options_are_rejected() -> None:
    assert Machines(gpus=4, hours=2).of(Shape(gpus=1, memory_gb=9)) == Shape(
        gpus=4, memory_gb=9, hours=2
    )
    with pytest.raises(ConfigError, match=r"the launchpad.*2 processes cannot share 1 GPUs"):
        Machines(gpus=1, processes=2).of(Shape())
