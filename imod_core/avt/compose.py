"""Compose an AVT base folder from an LLM, a vision tower, an audio tower and their processors.

The folder is complete: weights, processor, chat template, generation config and the model code that transformers and
vLLM load with `trust_remote_code` where this package is not installed.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from imod_core.artifacts import new_folder, write_json
from imod_core.avt import AvtConfig, AvtForConditionalGeneration, AvtProcessor, AvtVideoProcessor
from imod_core.errors import InputError

CODE_FILES = ("configuration_avt.py", "modeling_avt.py", "processing_avt.py", "video_processing_avt.py")
AUTO_MAP = {
    "AutoConfig": "configuration_avt.AvtConfig",
    "AutoModel": "modeling_avt.AvtModel",
    "AutoModelForImageTextToText": "modeling_avt.AvtForConditionalGeneration",
    "AutoProcessor": "processing_avt.AvtProcessor",
    "AutoVideoProcessor": "video_processing_avt.AvtVideoProcessor",
}
PLACEHOLDERS = (AvtProcessor.image_token, AvtProcessor.video_token, AvtProcessor.audio_token)
BOUNDARIES = (
    AvtProcessor.vision_start,
    AvtProcessor.vision_end,
    AvtProcessor.audio_start,
    AvtProcessor.audio_end,
)
TURNS = ("<|im_start|>", "<|im_end|>")
VOCABULARY_MULTIPLE = 64

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}{{- '<|image|>' -}}
{%- elif part['type'] in ('video', 'video_url') -%}{{- '<|video|>' -}}
{%- elif part['type'] in ('audio', 'input_audio', 'audio_url') -%}{{- '<|audio|>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Part:
    """A pretrained module with the object that prepares its input."""

    model: PreTrainedModel
    """An LLM with its head, a vision tower or an audio tower."""
    processor: Any
    """Its tokenizer, image processor or feature extractor."""


@dataclass(frozen=True)
class Geometry:
    """How media become tokens; the fields are AvtConfig's and AvtProcessor's of the same names."""

    vision_grid: int = 3
    video_frames: int = 2
    audio_layers: tuple[int, ...] = (-1,)
    audio_pool_frames: int = 20
    audio_window_frames: int = 200
    audio_window_seconds: float = 4.0
    max_audio_windows: int = 8
    column_tags: tuple[str, ...] = ("Left:", " Middle:", " Right:")
    audio_tag: str = "Sound:"


def compose(llm: Part, vision: Part, audio: Part, geometry: Geometry, out: Path, dtype: torch.dtype, seed: int) -> None:
    """Write the composed base to `out`; projectors are drawn from `seed`. Refuses an `out` that exists.

    Raises:
        InputError: `out` exists, or the parts do not fit together.
    """
    template = chat_template(llm.processor)
    tokenizer = add_tokens(llm.processor, llm.model)
    config = _config(llm, vision, audio, geometry, tokenizer, dtype)
    torch.manual_seed(seed)
    model: Any = AvtForConditionalGeneration(config)
    _fill(model, llm.model, vision.model, audio.model)
    _check_llm(model, llm.model)
    processor = _processor(vision, audio, geometry, tokenizer, template)
    with new_folder(out) as folder:
        model.to(dtype).save_pretrained(folder)
        processor.save_pretrained(folder)
        _generation_config(tokenizer).save_pretrained(folder)
        write_code(folder)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """ChatML with media parts, behind the start token where the LLM is used to one."""
    start = tokenizer("x").input_ids[0] == tokenizer.bos_token_id
    return ("{{- bos_token -}}\n" if start else "") + CHAT_TEMPLATE


def add_tokens(tokenizer: PreTrainedTokenizerBase, llm: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Add placeholders, markers and, where the LLM has none, ChatML's turn tokens to tokenizer and LLM.

    A placeholder's embedding is zero: it is never read. A marker and the start of a turn begin as the newline's
    embedding, which the LLM knows as a separator, the end of a turn as that of its end of text.
    """
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    end, known = tokenizer.eos_token_id, len(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [*PLACEHOLDERS, *BOUNDARIES, *TURNS]})
    llm.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=VOCABULARY_MULTIPLE, mean_resizing=False)
    like = {**dict.fromkeys(BOUNDARIES, newline), TURNS[0]: newline, TURNS[1]: end}
    vocabulary = tokenizer.get_vocab()
    with torch.no_grad():
        for table in {llm.get_input_embeddings().weight, llm.get_output_embeddings().weight}:
            table[known:] = 0
            for token, source in like.items():
                if vocabulary[token] >= known:
                    table[vocabulary[token]] = table[source].clone()
    return tokenizer


