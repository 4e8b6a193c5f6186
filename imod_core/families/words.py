"""Tokenizers trained on the spot, a few hundred words large, built as each family builds its own."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from imod_core.avt.tiny import CORPUS

WORDS = 480
"""Of which 256 are the bytes."""
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen's tokenizers cut a text before they merge bytes."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ROLES = ("user", "assistant", "system", "model")
"""Words of chat formats: each becomes a token of its own, since configurations name some by their id."""


def byte_level(specials: tuple[str, ...]) -> Tokenizer:
    """As Qwen's and SmolLM2's: merges of bytes, special tokens after all others."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def llama(specials: tuple[str, ...]) -> Tokenizer:
    """As LLaMA-2's: `<unk> <s> </s>`, then the bytes as fallback, then pieces whose spaces are `▁`."""
    return _pieces(specials, "first")


def gemma(specials: tuple[str, ...]) -> Tokenizer:
    """As Gemma's: pieces as LLaMA's, without one for the beginning of a text, special tokens first."""
    return _pieces(specials, "never")


def _pieces(specials: tuple[str, ...], prepend: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=True)
    _train(tokenizer, special_tokens=[*specials, *BYTES])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prepend == "first" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _train(tokenizer: Tokenizer, **options) -> None:
    trainer = trainers.BpeTrainer(vocab_size=WORDS + 200, show_progress=False, **options)
    tokenizer.train_from_iterator([*CORPUS, *(f"{role} {role}" for role in ROLES)], trainer)
