"""What a look at one part of the machine found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """``cost``: what does not work without it; ``remedy``: what to type. Empty where it is fine.

    ``needed``: the chosen profile does not run without it.
    """

    name: str
    fine: bool
    found: str
    cost: str = ""
    remedy: str = ""
    needed: bool = False

    @property
    def state(self) -> str:
        if self.fine:
            return "fine"
        return "missing, and needed" if self.needed else "missing"


def fine(name: str, found: str) -> Finding:
    return Finding(name, True, found)


def missing(name: str, found: str, cost: str, remedy: str, needed: bool = False) -> Finding:
    return Finding(name, False, found, cost, remedy, needed)
