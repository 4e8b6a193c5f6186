"""The words objective: its value by hand, and that it pulls tokens to the words of their captions."""

import math

import torch

from imod_train.words import SHARPNESS, words_loss

WORDS = torch.tensor([[3, 4, -100], [3, 5, -100]])
"""Two captions; word 3 is in both and must not count."""


def by_hand(embedded, media, labels, table) -> float:
    total = 0.0
    words = sorted({int(w) for row in labels for w in row if w >= 0})
    for row in range(len(labels)):
        own = {int(w) for w in labels[row] if w >= 0}
        tokens = [t for t in range(embedded.shape[1]) if media[row, t]]
        for word in own:
            share = sum(word in {int(w) for w in other} for other in labels) / len(labels)
            votes = []
            for token in tokens:
                cosines = [torch.cosine_similarity(embedded[row, token], table[w], dim=0).item() for w in words]
                exponentials = [math.exp(SHARPNESS * c) for c in cosines]
                votes.append(exponentials[words.index(word)] / sum(exponentials))
            total -= -math.log(share) * math.log(sum(votes) / len(votes))
    return total / len(labels)


def test_the_loss_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 6, generator=generator)
    embedded = torch.randn(2, 3, 6, generator=generator)
    media = torch.tensor([[True, True, False], [False, True, True]])
    found = words_loss(embedded, media, WORDS, table).item()
    assert math.isclose(found, by_hand(embedded, media, WORDS, table), rel_tol=1e-5)
    assert not math.isclose(found, by_hand(embedded, ~media, WORDS, table), rel_tol=1e-2)


def test_tokens_that_mean_the_word_have_less_loss_than_tokens_that_mean_another() -> None:
    table = torch.eye(8)
    media = torch.ones(2, 1, dtype=torch.bool)
    right = words_loss(table[[4, 5]].unsqueeze(1), media, WORDS, table)
    swapped = words_loss(table[[5, 4]].unsqueeze(1), media, WORDS, table)
    assert right < 0.01
    assert swapped > 1


def test_a_word_of_every_caption_does_not_pull() -> None:
    table = torch.eye(8)
    embedded = torch.full((2, 1, 8), 0.1, requires_grad=True)
    same = torch.tensor([[3], [3]])
    words_loss(embedded, torch.ones(2, 1, dtype=torch.bool), same, table).backward()
    assert embedded.grad.abs().max() == 0
