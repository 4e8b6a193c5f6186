"""Pushing to a hub by the hub's real client, against a stand-in on loopback; and the model card that goes with it."""

import os
import socket
import subprocess
import sys

import pytest
import yaml

from imod_core.errors import InputError
from imod_export.export import ExportSettings, export
from imod_export.hub import check_target

from .hub_standin import standin


def run_export(address, *arguments):
    """The command in a process of its own: huggingface_hub reads its endpoint when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    environment["HF_HUB_OFFLINE"] = "0"
    command = [sys.executable, "-m", "imod_core.cli", "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_merge_is_pushed_whole_and_without_this_machines_paths(sharded_base, adapter, tmp_path):
    arguments = ["--merge", adapter, "--base", sharded_base, "--no-parity", "--push-to-hub", "me/merged"]
    with standin() as (hub, address):
        done = run_export(address, *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"Pushed to {address}/me/merged" in done.stderr
    assert hub.repos["me/merged"]["visibility"] == "private"
    assert len(hub.commits) == 1
    local = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert hub.files.keys() == local.keys() - {"manifest.json"}
    assert all(hub.files[name] == local[name].read_bytes() for name in hub.files)
    assert all(str(tmp_path).encode() not in content for name, content in hub.files.items())


def test_a_hub_that_refuses_leaves_the_merge_and_says_how_to_push_it(sharded_base, adapter, tmp_path):
    arguments = ["--merge", adapter, "--base", sharded_base, "--no-parity", "--push-to-hub", "me/merged"]
    with standin() as (hub, address):
        hub.refuse = 403
        done = run_export(address, *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "is whole, but could not be pushed" in last
    assert f"hf upload me/merged {tmp_path / 'out'}" in last
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_a_hub_that_cannot_be_reached_leaves_the_merge_and_says_how_to_push_it(sharded_base, adapter, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens there
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        arguments = ["--merge", adapter, "--base", sharded_base, "--no-parity", "--push-to-hub", "me/merged"]
        done = run_export(address, *arguments, "--out", tmp_path / "out")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "is whole, but could not be pushed" in last
    assert "Connection refused" in last
    assert f"hf upload me/merged {tmp_path / 'out'}" in last
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize("name", ["merged", "me/merged/again", "me/mer ged", "me/..", "-/x"])
def test_a_name_that_no_hub_takes_is_refused_before_the_merge(name, sharded_base, adapter, tmp_path):
    with pytest.raises(InputError, match="OWNER/NAME"):
        check_target(name)
    with pytest.raises(InputError, match="OWNER/NAME"):
        export(adapter, tmp_path / "out", sharded_base, ExportSettings(parity=False, push=name))
    assert not list(tmp_path.iterdir())


def card(folder):
    text = (folder / "README.md").read_text()
    _, header, body = text.split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_card_names_method_data_rounding_and_parity(merged, base):
    header, body = card(merged)
    assert header["base_model"] == "base"
    assert header["tags"] == ["merge", "lora", "imod"]
    assert "21 low-rank updates" in body
    assert "method imod" in body
    assert "lost at most" in body
    assert "Passed" in body
    assert "| video+audio | attached ↔ merged | float32 |" in body
    assert str(base.parent) not in body


def test_a_trained_runs_card_names_its_data_and_settings(forge, adapter, base, tmp_path):
    import json

    run = forge.run(f"run-{tmp_path.name}", adapter, base)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["imod"] = {"config": {"lambda1": 0.01}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "inputs.json").write_text(json.dumps({"data": {"some/where/train.jsonl": "ab" * 32}}))
    _, body = card(export(run, tmp_path / "out", base, ExportSettings(parity=False)))
    assert "`train.jsonl` (blake3 abababababababab…)" in body
    assert "some/where" not in body
    assert "lambda1 0.01" in body
    assert "was not compared" in body


def test_the_licence_of_the_base_is_the_merges(base, adapter, tmp_path):
    import shutil

    licensed = shutil.copytree(base, tmp_path / "base")
    (licensed / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: [en]\nwidget: x\n---\n# The base\n")
    header, body = card(export(adapter, tmp_path / "out", licensed, ExportSettings(parity=False)))
    assert (header["license"], header["language"]) == ("apache-2.0", ["en"])
    assert "widget" not in header
    assert "# The base\n" not in body
