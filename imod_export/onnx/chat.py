"""Conversations to text by a Jinja template in a sandbox, and text to token ids, both as transformers does."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imod_core.artifacts import read_json
from imod_core.errors import InputError, MissingExtraError, MissingFileError
from imod_core.samples import Message, conversation, token_pattern

SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token")


class Chat:
    """The tokenizer and chat template of a model folder.

    Raises:
        MissingFileError: the folder has no tokenizer.json or no chat template.
        MissingExtraError: tokenizers or jinja2 is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError(str(error.name), "onnx") from None
        if not (folder / "tokenizer.json").is_file():
            raise MissingFileError(f"{folder} has no tokenizer.json: copy it from the model folder.")
        self.tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        settings = _optional(folder / "tokenizer_config.json")
        self._specials = {name: _content(settings[name]) for name in SPECIALS if settings.get(name)}
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        sandbox.globals["raise_exception"] = _refuse
        self._source = _template(folder, settings)
        self._template = sandbox.from_string(self._source)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that waits for the assistant's next turn, media as single placeholders."""
        turns = conversation(messages)
        return self._template.render(messages=turns, add_generation_prompt=True, tools=None, **self._specials)

    def encode(self, text: str) -> list[int]:
        """Token ids; the template has written the special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def special_tokens(self) -> re.Pattern[str]:
        """What finds the special tokens that matter in a text: those with a role, and those the template writes."""
        added = [token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special]
        return token_pattern({*self._specials.values(), *(token for token in added if token in self._source)})

    def token_id(self, token: str) -> int:
        """The id of a token that must exist.

        Raises:
            InputError: it does not.
        """
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise InputError(f"tokenizer.json has no token '{token}', which the model's prompts need.")
        return found


def _template(folder: Path, settings: dict[str, Any]) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = _optional(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if not isinstance(found, str):
        raise MissingFileError(f"{folder} has no chat template: copy chat_template.jinja from the model folder.")
    return found


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else token


def _refuse(message: str) -> None:
    raise InputError(f"The chat template refuses this conversation: {message}")
