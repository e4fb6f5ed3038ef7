"""Griffe extension of the API reference: turns Sphinx roles in docstrings into Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":\w+:`~?([^`]*)`")


class SphinxRoles(Extension):
    """Rewrites Sphinx roles to code style, and ``::`` at the end of a line to ``:``."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of ``obj`` in place."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            text = re.sub(r"::$", ":", text, flags=re.M)
            obj.docstring.value = text
