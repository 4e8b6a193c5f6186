"""What cannot be compared with the base is said to be no merge of it."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from imod_core.errors import InputError
from imod_export.export import ExportSettings, export
from imod_export.unmerge import unmerge

from .bare import write_bare


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An adapter, a base with buffers that no merge reads, and their merge."""
    root = tmp_path_factory.mktemp("buffers")
    tensors = {
        "q_proj.weight": torch.randn(8, 8, generator=torch.Generator().manual_seed(0)),
        "mean": torch.tensor([0.1, 1e300], dtype=torch.float64),
        "count": torch.tensor([3, 2**40]),
    }
    adapter, base = write_bare(root, tensors)
    export(adapter, root / "out", base, ExportSettings(parity=False, dtype="bfloat16"))
    return root


def test_a_merge_in_another_dtype_is_the_base_but_for_its_update(folders):
    found = unmerge([folders / "adapter"], folders / "out", folders / "base", ExportSettings())
    assert [residual.name for residual in found] == ["q_proj.weight"]


@pytest.mark.parametrize(
    ("name", "dtype", "stored"),
    [("mean", torch.float32, "F64"), ("count", torch.bfloat16, "I64"), ("mean", torch.int8, "F64")],
)
def test_a_tensor_in_a_dtype_that_no_merge_gives_it_is_named(folders, tmp_path, name, dtype, stored):
    tensors = load_file(folders / "out" / "model.safetensors")
    save_file({**tensors, name: tensors[name].to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=rf"'{name}' is \w+ \[2\] in .*, expected {stored} \[2\]: it is no merge"):
        unmerge([folders / "adapter"], tmp_path, folders / "base", ExportSettings())
