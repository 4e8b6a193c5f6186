"""Let CPU torch live beside CUDA builds of torchvision, torchaudio and torchcodec.

Package indexes often carry only the CUDA builds of these three. Beside a CPU torch their shared libraries do
not load, and then `import torchvision`, and with it peft and most of transformers, fails. `autoload` is an
entry point of the group `torch.backends`, which torch calls at the end of its own import, in every process:
early enough for everybody who imports one of the three afterwards.

What works then: torchvision's transforms (transformers' image and video processors) and torchaudio's
pure-Python part (resampling, mel filters). What does not: `torchvision.ops.nms`, `torchvision.io`,
torchaudio's compiled operators; torchcodec counts as not installed.

Nothing is imported here at the top, and nothing is touched on a GPU build of torch or where the libraries
load.
"""

import ctypes
import importlib.util
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_keep_alive: list[Any] = []
"""Declarations in torch's registry vanish with their Library object."""


def autoload() -> None:
    """Mend what cannot load beside this torch. Never raises: torch's own import would fail with it."""
    with suppress(Exception):
        import torch

        if torch.version.cuda is not None or torch.version.hip is not None:
            return
    for mend in (_mend_torchvision, _mend_torchaudio, _hide_torchcodec):
        with suppress(Exception):
            mend()


def _package_folder(name: str) -> Path | None:
    """Where an installed package lies, found without importing it; None if there is none."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _loads(library: Path) -> bool:
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _mend_torchvision() -> None:
    """Declare the two operators for which torchvision registers shape functions while it is imported."""
    folder = _package_folder("torchvision")
    if folder is None or _loads(folder / "_C.so"):
        return
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for schema in TORCHVISION_SCHEMAS:
        library.define(schema)
    _keep_alive.append(library)


def _mend_torchaudio() -> None:
    """Put a stand-in where torchaudio loads its compiled part, saying that there is none."""
    folder = _package_folder("torchaudio")
    library = folder / "lib" / "_torchaudio.abi3.so" if folder else None
    if library is None or not library.exists() or _loads(library):
        return
    stand_in = ModuleType("torchaudio._extension", "No compiled operators: built for another torch.")
    stand_in.__dict__.update(
        __path__=[str(library.parent.parent / "_extension")],
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=_without_operator,
    )
    sys.modules["torchaudio._extension"] = stand_in


def _without_operator(function: Any) -> Any:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled operators, built for this torch.")

    return fail


def _hide_torchcodec() -> None:
    """Make torchcodec count as not installed, for `import` and for transformers' availability check."""
    folder = _package_folder("torchcodec")
    # Reverse order: the libraries at the end of the alphabet do not pull FFmpeg into the process.
    libraries = sorted(folder.glob("libtorchcodec_*.so"), reverse=True) if folder else []
    if not libraries or any(_loads(library) for library in libraries):
        return
    sys.modules["torchcodec"] = None  # type: ignore[assignment]
    checks = sys.modules.get("transformers.utils.import_utils")
    if checks is not None:
        checks.is_torchcodec_available.cache_clear()
