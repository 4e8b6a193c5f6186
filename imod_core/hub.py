"""A model by the name a user gives it: a folder, or a repository of the Hugging Face hub."""

from pathlib import Path

from imod_core.errors import MissingFileError

PICKLES = ("*.bin", "*[!t].pt", "*.pth", "*.h5", "*.msgpack", "*.gguf")
"""Files of a repository that are left there: safetensors hold the same weights and run no code. The one `.pt` that
is wanted is Qwen omni's `spk_dict.pt`, voices that transformers reads as tensors only."""


def is_hub_name(name: str | Path) -> bool:
    """Whether `name` is OWNER/NAME and no folder."""
    text = str(name)
    return isinstance(name, str) and text.count("/") == 1 and text[0] not in "./~" and not Path(text).is_dir()


def model_folder(name: str | Path, what: str) -> Path:
    """The folder of a model: itself, or the local copy of a hub repository, downloaded if need be.

    Args:
        name: a folder, or OWNER/NAME on the hub.
        what: how messages call it, as `base`.

    Raises:
        MissingFileError: it is neither, or the hub cannot be reached.
    """
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    if not is_hub_name(name):
        raise MissingFileError(
            f"The {what} '{name}' is not a model folder (no config.json): build one with imod base build, or name a "
            "model of the hub as OWNER/NAME."
        )
    return download(str(name), f"The {what} '{name}'")


def describing_folder(name: str | Path, what: str) -> Path:
    """As `model_folder`, but of a hub repository only what describes the model: no weights are downloaded."""
    if is_hub_name(name) and not (Path(name) / "config.json").is_file():
        return download(str(name), f"The {what} '{name}'", weights=False)
    return model_folder(name, what)


def download(name: str, subject: str, weights: bool = True) -> Path:
    """The local copy of a hub repository, downloaded if need be; pickles are left there."""
    from huggingface_hub import snapshot_download

    left_there = list(PICKLES) if weights else [*PICKLES, "*.safetensors"]
    try:
        return Path(snapshot_download(name, ignore_patterns=left_there))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingFileError(
            f"{subject} is neither a folder nor to be had from the hub ({reason}): give a folder."
        ) from None
