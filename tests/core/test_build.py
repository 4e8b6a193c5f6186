"""Bases composed from given parts: unlike LLMs, vision and audio towers, each from a local folder."""

from pathlib import Path

import pytest
import torch
from helpers import call
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

import imod_core.avt  # noqa: F401
from imod_core.avt.prompts import IGNORED_LABEL, encode
from imod_core.samples import Message, Sample

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"tie_word_embeddings": True}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}),
}


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Qwen3's has ChatML; the others start every text with a token and have neither padding nor ChatML."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials, marks = ["<unk>", "<s>", "</s>"], {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "qwen3":
        specials = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        marks = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["Where is the drum? left right"], trainer)
    if kind != "qwen3":
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def save_llm(folder: Path, kind: str) -> Path:
    """A tiny random LLM of a family, with its tokenizer."""
    model, config, options = FAMILIES[kind]
    tokenizer = make_tokenizer(kind)
    torch.manual_seed(0)
    model(config(**SMALL, vocab_size=len(tokenizer), **options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options of a CLIP tower whose processor resizes to another side than it crops, and of a Whisper encoder."""
    folder = tmp_path_factory.mktemp("towers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder / "clip")
    crop = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 40}, crop_size=crop).save_pretrained(folder / "clip")
    audio = WhisperConfig(
        d_model=32,
        num_mel_bins=40,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=8,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(audio).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=40, chunk_length=2).save_pretrained(folder / "whisper")
    return ["--vision", str(folder / "clip"), "--audio", str(folder / "whisper")]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_any_plain_llm_composes_and_reads_its_turns(kind: str, towers: list[str], tmp_path: Path) -> None:
    llm = save_llm(tmp_path / "llm", kind)
    outcome = call("base", "build", "--llm", llm, *towers, "--out", tmp_path / "base")
    assert outcome.code == 0, outcome.message
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "base").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "base")
    sample = Sample("a", (Message("user", "Where is the drum?"), Message("assistant", "left")))
    encoded = encode(processor, sample, [])
    learned = encoded.input_ids[encoded.labels != IGNORED_LABEL]
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert learned[-1] == end
    assert model.generation_config.eos_token_id == end
    assert processor.tokenizer.pad_token_id is not None
    prompt = encode(processor, sample, [], with_answers=False).input_ids
    text = processor.apply_chat_template(
        [{"role": "user", "content": "Where is the drum?"}], add_generation_prompt=True
    )
    assert torch.equal(prompt, processor(text=[text], return_tensors="pt").input_ids[0])
    assert processor.tokenizer.decode(prompt[:1]) == ("<s>" if kind == "llama" else "<|im_start|>")


def test_an_llm_that_scales_its_logits_is_refused(towers: list[str], tmp_path: Path) -> None:
    llm = save_llm(tmp_path / "llm", "granite")
    outcome = call("base", "build", "--llm", llm, *towers, "--out", tmp_path / "base")
    assert outcome.code == 2
    assert "changes its logits after the head" in outcome.message
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "tiny", "--vision", "x"], "takes no other tower"),
        (["--llm", "x"], "all of --llm, --vision and --audio"),
        (["--llm", "./nowhere", "--vision", "x", "--audio", "x"], "nowhere does not exist"),
    ],
)
def test_parts_that_cannot_be_used_are_one_sentence(options: list[str], message: str, tmp_path: Path) -> None:
    outcome = call("base", "build", *options, "--out", tmp_path / "base")
    assert outcome.code == 2
    assert message in outcome.message
    assert not (tmp_path / "base").exists()
