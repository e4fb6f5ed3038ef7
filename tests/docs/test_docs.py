"""What the documents quote is in the code."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("jobs", "resources", "scripts", "sensors", "tts_assets")
HEADINGS = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.M)


def literals() -> Iterator[str]:
    """All text of the code that could be shown; what is filled in is ``…``."""
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(part.value) if isinstance(part, ast.Constant) else "…"
                        for part in node.values
                    )


@pytest.fixture(scope="module")
def said() -> list[str]:
    return list(literals())


@pytest.mark.parametrize("message", HEADINGS)
def test_each_message_is_one_of_the_code(message: str, said: list[str]) -> None:
    """Its fixed parts stand in one literal of the code, in their order."""
    parts = [re.escape(part) for part in message.split("…") if part]
    pattern = re.compile(".*".join(parts), re.S)
    assert any(pattern.search(text) for text in said), message


def test_many_messages_are_explained() -> None:
    assert len(HEADINGS) > 30


def test_the_configuration_reference_is_current() -> None:
    made = runpy.run_path(str(ROOT / "scripts/make_configuration_reference.py"))
    assert (ROOT / "docs/configuration.md").read_text() == made["reference"](), (
        "run: python scripts/make_configuration_reference.py"
    )