def write_code(folder: Path) -> None:
    """Copy the model code into `folder` and name it in the configurations there."""
    for name in CODE_FILES:
        shutil.copy(Path(__file__).parent / name, folder / name)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "auto_map": AUTO_MAP})
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["auto_map"] = {"AutoProcessor": AUTO_MAP["AutoProcessor"]}
    processor["video_processor"]["auto_map"] = {"AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"]}
    write_json(folder / "processor_config.json", processor)


def _config(llm: Part, vision: Part, audio: Part, geometry: Geometry, tokenizer, dtype: torch.dtype) -> AvtConfig:
    ids = tokenizer.convert_tokens_to_ids
    pixels = torch.zeros(1, 3, *_picture_size(vision.processor))
    with torch.no_grad():
        states = vision.model.eval().float()(pixels).last_hidden_state
    return AvtConfig(
        text_config=llm.model.config,
        vision_config=vision.model.config,
        audio_config=audio.model.config,
        image_token_id=ids(PLACEHOLDERS[0]),
        video_token_id=ids(PLACEHOLDERS[1]),
        audio_token_id=ids(PLACEHOLDERS[2]),
        boundary_token_ids=ids(list(BOUNDARIES)),
        vision_feature_size=states.shape[1] if states.dim() == 4 else states.shape[2],
        vision_grid=geometry.vision_grid,
        video_frames=geometry.video_frames,
        audio_layers=list(geometry.audio_layers),
        audio_pool_frames=geometry.audio_pool_frames,
        audio_window_frames=geometry.audio_window_frames,
        architectures=["AvtForConditionalGeneration"],
        dtype=dtype,
    )


def _fill(model: AvtForConditionalGeneration, llm, vision, audio) -> None:
    """Copy the parts' weights in, and give the projectors' output the scale of the LLM's embeddings."""
    inner = model.model
    encoder = audio.get_encoder() if audio.config.is_encoder_decoder else audio
    inner.vision_tower.load_state_dict(vision.state_dict())
    inner.audio_tower.load_state_dict(encoder.state_dict())
    inner.language_model.load_state_dict(llm.base_model.state_dict())
    model.lm_head.load_state_dict(llm.get_output_embeddings().state_dict(), strict=False)
    model.tie_weights()
    scale = inner.get_input_embeddings().weight.float().pow(2).mean().sqrt()
    for projector in (inner.vision_projector, inner.audio_projector):
        torch.nn.init.constant_(projector.norm_out.weight, scale.item())


def _check_llm(model: AvtForConditionalGeneration, llm: PreTrainedModel) -> None:
    """Refuse an LLM that does more after its last layer than a linear head: scaled or capped logits, a bias."""
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        same = torch.allclose(model.eval()(input_ids=ids).logits, llm.eval()(ids).logits, rtol=1e-3, atol=1e-3)
    if not same:
        raise InputError(
            f"{type(llm).__name__} changes its logits after the head, which AVT does not: choose another LLM."
        )


def _processor(vision: Part, audio: Part, geometry: Geometry, tokenizer, template: str) -> AvtProcessor:
    pictures = vision.processor
    height, width = _picture_size(pictures)
    videos = AvtVideoProcessor(
        size={"height": height, "width": width},
        image_mean=list(pictures.image_mean),
        image_std=list(pictures.image_std),
        resample=int(pictures.resample),
        num_frames=geometry.video_frames,
    )
    tokenizer.padding_side = "left"
    return AvtProcessor(
        pictures,
        audio.processor,
        videos,
        tokenizer,
        chat_template=template,
        vision_grid=geometry.vision_grid,
        audio_window_seconds=geometry.audio_window_seconds,
        audio_window_tokens=geometry.audio_window_frames // geometry.audio_pool_frames,
        max_audio_windows=geometry.max_audio_windows,
        column_tags=geometry.column_tags,
        audio_tag=geometry.audio_tag,
    )


def _picture_size(image_processor) -> tuple[int, int]:
    size = image_processor.size
    return size["height"], size["width"]


def _generation_config(tokenizer) -> GenerationConfig:
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(TURNS[1]),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
