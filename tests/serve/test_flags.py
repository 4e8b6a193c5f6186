import json

import pytest

from imod_core.errors import InputError, MissingFileError
from imod_serve.artifact import read_artifact
from imod_serve.flags import GUARD, UNSAFE, UNSAFE_VARIABLES, server_environment, server_flags
from imod_serve.limits import LIMITS, LOOPBACK_ONLY, Limits, read_limits
from imod_serve.lora import ServedAdapter


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like a merged model with media and a chat template."""
    config = {
        "model_type": "avt",
        "dtype": "bfloat16",
        "image_token_id": 1,
        "audio_token_id": 2,
        "video_token_id": 3,
        "text_config": {"max_position_embeddings": 8192},
    }
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").touch()
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": {"num_frames": 6}}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def change(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def flags(folder, extra=(), cpu=False, **options):
    return server_flags(read_artifact(folder), name="m", host="127.0.0.1", port=1, cpu=cpu, extra=extra, **options)


def value(flags, name):
    return flags[flags.index(name) + 1]


def test_flags_follow_the_folder(folder):
    found = flags(folder)
    assert found[0] == str(folder)
    assert value(found, "--dtype") == "bfloat16"
    assert value(found, "--max-model-len") == "8192"
    assert value(found, "--chat-template") == str(folder / "chat_template.jinja")
    assert json.loads(value(found, "--media-io-kwargs")) == {"video": {"num_frames": 6}}
    assert set(json.loads(value(found, "--limit-mm-per-prompt"))) == {"image", "audio", "video"}
    assert value(found, "--allowed-media-domains") == "media.invalid"


def test_a_native_models_batch_holds_its_videos(folder):
    """vLLM refuses a video of more tokens than its batch has, and of more than a few of its largest pictures."""
    assert "--max-num-batched-tokens" not in flags(folder), "AVT's videos are a few frames"
    (folder / "processor_config.json").unlink()
    change(folder, model_type="qwen3_vl", vision_config={})
    cap = {"cap_pixels_per_frame": True, "max_video_tokens": 128}
    settings = {"video_processor_type": "Qwen3VLVideoProcessor", **cap}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    for length, tokens in ((4096, 8192), (20_000, 20_000), (262_144, 32_768)):
        change(folder, text_config={"max_position_embeddings": length})
        assert value(flags(folder), "--max-num-batched-tokens") == str(tokens)
    assert value(flags(folder, cpu=True), "--max-num-batched-tokens") == "4096"
    assert json.loads(value(flags(folder), "--mm-processor-kwargs")) == {"videos_kwargs": cap}
    (folder / "video_preprocessor_config.json").write_text("[1]")
    with pytest.raises(InputError, match="holds list"):
        flags(folder)


def test_a_text_model_gets_no_media_flags(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    found = flags(folder)
    assert value(found, "--max-model-len") == "512"
    assert value(found, "--dtype") == "auto"
    assert not {"--limit-mm-per-prompt", "--media-io-kwargs"} & set(found)


def test_an_omni_model_is_read_through_its_thinker(folder):
    thinker = {"image_token_id": 1, "audio_token_index": 2, "text_config": {"max_position_embeddings": 77}}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": thinker}))
    artifact = read_artifact(folder)
    assert artifact.modalities == ("image", "audio")
    assert artifact.max_positions == 77


@pytest.mark.parametrize("given", [["--dtype", "float32"], ["--dtype=float32"]])
def test_the_users_flag_replaces_ours(folder, given):
    found = flags(folder, given)
    assert found[-len(given) - 2 : -2] == given
    assert "bfloat16" not in found


def test_the_users_underscores_and_negations_count_as_the_same_flag(folder):
    found = flags(folder, ["--no-enforce-eager", "--max_num_seqs", "2"], cpu=True)
    assert not {"--enforce-eager", "--max-num-seqs"} & set(found)


def test_a_cpu_gets_one_process_unless_the_user_wants_workers(folder):
    alone, parallel = flags(folder, cpu=True), flags(folder, ["-tp", "2"], cpu=True)
    assert value(alone, "--distributed-executor-backend") == "uni"
    assert "--distributed-executor-backend" not in parallel
    assert server_environment(alone, cpu=True, api_key=None)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in server_environment(parallel, cpu=True, api_key=None)
    assert "TORCH_COMPILE_DISABLE" not in server_environment(alone, cpu=False, api_key=None)


def test_a_cpu_gets_a_context_that_its_cache_holds_unless_one_is_asked_for(folder):
    assert value(flags(folder, cpu=True), "--max-model-len") == "4096"
    assert value(flags(folder, cpu=True, max_model_len=8000), "--max-model-len") == "8000"
    with pytest.raises(InputError, match=r"9000.*8192"):
        flags(folder, max_model_len=9000)


def test_the_key_reaches_vllm_by_its_environment_only(folder, monkeypatch):
    monkeypatch.setenv("IMOD_API_KEY", "secret")
    environment = server_environment([], cpu=False, api_key="secret")
    assert environment["VLLM_API_KEY"] == "secret"
    assert "IMOD_API_KEY" not in environment
    for flag in (["--api-key", "secret"], ["--api_key=secret"], ["--api-k", "secret"]):
        with pytest.raises(InputError, match="IMOD_API_KEY"):
            flags(folder, flag)


@pytest.mark.parametrize("flag", UNSAFE)
def test_flags_that_undo_safety_are_refused_with_the_reason_and_a_way_out(folder, flag):
    for spelling in (f"--{flag}", f"--{flag.replace('-', '_')}=x", f"--{flag[:-1]}"):
        with pytest.raises(InputError, match="or start vLLM without"):
            flags(folder, [spelling, "x"])


@pytest.mark.parametrize("variable", UNSAFE_VARIABLES)
def test_variables_that_undo_safety_are_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(InputError, match=variable):
        server_environment([], cpu=False, api_key=None)
    monkeypatch.setenv(variable, "0")
    server_environment([], cpu=False, api_key=None)


def test_our_layer_is_the_outermost_whatever_the_user_adds(folder):
    found = flags(folder, ["--middleware", "their.own.Layer"])
    assert found[-2:] == ["--middleware", GUARD]
    assert "their.own.Layer" in found


def test_limits_reach_vllm_and_our_layers(folder, monkeypatch):
    limits = Limits(images=9, videos=0, image_pixels=1, video_pixels=7, audio_seconds=11)
    counts = json.loads(value(flags(folder, limits=limits), "--limit-mm-per-prompt"))
    assert counts == {"image": 9, "audio": 4, "video": 0}
    monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", "http")
    environment = server_environment([], cpu=False, api_key=None, limits=limits)
    assert environment["VLLM_MEDIA_CONNECTOR"] == "imod"
    assert environment["VLLM_MAX_AUDIO_DECODE_DURATION_S"] == "11"
    assert environment["VLLM_MAX_IMAGE_PIXELS"] == "7"
    monkeypatch.setenv(LIMITS, environment[LIMITS])
    assert read_limits() == limits


def test_domains_for_media_are_listed_or_none_is_allowed(folder):
    found = flags(folder, domains=["a.example", "b.example"])
    at = found.index("--allowed-media-domains")
    assert found[at + 1 : at + 3] == ["a.example", "b.example"]


def test_only_a_loopback_server_without_a_key_minds_its_name():
    for key, loopback, minds in ((None, True, True), ("k", True, False), (None, False, False)):
        environment = server_environment([], cpu=False, api_key=key, loopback=loopback)
        assert (LOOPBACK_ONLY in environment) == minds


def test_an_adapter_goes_under_the_models_name_and_its_base_under_another(folder, tmp_path):
    adapter = ServedAdapter(base=tmp_path / "base", folder=tmp_path / "adapter", max_rank=16)
    found = flags(folder, adapter=adapter)
    assert found[0] == str(tmp_path / "base")
    assert value(found, "--served-model-name") == "m-base"
    assert value(found, "--lora-modules") == f"m={tmp_path / 'adapter'}"
    assert value(found, "--max-lora-rank") == "16"


@pytest.mark.parametrize("flag", ["--port", "--host=0.0.0.0", "--served_model_name", "--limit-mm-per-prompt", "--ho"])
def test_flags_that_the_launcher_must_know_are_its_own(folder, flag):
    with pytest.raises(InputError, match="imod serve"):
        flags(folder, [flag, "x"])


def test_values_set_in_the_environment_are_kept(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert server_environment([], cpu=True, api_key=None)["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_what_is_no_model_folder_is_refused_with_what_to_do(folder, tmp_path):
    with pytest.raises(MissingFileError, match="no folder"):
        read_artifact(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"config\.json"):
        read_artifact(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_artifact(folder)
    change_to_adapter = folder / "adapter_config.json"
    change_to_adapter.write_text("{}")
    with pytest.raises(InputError, match="imod export --merge"):
        read_artifact(folder)
    change_to_adapter.unlink()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match="no weights"):
        read_artifact(folder)
