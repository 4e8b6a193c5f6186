"""The `tiny` preset for tests: a random AVT of some 200,000 parameters with a tokenizer trained on the spot."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from imod_core.avt.compose import Geometry, Part, compose

GEOMETRY = Geometry(
    vision_grid=3,
    audio_layers=(0, -1),
    audio_pool_frames=10,
    audio_window_frames=100,
    audio_window_seconds=2.0,
)
CORPUS = (
    "Where is the louder instrument? left middle right",
    "How many instruments are sounding in the video? zero one two three",
    "Is the violin on the left louder than the trumpet on the right? yes no",
    "Which instrument sounds first, the piano or the drum? accordion banjo flute saxophone guitar",
    "Describe the picture. Describe the sound. a quiet loud nothing then Left: Middle: Right: Sound:",
    "system user assistant",
)


def build(out: Path, seed: int, dtype: torch.dtype, llm: Part | None = None) -> None:
    """Write the tiny base to `out`, on `llm` where it is given; everything random comes from `seed`."""
    torch.manual_seed(seed)
    if llm is None:
        tokenizer = _tokenizer()
        llm = Part(_llm(len(tokenizer)), tokenizer)
    compose(llm, _vision(), _audio(), GEOMETRY, out, dtype, seed)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=specials[1], eos_token=specials[2], pad_token=specials[0]
    )


def _llm(vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def _vision() -> Part:
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=48,
        patch_size=8,
    )
    return Part(ViTModel(config), ViTImageProcessor(size={"height": 48, "width": 48}))


def _audio() -> Part:
    extractor = WhisperFeatureExtractor(feature_size=40, chunk_length=2)
    config = WhisperConfig(
        d_model=32,
        num_mel_bins=40,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=0,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=8,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return Part(WhisperModel(config), extractor)
