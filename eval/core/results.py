"""Results as typed data: written as JSON, and read back with a check of every field.

A result is a frozen dataclass that inherits from `Result`. Its file holds the fields, the name of its format, and
properties for people. msgspec checks the type of each field and names a wrong field.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from typing_extensions import Self

from monet.errors import CheckpointError, ConfigError
from monet.eval.core.achieved import told
from monet.files import atomic_write_json
from monet.json_text import read_json

if TYPE_CHECKING:
    from monet.eval.core.effects import Effects

RESULT_NAME = "result.json"


class Result:
    """What the results of all suites have in common.

    Attributes:
        FORMAT: name and number of the file's layout.
        COMMAND: the command that writes the file.
        TOLD: properties that the file also holds, for people; they are not read back. prose: ignore told
    """

    FORMAT: ClassVar[str]
    COMMAND: ClassVar[str]
    TOLD: ClassVar[tuple[str, ...]] = ("sentence",)

    if TYPE_CHECKING:
        provenance: dict[str, Any]

        @property
        def sentence(self) -> str: ...

    def lines(self) -> list[str]:
        """What a command prints of its result."""
        return [self.sentence, *told(self.provenance)]

    def effects(self) -> Effects:
        """One row for each mask, to compare results of several models.

        Raises:
            ConfigError: results of this kind have no rows.
        """
        raise ConfigError(
            f"results of `{self.COMMAND}` ({self.FORMAT}) are not compared over seeds; give --result only one of them"
        )

    def to_json(self) -> dict[str, Any]:
        """The result as plain lists, numbers and strings."""
        told = {name: getattr(self, name) for name in self.TOLD}
        return {"format": self.FORMAT, **told, **msgspec.to_builtins(self, str_keys=True)}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Build a result from the output of `to_json`.

        Raises:
            CheckpointError: another format, or a field that is missing or of another type; the message names it.
        """
        found = content.get("format") if isinstance(content, dict) else None
        if found != cls.FORMAT:
            raise CheckpointError(f"format {found!r} instead of {cls.FORMAT!r}; run `{cls.COMMAND}` again")
        try:
            return msgspec.convert(content, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise CheckpointError(f"damaged {cls.FORMAT}: {error}; run `{cls.COMMAND}` again") from None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result's file, or the result.json in a folder.

        Raises:
            CheckpointError: the file is missing, unreadable, of another format, or has a field of another type.
        """
        file = Path(path) / RESULT_NAME if Path(path).is_dir() else Path(path)
        try:
            return cls.from_json(read_json(file, CheckpointError))
        except FileNotFoundError:
            raise CheckpointError(f"{file}: no such file; write it with `{cls.COMMAND}`") from None
        except OSError as error:
            raise CheckpointError(f"{file}: unreadable ({error}); run `{cls.COMMAND}` again") from None
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write FOLDER/result.json atomically.

        Raises:
            ValueError: a number is NaN or infinite.
        """
        atomic_write_json(Path(folder) / RESULT_NAME, self.to_json())
