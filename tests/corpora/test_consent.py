"""Consent is required from all corpora of a recipe before its model is published."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tts_assets.core.config import ConfigError
from tts_assets.corpora.config import Consent, ConsentError, check_consents
from tts_assets.settings import load_settings

TODAY = date(2026, 11, 21)
ANN = Consent(who="Ann", purpose="the audio guide", until=date(2026, 11, 21), basis="contract 7")
NEW = {"path": "new", "reader": "folder", "language": "en"}


def test_consent_is_valid_until_its_last_day() -> None:
    agreed = {"guide": ANN, "robot": "synthetic"}
    assert check_consents(agreed, "no", TODAY) == agreed
    with pytest.raises(ConsentError, match=r"consent of Ann \(corpora.guide\) ended on 2026-11-21"):
        check_consents(agreed, "no", date(2026, 11, 22))


def test_missing_consent_is_refused() -> None:
    with pytest.raises(
        ConsentError, match=r"serving/x is not published: corpora.guide .*consent ="
    ):
        check_consents({"guide": None}, "serving/x is not published", TODAY)


def test_consent_in_words() -> None:
    assert ANN.in_words() == "Ann: the audio guide, until 2026-11-21 (contract 7)"


@pytest.mark.parametrize("consent", [{"who": "Ann"}, {"who": "A\nnn", "purpose": "x"}, "yes", {}])
def test_incomplete_consent_is_refused(consent: Any) -> None:
    with pytest.raises(ConfigError, match="consent"):
        load_settings(overrides={"corpora": {"new": NEW | {"consent": consent}}}, environment={})


def test_recipes_need_the_consent_of_their_base_recipes(tmp_path: Path) -> None:
    """A fine-tuned voice needs the consent of its base; an aligned voice that of its prompts."""
    corpus = NEW | {"path": str(tmp_path)}
    base = {"recipe": "announcer"}
    settings = load_settings(
        overrides={
            "corpora": {"interview": corpus, "prompts": corpus | {"consent": "synthetic"}},
            "sft": {"second": {"base": base, "corpora": {"interview": 1.0}, "steps": 1}},
            "rlhf": {"third": {"base": "second", "prompts": {"corpora": ["prompts"]}}},
        },
        environment={},
    )
    assert list(settings.consents("announcer")) == ["asterisk_en"]
    second, third = settings.consents("second"), settings.consents("third")
    assert list(second) == ["asterisk_en", "interview"] and second["interview"] is None
    assert third == second | {"prompts": "synthetic"}
