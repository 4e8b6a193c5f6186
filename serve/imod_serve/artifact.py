"""What a model folder says about how it wants to be served: read from its JSON files, nothing is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imod_core.artifacts import read_json
from imod_core.errors import InputError, MissingFileError
from imod_core.modality import modalities
from imod_core.sampling import FrameSampling, stored_settings


@dataclass(frozen=True)
class Artifact:
    """A merged model folder as the server sees it."""

    folder: Path
    """Absolute."""
    model_type: str
    """As in config.json, `avt` or any that transformers knows."""
    modalities: tuple[str, ...]
    """Those of image, audio, video that the model takes."""
    max_positions: int | None
    """Longest prompt and answer that the language model was made for, in tokens."""
    dtype: str | None
    """`float32`, `bfloat16` or `float16`, as the weights lie on disk."""
    frames: FrameSampling | None
    """Which frames of a video training takes; None for a model without videos."""
    frame_tokens: int | None
    """Most tokens of a video's frame, where the processor is told to cap them."""
    chat_template: Path | None
    """A template file of its own, which wins over one inside the tokenizer's JSON."""

    @property
    def name(self) -> str:
        """The model's name for requests: the folder's."""
        return self.folder.name


def read_artifact(folder: Path | str) -> Artifact:
    """Read a model folder; refuses adapters, folders without weights and what is no model folder at all."""
    folder = Path(folder).expanduser().resolve()
    config = _read_config(folder)
    _check_weights(folder)
    core = config.get("thinker_config", config)
    text = core.get("text_config") or core
    template = folder / "chat_template.jinja"
    taken = modalities(config)
    return Artifact(
        folder=folder,
        model_type=config.get("model_type", "unknown"),
        modalities=taken,
        max_positions=text.get("max_position_embeddings"),
        dtype=_first(config, core, text, keys=("dtype", "torch_dtype")),
        frames=FrameSampling.read(folder) if "video" in taken else None,
        frame_tokens=_frame_tokens(folder) if "video" in taken else None,
        chat_template=template if template.is_file() else None,
    )


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder: expected a model folder as `imod export` writes it.")
    if (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} holds an adapter, not a model: merge it with `imod export --merge {folder} --out DIR`, "
            f"or serve it beside its base with `imod serve --lora {folder}`."
        )
    path = folder / "config.json"
    if not path.is_file():
        raise MissingFileError(f"{folder} has no config.json: expected a model folder as `imod export` writes it.")
    return read_json(path)


def _check_weights(folder: Path) -> None:
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise MissingFileError(f"{folder} holds no weights: expected *.safetensors beside config.json.")


def _frame_tokens(folder: Path) -> int | None:
    _, settings = stored_settings(folder)
    return settings.get("max_video_tokens") if settings.get("cap_pixels_per_frame") else None


def _first(*places: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((place[key] for place in places for key in keys if place.get(key)), None)
