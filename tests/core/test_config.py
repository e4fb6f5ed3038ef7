"""Renamed and removed keys: rejected, and unchanged in the canonical form."""

from collections.abc import Mapping
from typing import ClassVar

import pytest
from pydantic import Field

from tts_assets.core.config import Config, ConfigError, canonical_json


class Inner(Config):
    renamed_keys: ClassVar[Mapping[str, str]] = {"share": "window_share"}
    window_share: float = 0.5


class Outer(Config):
    renamed_keys: ClassVar[Mapping[str, str]] = {"judges": "discriminators"}
    discriminators: Inner = Inner()
    several: tuple[Inner, ...] = (Inner(),)
    named: dict[str, Inner] = Field(default_factory=lambda: {"a": Inner()})


def test_a_former_name_is_rejected_with_the_present_one() -> None:
    with pytest.raises(ConfigError, match="'judges' is now called 'discriminators'"):
        Outer.parse({"judges": {}}, "here")


def test_the_canonical_form_keeps_former_names_at_any_depth() -> None:
    inner = '{"share":0.5}'
    expected = f'{{"judges":{inner},"named":{{"a":{inner}}},"several":[{inner}]}}'
    assert canonical_json(Outer()) == expected
    assert canonical_json({"recipe": Outer()}) == f'{{"recipe":{expected}}}'
    assert Outer().canonical(exclude={"several", "named"}) == {"judges": {"share": 0.5}}
    assert "discriminators" in Outer().to_json()  # what programs read has the present names


class Fewer(Config):
    removed_keys: ClassVar[Mapping[str, object]] = {"objective": "hinge"}
    channels: int = 16


def test_a_removed_key_is_rejected_and_stays_in_the_canonical_form() -> None:
    with pytest.raises(ConfigError, match="'objective' was removed, its value is always \"hinge\""):
        Fewer.parse({"objective": "hinge"}, "here")
    assert canonical_json(Fewer()) == '{"channels":16,"objective":"hinge"}'
