"""The words objective: its value by hand, and that it pulls tokens to the words of their captions."""

import math

import torch
from transformers import AutoProcessor

from imod_train.words import COMMITMENT, SHARPNESS, word_embeddings, word_table, words_loss

PRESENT = torch.tensor([[True, True, False], [True, False, True]])
"""Two captions of three words; word 0 is in both and must not count."""


def by_hand(embedded, media, present, words) -> float:
    total, apart = 0.0, []
    for row in range(len(present)):
        tokens = [t for t in range(embedded.shape[1]) if media[row, t]]
        for word in [w for w in range(len(words)) if present[row, w]]:
            votes = []
            for token in tokens:
                cosines = [torch.cosine_similarity(embedded[row, token], vector, dim=0).item() for vector in words]
                exponentials = [math.exp(SHARPNESS * c) for c in cosines]
                votes.append(exponentials[word] / sum(exponentials))
            share = present[:, word].float().mean().item()
            total -= -math.log(share) * math.log(sum(votes) / len(votes))
        for token in tokens:
            cosines = torch.cosine_similarity(embedded[row, token], words, dim=-1)
            meant = sum(p * vector for p, vector in zip((SHARPNESS * cosines).softmax(0), words, strict=True))
            apart.append((embedded[row, token] - meant).square().sum().item())
    norm = words.square().sum(-1).mean().item()
    return total / len(present) + COMMITMENT * sum(apart) / len(apart) / norm


def test_the_loss_equals_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(3, 6, generator=generator)
    embedded = torch.randn(2, 3, 6, generator=generator)
    media = torch.tensor([[True, True, False], [False, True, True]])
    found = words_loss(embedded, media, PRESENT, words).item()
    assert math.isclose(found, by_hand(embedded, media, PRESENT, words), rel_tol=1e-5)
    assert not math.isclose(found, by_hand(embedded, ~media, PRESENT, words), rel_tol=1e-2)


def test_tokens_that_mean_the_word_have_less_loss_than_tokens_that_mean_another() -> None:
    words, media = torch.eye(3), torch.ones(2, 1, dtype=torch.bool)
    assert words_loss(words[[1, 2]].unsqueeze(1), media, PRESENT, words) < 0.01
    assert words_loss(words[[2, 1]].unsqueeze(1), media, PRESENT, words) > 1


def test_a_word_of_every_caption_need_not_be_voted_for() -> None:
    words, media = torch.eye(8)[:2], torch.ones(2, 1, dtype=torch.bool)
    common, rare = torch.tensor([[True, False], [True, True]]), torch.tensor([[True, False], [False, True]])
    on_the_second = words[[1, 1]].unsqueeze(1)
    assert words_loss(on_the_second, media, common, words) < 0.01
    assert words_loss(on_the_second, media, rare, words) > 1


def test_a_token_is_pulled_to_where_the_word_that_it_votes_for_stands() -> None:
    words, media = torch.eye(3), torch.ones(2, 1, dtype=torch.bool)
    farther = (3 * words[[1, 2]].unsqueeze(1)).requires_grad_()
    words_loss(farther, media, PRESENT, words).backward()
    assert (farther.grad[0, 0, 1], farther.grad[1, 0, 2]) > (0.1, 0.1)
    there = words[[1, 2]].unsqueeze(1).requires_grad_()
    words_loss(there, media, PRESENT, words).backward()
    assert there.grad.abs().max() < 1e-3


def test_words_are_found_in_captions_and_embedded_as_the_mean_of_their_pieces(tiny_base) -> None:
    tokenizer = AutoProcessor.from_pretrained(tiny_base).tokenizer
    table = word_table(["left: drum, right: zither", "drum"], tokenizer)
    assert table["present"].tolist() == [[True, True, True, True], [True, False, False, False]]
    pieces = tokenizer.encode(" zither", add_special_tokens=False)
    assert len(pieces) > 1
    vectors = torch.randn(len(tokenizer), 4)
    found = word_embeddings(table["words"], vectors)
    assert torch.allclose(found[3], vectors[pieces].mean(0), atol=1e-6)
