"""Shards by size, their index, and what the formats' own readers make of them."""

import json

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from imod_core.cli import imod
from imod_export.cli import _bytes
from imod_export.export import ExportSettings, export
from imod_export.tensors import INDEX, read_checkpoint


def tensors(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@pytest.mark.parametrize("size", [1, 50_000, 300_000, 10**9])
def test_no_shard_is_larger_than_asked_but_for_a_single_tensor(forge, sharded_base, adapter, merged, tmp_path, size):
    out = export(adapter, tmp_path / "out", sharded_base, ExportSettings(parity=False, max_shard=size))
    shards = read_checkpoint(out).shards
    for shard in shards:
        assert sum(info.nbytes for info in shard.tensors) <= size or len(shard.tensors) == 1
    expected = tensors(merged)
    assert all((tensors(out)[name] == value).all() for name, value in expected.items())
    if size == 10**9:
        assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    else:
        index = json.loads((out / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
        assert index["weight_map"].keys() == expected.keys()
        assert f"model-00001-of-{len(shards):05}.safetensors" == shards[0].path.name
    assert forge.load(out).state_dict().keys() == forge.load(sharded_base).state_dict().keys()


@pytest.mark.parametrize(
    ("written", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 1572864), ("700", 700), ("2k", 2000), (None, None)]
)
def test_sizes_are_read_as_people_write_them(written, size):
    assert _bytes(written) == size


@pytest.mark.parametrize("written", ["5 apples", "", "GB", "-1GB", "0"])
def test_what_is_no_size_is_refused(written, base, adapter, tmp_path):
    command = ["export", "--merge", str(adapter), "--base", str(base), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(imod, [*command, "--max-shard-size", written])
    assert "--max-shard-size" in str(result.exception)
    assert not (tmp_path / "out").exists()
