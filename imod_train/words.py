"""A cheap first lesson for projectors: the words of a caption, found in the LLM's own embedding table.

No LLM runs. A media token's embedding votes for words by its inner product with their embeddings; each word of the
caption should be voted for by some token of its medium. Nobody says by which: with thousands of captions the tokens
that see a thing settle on its word. A later stage teaches the rest through the LLM.
"""

import torch
from torch import nn

from imod_core.avt.modeling_avt import AvtForConditionalGeneration

SHARPNESS = 20.0
"""Logit of a word whose embedding points where the token's does (cosine 1)."""


def words_loss(embedded: torch.Tensor, media: torch.Tensor, labels: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Mean over captions of -Σ_w idf(w) log mean_t p(w|t), with p(·|t) a softmax over the words of the batch.

    Args:
        embedded: (B, L, D) token embeddings of the batch, media in place.
        media: (B, L) bool, where they are; some in every row.
        labels: (B, L) ids of the captions' words, -100 elsewhere.
        table: (V, D) the LLM's embeddings.

    A word of every caption has weight 0: it tells nothing of the medium. Compare captions of one kind of medium only.
    """
    words = labels[labels >= 0].unique()
    present = (labels.unsqueeze(-1) == words).any(1)  # (B, W)
    weight = -present.float().mean(0).log()
    votes = nn.functional.normalize(embedded.float(), dim=-1) @ nn.functional.normalize(table[words].float(), dim=-1).T
    chosen = (SHARPNESS * votes).log_softmax(-1)  # (B, L, W)
    chosen = chosen.masked_fill(~media.unsqueeze(-1), -torch.inf)
    explained = chosen.logsumexp(1) - media.sum(1, keepdim=True).log()
    return -(explained * present * weight).sum(1).mean()


def batch_words_loss(model: AvtForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """`words_loss` of a batch, summed over pictures with videos and sounds, each among its own."""
    inner, ids, labels = model.model, batch["input_ids"], batch["labels"]
    table = inner.get_input_embeddings().weight.detach()
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
            total = total + words_loss(embedded[rows], media[rows], labels[rows], table)
    return total
