"""A cheap first lesson for projectors: the words of a caption, found in the LLM's own embedding table.

No LLM runs. A media token's embedding votes for words by its cosine with their embeddings; each word of the caption
should be voted for by some token of its medium. Nobody says by which: over thousands of captions, the tokens that see
or hear a thing settle on its word. And a token should stand where the words that it votes for stand: pointing at them
is not enough, since all words share a direction that no vote asks for. So the LLM meets media tokens that already
speak its language.

Letters: `B` captions, `L` tokens, `W` words, `S` subwords of a word, `D` LLM width, `V` its vocabulary.
"""

import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from imod_core.avt.modeling_avt import AvtForConditionalGeneration

SHARPNESS = 20.0
"""Logit of a word whose embedding points where the token's does (cosine 1)."""
COMMITMENT = 5.0
"""Weight of a token's squared distance from the words that it votes for, in units of a word's squared norm."""
PADDING = -1


def word_table(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """`words (W, S)`: subword ids of the captions' words, -1 beyond; `present (B, W)`: which caption has which."""
    found = [set(re.findall(r"\w+", caption)) for caption in captions]
    words = sorted(set().union(*found))
    ids = [torch.tensor(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in words]
    present = torch.tensor([[word in own for word in words] for own in found])
    return {"words": pad_sequence(ids, batch_first=True, padding_value=PADDING), "present": present}


def word_embeddings(words: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Mean embedding of each word's subwords, (W, D), from ids (W, S) and the LLM's table (V, D)."""
    real = (words != PADDING).unsqueeze(-1)
    return (table[words.clamp(min=0)].float() * real).sum(1) / real.sum(1)


def words_loss(embedded: torch.Tensor, media: torch.Tensor, present: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Mean over captions of -Σ_w idf(w) log mean_t p(w|t), with p(·|t) a softmax over the words, plus commitment.

    Args:
        embedded: (B, L, D) token embeddings, media in place.
        media: (B, L) bool, where they are; some in every row.
        present: (B, W) bool, which caption has which word.
        words: (W, D) the words' embeddings.

    A word of every caption has weight 0: it tells nothing of the medium. Compare captions of one kind of medium only.
    """
    used = present.any(0)
    present, words = present[:, used], words[used]
    weight = -present.float().mean(0).log()
    cosine = nn.functional.normalize(embedded.float(), dim=-1) @ nn.functional.normalize(words, dim=-1).T
    votes = (SHARPNESS * cosine).log_softmax(-1)  # (B, L, W)
    heard = votes.masked_fill(~media.unsqueeze(-1), -torch.inf)
    explained = heard.logsumexp(1) - media.sum(1, keepdim=True).log()
    meant = votes.detach().exp() @ words  # (B, L, D)
    apart = (embedded.float() - meant)[media].square().sum(-1).mean() / words.square().sum(-1).mean()
    return COMMITMENT * apart - (explained * present * weight).sum(1).mean()


def batch_words_loss(model: AvtForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`words_loss` of a batch, summed over pictures with videos and sounds, each among its own."""
    inner, ids = model.model, batch["input_ids"]
    table = inner.get_input_embeddings().weight.detach()
    words = word_embeddings(batch["words"], table)
    total = torch.zeros((), device=ids.device)
    for projector, kinds in ((inner.vision_projector, ("image", "video")), (inner.audio_projector, ("audio",))):
        embedded, media = table[ids].float(), torch.zeros_like(ids, dtype=torch.bool)
        for kind in kinds:
            states = batch.get(f"{kind}_states")
            if states is not None:
                places = ids == getattr(model.config, f"{kind}_token_id")
                embedded = embedded.masked_scatter(places.unsqueeze(-1), projector(states).float())
                media |= places
        rows = media.any(1)
        if rows.any():
            total = total + words_loss(embedded[rows], media[rows], batch["present"][rows], words)
    return total
