"""An adapter with saved projectors served beside its base: the answers must be the merged model's."""

import json
import shutil

import pytest
import torch
from helpers import call

from imod_core.errors import CheckFailed, InputError, MissingFileError
from imod_core.samples import Message
from imod_serve.client import Client
from imod_serve.launcher import Server
from imod_serve.local import LocalModel
from imod_serve.lora import SAVED, find_adapter, prepare_adapter
from imod_serve.probe import EXAMPLES, _ask, distance

pytestmark = [pytest.mark.server, pytest.mark.timeout(1200)]
QUESTION = "Where is the louder instrument?"
CLOSE = 1e-4
"""Of a log probability in float32: the adapter beside its base rounds otherwise than the merged weights."""


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    """The run's adapter merged into its base."""
    folder = tmp_path_factory.mktemp("merged") / "merged"
    outcome = call("export", "--merge", trained, "--out", folder, "--no-parity")
    assert outcome.code == 0, outcome.message
    return folder


@pytest.fixture(scope="module")
def unmerged(trained, tmp_path_factory):
    """The run served unmerged; its base is found in its manifest."""
    log = tmp_path_factory.mktemp("lora") / "log"
    with Server(None, adapter=trained, log=log, extra=["--max-num-seqs", "2"]) as running:
        yield running


def test_the_adapter_answers_as_the_merged_model_and_not_as_its_base(unmerged, merged, media):
    adapter, base = Client(unmerged.url, unmerged.name), Client(unmerged.url, f"{unmerged.name}-base")
    local, answers = LocalModel(merged), []
    for given in ({}, {"images": [media.image]}, {"audios": [media.audio]}, {"videos": [media.video]}):
        served, reference = adapter.ask(QUESTION, **given, max_tokens=8), local.ask(QUESTION, **given, max_tokens=8)
        assert served.prompt_tokens == reference.prompt_tokens
        assert served.text == reference.text.rstrip("\ufffd")
        answers.append(served.text)
    assert len(set(answers)) > 1
    for kind in ("image", "audio", "video"):
        medium = EXAMPLES[kind](False)
        assert distance(_ask(adapter, kind, medium)[1], _ask(base, kind, medium)[1]) > 10 * CLOSE


def test_the_adapters_projectors_are_the_ones_that_see_and_hear(unmerged, merged, trained, media):
    """vLLM reads the base's projectors and then the saved ones; with the base's the probabilities are others."""
    client, local = Client(unmerged.url, unmerged.name), LocalModel(merged)
    questions = {"<image>": {"images": [media.image]}, "<audio>": {"audios": [media.audio]}}
    served = [client.ask(QUESTION, **given, max_tokens=1, logprobs=True).logprobs[0][1] for given in questions.values()]
    assert served == pytest.approx([best_logprob(local, tag, media) for tag in questions], abs=CLOSE)
    base = LocalModel(find_adapter(trained, None).base).model.state_dict()
    local.model.load_state_dict({n: w for n, w in base.items() if "_projector" in n}, strict=False)
    for value, tag in zip(served, questions, strict=True):
        assert abs(value - best_logprob(local, tag, media)) > 10 * CLOSE


def test_the_server_is_a_link_of_the_chain_by_its_adapter(unmerged, merged, tmp_path):
    """And not by the base, which it lists as well."""
    assert call("parity", merged, "--against", unmerged.url, "--out", tmp_path / "parity") == (0, "")


def best_logprob(local, tag, media):
    """Of the first token that transformers would choose."""
    sources = {"<image>": [media.image], "<audio>": [media.audio], "<video>": []}
    given = {key: found if key == tag else [] for key, found in sources.items()}
    with torch.inference_mode():
        logits = local.model(**local.inputs([Message("user", tag + QUESTION)], given)).logits
    return logits[0, -1].log_softmax(-1).max().item()


def test_shards_are_read_in_an_order_that_lets_the_saved_modules_win(trained, tmp_path):
    served = prepare_adapter(find_adapter(trained, None), tmp_path)
    index = json.loads((served.base / "model.safetensors.index.json").read_text())["weight_map"]
    assert SAVED in index.values()
    for names in (
        sorted(set(index.values())),
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    ):
        assert sorted({*names, SAVED})[-1] == SAVED
    config = json.loads((served.folder / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None
    assert served.max_rank == 8
    copied = [path for path in served.base.iterdir() if not path.is_symlink()]
    assert {path.name for path in copied} == {SAVED, "model.safetensors.index.json"}


def test_an_adapter_that_does_nothing_is_refused(unmerged):
    """Asked against itself, an adapter changes nothing."""
    from imod_serve.probe import probe_adapter

    client = Client(unmerged.url, unmerged.name)
    assert probe_adapter(client, Client(unmerged.url, f"{unmerged.name}-base"), ["image"]) > CLOSE
    with pytest.raises(CheckFailed, match="does nothing"):
        probe_adapter(client, client, ["image"])


def test_what_cannot_be_served_unmerged_is_refused_in_one_sentence(trained, tmp_path, base):
    with pytest.raises(MissingFileError, match="--lora"):
        Server(None, adapter=tmp_path / "none")
    with pytest.raises(InputError, match="Neither a model folder nor --lora"):
        Server(None)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((trained / "adapter" / name).read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(MissingFileError, match="imod serve BASE --lora"):
        Server(None, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(InputError, match="DoRA"):
        Server(base, adapter=tmp_path)


def test_a_further_host_with_another_base_does_not_become_engines(trained, tmp_path):
    """The first host would tell; this one has no HTTP to be probed by."""
    base = tmp_path / "other"
    shutil.copytree(find_adapter(trained, None).base, base)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    outcome = call("serve", base, "--lora", trained, "--", "--headless")
    assert outcome.code == 2
    assert "not the base" in outcome.message
