"""One thing that the doctor found, and the folder it looks at."""

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from imod_core.artifacts import MANIFEST, read_json
from imod_core.errors import ImodError
from imod_export.tensors import Checkpoint, read_checkpoint


@dataclass(frozen=True)
class Finding:
    """What, why it hurts, and the command that mends it."""

    check: str
    """The family: `weights`, `keys`, `companions` and so on."""
    what: str
    why: str
    mend: str
    level: Literal["wrong", "note"] = "wrong"
    """`wrong` makes the command end with 1; a `note` is worth knowing."""


class Patient:
    """A model folder, its parts read once and only when asked for."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; empty where it cannot be read, which `storage` reports."""
        return self.json("config.json")

    @property
    def core(self) -> dict[str, Any]:
        """The part that speaks of language and media: an omni model's thinker."""
        return self.config.get("thinker_config") or self.config

    @property
    def text(self) -> dict[str, Any]:
        """The language model's part."""
        return self.core.get("text_config") or self.core

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The weights' headers; None where they cannot be read, which `weights` reports."""
        try:
            return read_checkpoint(self.folder)
        except ImodError:
            return None

    @cached_property
    def base(self) -> str:
        """Where the base lies or is named, for commands; a stand-in where nothing tells."""
        manifest = self.json(MANIFEST)
        return str((manifest.get("base") or {}).get("path") or self.config.get("_name_or_path") or "BASE")

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; empty where it is not there or no object."""
        try:
            return read_json(self.folder / name) if (self.folder / name).is_file() else {}
        except ImodError:
            return {}

    def has(self, *names: str) -> bool:
        """Whether one of the files is there."""
        return any((self.folder / name).is_file() for name in names)

    def copy(self, *names: str) -> str:
        """The command that takes files over from the base."""
        files = " ".join(shlex.quote(f"{self.base}/{name}") for name in names)
        return f"cp {files} {shlex.quote(str(self.folder))}/"

    def merge_again(self, base: str | None = None) -> str:
        """The command that makes the folder anew, from its base or another."""
        return f"imod export --merge ADAPTER --base {shlex.quote(base or self.base)} --out NEW"

    def edit(self, change: str, name: str = "config.json") -> str:
        """The command that changes a JSON file: `change` is Python on its object `c`."""
        path = json.dumps(str(self.folder / name))
        code = f"import json, pathlib; p = pathlib.Path({path}); c = json.loads(p.read_text()); {change}; "
        return f"python -c {shlex.quote(code + 'p.write_text(json.dumps(c, indent=2))')}"
