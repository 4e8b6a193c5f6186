"""Links of the chain after the merged model: other ways to run the same folder, asked the same probes.

A link's class is found by the name before a colon, what follows is its variant: `vllm`, `onnx:int8`. A folder or a URL
is a link too.
"""

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch

from imod_core.errors import InputError
from imod_export.probes import Probe
from imod_export.tolerances import Tolerance

LORA = "vllm:lora"
"""vLLM on the base with the adapter beside it."""
KINDS = {
    "vllm": "imod_export.vllm_link:VllmLink",
    "onnx": "imod_export.onnx.link:OnnxLink",
}


@dataclass(frozen=True)
class Question:
    """A probe, and what the reference made of it."""

    probe: Probe
    text: str
    """Rendered by the chat template, media placeholders not yet expanded."""
    ids: list[int]
    """Token ids with placeholders expanded."""
    answer: list[int]
    """The reference's greedy answer."""


@dataclass(frozen=True)
class Reply:
    """What a link made of a question."""

    ids: list[int] | None
    """Its token ids of the prompt; None where it does not tell."""
    greedy: list[int]
    text: str
    first: int
    """Which answer token the first row of `logits` chose; negative for rows within the question."""
    logits: torch.Tensor
    """`(K, V)` with the reference's answer teacher-forced, or `(K, M)` log probabilities of the tokens `support`."""
    support: torch.Tensor | None = None
    """`(K, M)` token ids."""


class Link(Protocol):
    """A way to run a model folder."""

    name: str
    arithmetic: str
    """dtype that it computes in."""
    tolerance: Tolerance
    """How far it may be from the merged model in transformers, computed in float32."""
    weaves: bool
    """Whether it can read videos with their sound woven in."""

    def ask(self, questions: list[Question]) -> dict[str, Reply]:
        """Replies by the probes' names."""
        ...


@dataclass(frozen=True)
class Unmerged:
    """What a merged folder was made of."""

    base: Path | None
    adapters: tuple[tuple[Path, float], ...]
    """Folder and weight."""
    limited: bool = False
    """Whether the merged folder's processor, and not the base's, reads media as training did."""


def make_link(spec: str, folder: Path, stored: str, unmerged: Unmerged | None = None) -> Link:
    """The link that `spec` names, over `folder` with its weights `stored` in that dtype.

    Raises:
        InputError: there is none of this name, or it cannot run here.
    """
    if spec.startswith(("http://", "https://")):
        return _load("imod_export.server_link:ServerLink")(spec, folder, stored)
    if spec == LORA:
        return _load("imod_export.vllm_link:VllmLoraLink")(folder, unmerged)
    kind, _, variant = spec.partition(":")
    if kind in KINDS:
        try:
            return _load(KINDS[kind])(folder, variant or None)
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("imod_export"):
                raise InputError(f"--against {spec}: this installation has no {kind} link; leave it out.") from None
            raise
    if Path(spec).is_dir():
        return _load("imod_export.folder_link:FolderLink")(Path(spec))
    raise InputError(f"--against {spec} is neither {', '.join([*KINDS, LORA])}, a model folder nor a URL.")


def default_links(folder: Path) -> tuple[str, ...]:
    """What a folder can be compared with here: the variants of its ONNX graphs, and vLLM where it is installed."""
    graphs = sorted((folder / "onnx").glob("decoder_model_merged*.onnx"))
    variants = [graph.stem.removeprefix("decoder_model_merged").lstrip("_") for graph in graphs]
    onnx = [f"onnx:{variant}" if variant else "onnx" for variant in variants] if find_spec("imod_export.onnx") else []
    return (*onnx, *(["vllm"] if find_spec("vllm") else []))


def _load(place: str):
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
