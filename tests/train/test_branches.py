"""Questions about the same media as branches of one row: what is learned from is what single samples would give."""

from pathlib import Path

import pytest
import torch

from imod_core.avt.states import TowerStates
from imod_core.modality import IGNORED, NON_TEXT, token_modality
from imod_core.samples import Message, Sample, read_samples
from imod_train.base import load_base
from imod_train.branches import PADDING, branch_mask, group_by_media
from imod_train.dataset import Collator, SampleDataset
from imod_train.recipe import Recipe, Stage

PER_ROW = 3


def sample(identity: str, content: str, image: str = "a.png", answer: str = "yes") -> Sample:
    images = (Path(image),) if "<image>" in content else ()
    return Sample(identity, (Message("user", content), Message("assistant", answer)), images)


def ids(groups: list[list[Sample]]) -> list[list[str]]:
    return [[s.id for s in group] for group in groups]


def test_samples_group_by_media_up_to_a_limit_and_stand_where_the_first_stood() -> None:
    samples = [sample(str(i), "<image>?", "a.png" if i % 2 else "b.png") for i in range(6)]
    assert ids(group_by_media(samples, 2)) == [["0", "2"], ["1", "3"], ["4"], ["5"]]
    assert ids(group_by_media(samples, 1)) == [[str(i)] for i in range(6)]


def test_samples_that_begin_otherwise_or_have_no_media_stay_alone() -> None:
    different = [sample("0", "<image>?"), sample("1", "Look: <image>?"), sample("2", "Why?"), sample("3", "Why?")]
    assert ids(group_by_media(different, 4)) == [["0"], ["1"], ["2"], ["3"]]


def test_samples_whose_media_come_after_an_answer_stay_alone() -> None:
    """Branches part before the first answer; what stands behind it would be read for each."""
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "<image>?"))
    samples = [Sample(str(i), (*turns, Message("assistant", str(i))), (Path("a.png"),)) for i in range(2)]
    assert ids(group_by_media(samples, 4)) == [["0"], ["1"]]


def test_a_branch_sees_the_common_beginning_and_itself_alone() -> None:
    mask = branch_mask(torch.tensor([[0, 0, 1, 1, 2, PADDING]]), torch.float32)[0, 0] == 0
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]


@pytest.fixture(scope="module")
def parts(tiny_base: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    stage = Stage("tune", data=("-",), steps=1)
    model, processor = load_base(Recipe(base=str(tiny_base), stages=(stage,), precision="float32"))
    samples = read_samples(scenes / "train.jsonl")[: 4 * PER_ROW]
    states = TowerStates(tiny_base, processor, tmp_path_factory.mktemp("states"))
    states.prepare(samples)
    return model.train(), processor, samples, states


def gradient(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), model.model.audio_projector.fc1.weight.grad.clone()


def test_branches_give_the_loss_and_gradient_of_single_samples(parts: tuple) -> None:
    model, processor, samples, states = parts
    collate = Collator(processor.tokenizer)
    single = SampleDataset(samples, processor, states)
    joined = SampleDataset(samples, processor, states, questions_per_row=PER_ROW)
    assert len(single) == PER_ROW * len(joined)
    batch = collate([joined[i] for i in range(len(joined))])
    assert batch["input_ids"].numel() < 0.8 * collate([single[i] for i in range(len(single))])["input_ids"].numel()
    loss, grad = gradient(model, collate([single[i] for i in range(len(single))]))
    branch_loss, branch_grad = gradient(model, batch)
    assert branch_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(branch_grad, grad, rtol=1e-4, atol=1e-6)
    assert grad.abs().max() > 1e-4
    leaking = {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"]).masked_fill_(
        ~torch.ones(batch["attention_mask"].shape[-2:], dtype=torch.bool).tril(), torch.finfo(torch.float32).min
    )}  # fmt: skip
    assert abs(gradient(model, leaking)[0] - loss) > 1e-4


def test_padding_of_a_row_with_branches_has_no_modality(parts: tuple) -> None:
    model, processor, samples, states = parts
    joined = SampleDataset(samples, processor, states, questions_per_row=PER_ROW)
    rows = [joined[i] for i in range(len(joined))]
    batch = Collator(processor.tokenizer)(rows)
    media = (model.config.image_token_id, model.config.video_token_id, model.config.audio_token_id)
    codes = token_modality(batch["input_ids"], batch["attention_mask"], media)
    for row, code in zip(rows, codes, strict=True):
        length = len(row["input_ids"])
        assert (code[length:] == IGNORED).all()
        assert not (code[:length] == IGNORED).any()
        assert int((code == NON_TEXT).sum()) == sum(len(s) for of in row["states"].values() for s in of)
    assert len({len(row["input_ids"]) for row in rows}) > 1, "without padding this shows nothing"
