"""Dataclasses that the type checker holds to be frozen, and that are made as fast as others.

A frozen dataclass writes its fields through `object.__setattr__`: twice the time, a seventh of what a change costs the
daemon. What is made for every change is checked by mypy instead (`make lint`); everything else stays frozen for real.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses

    def dataclass(*, slots, **_frozen):
        """Makes a dataclass that may be hashed because nobody changes it."""
        return dataclasses.dataclass(slots=slots, unsafe_hash=True)


__all__ = ["dataclass"]
