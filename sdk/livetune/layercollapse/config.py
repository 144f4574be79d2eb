"""How a model is prepared, as a versioned value that goes through JSON and back."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Final, Literal, get_args

from livetune.layercollapse.errors import ArgumentError

Mode = Literal["paper"]

CONFIG_VERSION: Final = 1


@dataclass(frozen=True)
class PrepareConfig:
    """How `prepare_` replaces activations.

    Raises:
        ArgumentError: The mode or the version is unknown.
    """

    mode: Mode = "paper"
    """`paper`: the line that replaces the activation is the identity, so that a ReLU becomes a PReLU
    (arXiv 2311.17943, section 3)."""
    version: int = CONFIG_VERSION
    """Version of this record's format."""

    def __post_init__(self) -> None:
        if self.version != CONFIG_VERSION:
            raise ArgumentError(f"PrepareConfig.version must be {CONFIG_VERSION}, got {self.version!r}")
        if self.mode not in get_args(Mode):
            raise ArgumentError(f"PrepareConfig.mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")

    def to_json(self) -> str:
        """Return the configuration as a JSON object with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "PrepareConfig":
        """Read what `to_json` wrote.

        Raises:
            ArgumentError: The text is no JSON object, has a field that this version does not know or lacks one,
                or a value is not accepted.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ArgumentError(f"PrepareConfig must be a JSON object, got {text!r}: {error}") from error
        known = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or set(record) != known:
            raise ArgumentError(f"PrepareConfig must be a JSON object with {sorted(known)}, got {text!r}")
        return cls(**record)
