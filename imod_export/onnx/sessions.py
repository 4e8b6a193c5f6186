"""The graphs of an onnx folder in onnxruntime: on CUDA if onnxruntime-gpu finds a device, else on the CPU.

The cache stays where it was made: the decoder's outputs are bound as values on the device and given back as inputs.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imod_core.errors import InputError, MissingExtraError, MissingFileError
from imod_export.onnx.layout import DECODER, FULL, KEEP, SUFFIXES, file_name, variants_in

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
QUIET = 3
"""onnxruntime's log level for errors alone."""


class Graphs:
    """Sessions of one form of a folder's graphs, each opened when it is first used.

    Args:
        folder: with the files of `layout`.
        variant: `fp32`, `fp16`, `int8` or `q4`; None takes the first that is there.
        threads: of the CPU; 0 for as many as there are cores.

    Raises:
        MissingFileError, MissingExtraError: no graphs of that form, or no onnxruntime.
    """

    def __init__(self, folder: Path, variant: str | None = None, threads: int = 0):
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("onnxruntime", "onnx") from None
        there = variants_in(folder)
        if variant is None:
            variant = there[0] if there else FULL
        if variant not in SUFFIXES or variant not in there:
            found = f"only {', '.join(there)}" if there else "no graphs"
            raise MissingFileError(f"{folder} holds {found}, not '{variant}': write them with `imod export --onnx`.")
        self.folder, self.variant, self._ort = folder, variant, onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.log_severity_level = QUIET
        self._sessions: dict[str, Any] = {}

    def session(self, component: str) -> Any:
        """The session of a graph.

        Raises:
            InputError: onnxruntime cannot read it.
        """
        if component not in self._sessions:
            path = self.folder / file_name(component, self.variant)
            wanted = [p for p in (CUDA, CPU) if p in self._ort.get_available_providers()]
            try:
                self._sessions[component] = self._ort.InferenceSession(path, self._options, providers=wanted)
            except Exception as error:  # onnxruntime raises a class of its own for each fault
                raise InputError(f"{path} cannot be opened by onnxruntime ({str(error).splitlines()[0]}).") from None
        return self._sessions[component]

    def run(self, component: str, feeds: dict[str, NDArray]) -> NDArray[np.float32]:
        """The one output of an encoder or of the embedding table."""
        (output,) = self.session(component).run(None, feeds)
        return output

    @cached_property
    def device(self) -> str:
        """`cuda` or `cpu`, as the decoder found it."""
        return "cuda" if CUDA in self.session(DECODER).get_providers() else "cpu"

    def cache(self) -> "Decoding":
        """A new, empty cache."""
        return Decoding(self)


class Decoding:
    """The decoder with its cache, one sequence."""

    def __init__(self, graphs: Graphs):
        self._session, self._device, ort = graphs.session(DECODER), graphs.device, graphs._ort
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._takes_keep = any(i.name == KEEP for i in self._session.get_inputs())
        self.length = 0
        """Tokens in the cache."""
        empty = {
            i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), TYPES[i.type])
            for i in self._session.get_inputs()
            if i.name.startswith("past_key_values.")
        }
        self._past = {name: ort.OrtValue.ortvalue_from_numpy(zeros, self._device) for name, zeros in empty.items()}

    def step(self, embeds: NDArray[np.float32], positions: NDArray[np.int64], keep: int = 1) -> NDArray[np.float32]:
        """Append `embeds (L, D)` at `positions (L,)` or `(3, L)`; logits `(keep, V)` of the last, of all if 0."""
        self.length += len(embeds)
        binding = self._session.io_binding()
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds[None]))
        binding.bind_cpu_input("attention_mask", np.ones((1, self.length), np.int64))
        binding.bind_cpu_input("position_ids", np.ascontiguousarray(positions[..., None, :]))
        if self._takes_keep:
            binding.bind_cpu_input(KEEP, np.array(keep, np.int64))
        for name, value in self._past.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self._device)
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        self._past = dict(zip(self._past, present, strict=True))
        return logits.numpy()[0, -keep:].astype(np.float32, copy=False)
