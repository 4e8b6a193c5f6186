"""`imod train RECIPE --plan`: what a run will take, before anything is loaded: parameters, memory, tokens, steps, time.

Memory is counted by running a step on tensors without data (`imod_train.footprint`), tokens on rows of the real data
(`imod_train.lengths`). No weight is read; a base on the hub need not be downloaded.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imod_core.console import console
from imod_core.errors import CheckFailed
from imod_core.families.load import load_processor
from imod_core.hub import describing_folder
from imod_core.samples import read_samples
from imod_train.base import attention, context_length, core_config, is_avt_config, skeleton
from imod_train.footprint import Footprint, footprint
from imod_train.items import KEPT_BYTES
from imod_train.lengths import Lengths, avt_lengths, native_lengths, tell_of_long_row
from imod_train.native import SampleEncoder
from imod_train.recipe import Recipe, Stage

CONTEXT_BYTES = 600 << 20
"""What CUDA, its kernels and cuBLAS's workspace take on a GPU beside any tensor."""
SPARE = 1.05
"""Of the tensors on a GPU, for what the allocator holds in pieces that do not fit."""
HEAP_SPARE = 0.4
"""Of the small blocks on a CPU: the heap's gaps, which grow over the first steps. Measured on the embedded scenes with
the smol base: what the steps added to the resident memory was 1.17 of the live tensors after one, 1.4 after two."""
SIDE = 2048
"""Of the square matrices that are multiplied to time the machine."""
SECONDS = 0.5


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run."""

    name: str
    steps: int
    lengths: Lengths
    micro_batches: int
    """A step."""
    footprint: Footprint
    kept: int
    """Bytes of the items that stay in memory on the host."""
    batch: int
    """Bytes of one micro-batch of media and ids."""

    @property
    def flops(self) -> float:
        """Of all steps, in the language model."""
        return float(self.steps * self.micro_batches * self.footprint.flops)


@dataclass(frozen=True)
class Plan:
    """A whole run."""

    device: str
    """`cuda` or `cpu`."""
    program: int
    """Bytes that the program takes beside any tensor: CUDA's context, or on a CPU Python with its libraries."""
    mapped: int
    """Bytes of the weight files, which stay resident beside the weights read from them; 0 on a GPU."""
    stages: tuple[StagePlan, ...]
    rate: float | None
    """FLOP a second of plain matrix products here, where the plan is for this device."""

    def memory(self, stage: StagePlan) -> dict[str, int]:
        """Bytes by kind at the peak of a stage."""
        f = stage.footprint
        found = {
            "frozen weights": f.weights,
            "adapter": f.adapter,
            "optimizer": f.optimizer,
            "gradients": f.gradients,
            "activations": f.activations,
            "logits": f.logits,
            "batch": stage.batch,
        }
        if self.device == "cuda":
            spare = int((SPARE - 1) * sum(found.values()))
            return {**found, "allocator": spare, "program": self.program}
        heap = int(HEAP_SPARE * f.small)
        return {**found, "kept media": stage.kept, "heap": heap, "weight files": self.mapped, "program": self.program}

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: of a stage, or while the weights are read."""
        loading = self.program + self.mapped + max(s.footprint.weights for s in self.stages)
        return max(loading, *(sum(self.memory(stage).values()) for stage in self.stages))

    @property
    def seconds(self) -> float | None:
        """The least that the run can take: its products at the rate of plain ones."""
        return sum(stage.flops for stage in self.stages) / self.rate if self.rate else None


def make_plan(recipe: Recipe, device: str | None = None) -> Plan:
    """The plan of a run on `device`, this machine's if none is named.

    Raises:
        InputError, MissingFileError: as training would.
    """
    here = "cuda" if torch.cuda.is_available() else "cpu"
    device = device or here
    program = _resident_bytes() if device == "cpu" else CONTEXT_BYTES
    folder = describing_folder(recipe.base, "base")
    config = core_config(folder)
    processor = load_processor(folder)
    stages = tuple(_stage(recipe, stage, config, processor, device) for stage in recipe.stages)
    mapped = sum(path.stat().st_size for path in folder.glob("*.safetensors")) if device == "cpu" else 0
    rate = _rate(getattr(torch, recipe.precision), device) if device == here else None
    return Plan(device, program, mapped, stages, rate)


def show_plan(plan: Plan, memory: int | None = None) -> None:
    """Print a plan, and the verdict on `memory` bytes.

    Raises:
        CheckFailed: they do not suffice.
    """
    from rich.console import Console

    output = Console()
    for stage in plan.stages:
        for line in _stage_lines(plan, stage):
            output.print(line, highlight=False, soft_wrap=True)
    if plan.seconds is not None and plan.rate:
        output.print(
            f"Time: at least {_duration(plan.seconds)} here, at the {plan.rate / 1e12:.2g} TFLOP/s of plain matrix "
            "products; towers, decoding of media and memory traffic come on top.",
            highlight=False,
            soft_wrap=True,
        )
    output.print(f"Peak: {size(plan.peak)} on {plan.device}.", highlight=False, soft_wrap=True)
    if memory is None:
        return
    if plan.peak > memory:
        raise CheckFailed(
            f"{size(memory)} do not suffice for a peak of {size(plan.peak)}: take a smaller micro_batch_size, "
            "gradient_checkpointing, base_quantization or fewer media.video_frames."
        )
    output.print(f"{size(memory)} suffice: {size(memory - plan.peak)} to spare.", highlight=False, soft_wrap=True)


def size(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 1e9:.2f} GB"


def _stage(recipe: Recipe, stage: Stage, config: Any, processor: Any, device: str) -> StagePlan:
    samples = [sample for path in stage.data for sample in read_samples(Path(path))]
    if is_avt_config(config):
        lengths = avt_lengths(samples, processor, config, stage)
    else:
        encoder = SampleEncoder(processor, recipe.media, skeleton(config))
        lengths = native_lengths(samples, encoder, config)
    longest, context = lengths.longest(1).length, context_length(config)
    if context and longest > context and stage.questions_per_row == 1:
        tell_of_long_row(longest, context)
    micro = stage.micro_batch_size or stage.batch_size
    steps = count_steps(stage, lengths.rows)
    console.print(f"A step of stage {stage.name} on tensors without data")
    how = attention() if device == ("cuda" if torch.cuda.is_available() else "cpu") else "sdpa"
    found = footprint(config, recipe, stage, lengths.longest(min(micro, lengths.rows)), how)
    seen = min(lengths.rows, steps * stage.batch_size)
    kept = int(min(seen * lengths.row_bytes, KEPT_BYTES))
    batch = int(2 * micro * lengths.row_bytes)
    return StagePlan(stage.name, steps, lengths, stage.batch_size // micro, found, kept, batch)


def count_steps(stage: Stage, rows: int) -> int:
    """Optimizer steps of a stage as the trainer counts them."""
    if stage.steps is not None:
        return stage.steps
    micro = stage.micro_batch_size or stage.batch_size
    batches = math.ceil(rows / micro)
    return math.ceil((stage.epochs or 1.0) * math.ceil(batches / (stage.batch_size // micro)))


def _stage_lines(plan: Plan, stage: StagePlan) -> Iterator[str]:
    f, mean = stage.footprint, stage.lengths.mean()
    tokens = ", ".join(f"{name} {count:.0f}" for name, count in mean.items())
    yield f"Stage {stage.name}: {stage.steps} steps of {stage.micro_batches} micro-batches"
    yield f"  parameters   {f.parameters:,}, of which {f.trainable:,} learn ({f.trainable / f.parameters:.2%})"
    yield f"  tokens a row {sum(mean.values()):.0f} on average ({tokens}), {stage.lengths.longest(1).length} at most"
    for name, count in plan.memory(stage).items():
        yield f"  {name:<15}{count / 1e6:>12,.0f} MB"
    yield f"  {'together':<15}{sum(plan.memory(stage).values()) / 1e6:>12,.0f} MB"


def _rate(dtype: torch.dtype, device: str) -> float:
    """FLOP a second of square matrix products."""
    left, right = (torch.randn(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    left @ right
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        result = left @ right
        count += 1
        if device == "cuda":
            result[0, 0].item()
    return count * 2 * SIDE**3 / (time.perf_counter() - started)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{max(minutes, 0.1):.1f} minutes"


def _resident_bytes() -> int:
    """What this process holds in memory, which has imported what training imports."""
    import os

    import imod_train.run  # noqa: F401

    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
