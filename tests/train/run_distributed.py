"""One of two processes of `test_distributed.py`: gradients under DDP and under FSDP2, written by the first one.

python run_distributed.py FOLDER RANK
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))
from conftest import make_inputs, make_lora

from imod_train import ImodConfig, attach
from imod_train.fused import FusedLora

WORLD = 2


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Whole gradients of A and B, the same on every process."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            gradient = parameter.grad
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found[name.removeprefix("module.")] = whole.clone()
    return found


def shard(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """FSDP2 over the layers and what is around them."""
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def main() -> None:
    """Each process has rows of its own; both wrappers average over the processes."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    store = dist.FileStore(str(folder / "store"), WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    taken, forward = [], FusedLora.forward
    FusedLora.forward = staticmethod(lambda *args: (taken.append(1), forward(*args))[1])
    results = {}
    mesh = init_device_mesh("cpu", (WORLD,))
    for kind in ("ddp", "fsdp", "fsdp_first"):
        taken.clear()
        model = make_lora()
        if kind == "fsdp_first":
            shard(model, mesh)
        handle = attach(model, ImodConfig(lambda1=1.0, lambda2=1.0))
        if kind == "fsdp":
            shard(model, mesh)
        wrapped = DistributedDataParallel(model) if kind == "ddp" else model
        wrapped(**make_inputs(seed=rank)).loss.backward()
        results |= {f"{kind}/{name}": gradient for name, gradient in gradients(wrapped).items()}
        assert len(taken) == len(handle.modules), f"{kind}: {len(taken)} of {len(handle.modules)} on the short way"
    if rank == 0:
        save_file({name: gradient.contiguous() for name, gradient in results.items()}, folder / "gradients.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
