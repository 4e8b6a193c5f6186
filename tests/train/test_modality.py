"""Token modality from what a model's configuration names."""

import pytest
import torch
from transformers import CONFIG_MAPPING, Qwen2Config

from imod_core.avt.configuration_avt import AvtConfig
from imod_core.errors import InputError
from imod_core.modality import (
    IGNORED,
    NON_TEXT,
    TEXT,
    boundary_token_ids,
    media_token_ids,
    token_modality,
)


@pytest.mark.parametrize(
    ("model_type", "media"),
    [
        ("qwen2_vl", {"image": (151655,), "video": (151656,)}),
        ("qwen2_5_vl", {"image": (151655,), "video": (151656,)}),
        ("qwen2_5_omni", {"image": (151655,), "video": (151656,), "audio": (151646,)}),
        ("qwen2_5_omni_thinker", {"image": (151655,), "video": (151656,), "audio": (151646,)}),
        ("qwen3_omni_moe", {"image": (151655,), "video": (151656,), "audio": (151646,)}),
        ("llava", {"image": (32000,)}),
        ("qwen2_audio", {"audio": (151646,)}),
        ("gemma3n", {"image": (262145,), "audio": (262273,)}),
    ],
)
def test_placeholders_of_transformers_models_are_found(model_type, media):
    assert media_token_ids(CONFIG_MAPPING[model_type]()) == media


def test_both_spellings_and_nesting_work_on_plain_dicts():
    config = {"model_type": "omni", "thinker_config": {"image_token_index": 5, "audio_token_id": 6}}
    assert media_token_ids(config) == {"image": (5,), "audio": (6,)}
    outer_wins = {"image_token_id": 1, "text_config": {"image_token_id": 2, "video_token_id": 3}}
    assert media_token_ids(outer_wins) == {"image": (1,), "video": (3,)}


def test_another_vocabulary_is_not_searched():
    config = {"thinker_config": {"image_token_id": 5}, "talker_config": {"audio_token_id": 6}}
    assert media_token_ids(config) == {"image": (5,)}


def test_a_text_only_model_is_refused_with_one_sentence():
    with pytest.raises(InputError, match="model type 'qwen2' names no image_token_id"):
        media_token_ids(Qwen2Config())


def test_markers_around_media_are_found():
    assert {151652, 151653} <= set(boundary_token_ids(CONFIG_MAPPING["qwen2_5_vl"]()))
    assert {151647, 151648} <= set(boundary_token_ids(CONFIG_MAPPING["qwen2_5_omni_thinker"]()))
    assert {255999, 262144, 256000, 262272} == set(boundary_token_ids(CONFIG_MAPPING["gemma3n"]()))
    assert boundary_token_ids(Qwen2Config()) == ()
    assert boundary_token_ids(AvtConfig(boundary_token_ids=[5, 4])) == (4, 5)


def test_text_media_padding_and_markers_are_told_apart():
    input_ids = torch.tensor([[0, 0, 7, 9, 9, 8, 1, 2], [7, 9, 8, 1, 2, 3, 0, 0]])
    attention_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0]])
    codes = token_modality(input_ids, attention_mask, media_ids=[9], ignored_ids=[7, 8])
    ignored, media, text = IGNORED, NON_TEXT, TEXT
    assert codes.dtype == torch.uint8
    assert codes.tolist() == [
        [ignored, ignored, ignored, media, media, ignored, text, text],
        [ignored, media, ignored, text, text, text, ignored, ignored],
    ]


def test_without_mask_or_markers_every_other_token_is_text():
    input_ids = torch.tensor([[7, 9, 8, 0]])
    assert token_modality(input_ids, None, [9]).tolist() == [[TEXT, NON_TEXT, TEXT, TEXT]]
    four_dimensional = torch.zeros(1, 1, 4, 4)
    assert token_modality(input_ids, four_dimensional, [9]).tolist() == [[TEXT, NON_TEXT, TEXT, TEXT]]


def test_padding_wins_over_media_and_media_over_markers():
    input_ids = torch.tensor([[9, 9]])
    codes = token_modality(input_ids, torch.tensor([[0, 1]]), media_ids=[9], ignored_ids=[9])
    assert codes.tolist() == [[IGNORED, NON_TEXT]]
