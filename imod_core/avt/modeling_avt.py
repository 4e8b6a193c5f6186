"""AVT: a causal LLM that reads pictures, sounds and videos through frozen towers and trained projectors.

Letters: `B` batch, `L` tokens, `n` media, `C` tower channels, `T` frames, `g` grid side, `W` windows, `D` LLM width.

A tower's output, pooled, is called a *state*; it does not change while projectors and adapters are trained, so training
may pass cached `*_states` in place of pixels and mel features. A projector turns states into token embeddings.
"""

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)

from .configuration_avt import AvtConfig


class AvtProjector(nn.Module):
    """Two-layer MLP from pooled tower states `(..., C)` to embeddings `(..., D)` of the LLM's own scale."""

    def __init__(self, in_features: int, hidden: int, out_features: int):
        super().__init__()
        self.norm_in = nn.LayerNorm(in_features)
        self.fc1 = nn.Linear(in_features, hidden)
        self.fc2 = nn.Linear(hidden, out_features)
        self.norm_out = nn.LayerNorm(out_features)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.fc1(self.norm_in(states)))
        return self.norm_out(self.fc2(hidden))


class AvtPreTrainedModel(PreTrainedModel):
    """What AVT tells transformers about itself."""

    config_class = AvtConfig
    base_model_prefix = "model"
    input_modalities = ("image", "video", "audio", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class AvtModel(AvtPreTrainedModel):
    """Towers, projectors and the LLM without its head."""

    def __init__(self, config: AvtConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.audio_tower = _encoder(AutoModel.from_config(config.audio_config))
        width = config.text_config.hidden_size
        self.vision_projector = AvtProjector(config.vision_feature_size, config.projector_hidden_size, width)
        self.audio_projector = AvtProjector(config.audio_feature_size, config.projector_hidden_size, width)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.language_model

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pooled states `(n, g*g, C)` of pictures `(n, 3, H, W)`, columns from the left, each from the top."""
        grid = self._vision_grid(pixel_values)
        return grid.flatten(1, 2)

    def encode_videos(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        """Pooled states `(n, g*T*g, C)` of videos `(n, T, 3, H, W)`: by column, in it by frame, in it from the top."""
        n, frames = pixel_values_videos.shape[:2]
        grid = self._vision_grid(pixel_values_videos.flatten(0, 1))
        grid = grid.unflatten(0, (n, frames)).transpose(1, 2)
        return grid.flatten(1, 3)

    def encode_audio(self, input_features: torch.Tensor) -> torch.Tensor:
        """Pooled states `(n, W*tokens, 2*layers*d)` of sounds `(n, W, ...)`, each window as the tower wants it."""
        n, windows = input_features.shape[:2]
        features = input_features.flatten(0, 1).to(self.audio_tower.dtype)
        outputs = self.audio_tower(features, output_hidden_states=True, return_dict=True)
        hidden = torch.cat([outputs.hidden_states[i] for i in self.config.audio_layers], dim=-1)
        size = self.config.audio_pool_frames
        hidden = hidden[:, : hidden.shape[1] // size * size].unflatten(1, (-1, size))
        variance = hidden.var(dim=2, unbiased=False)
        states = torch.cat([hidden.mean(dim=2), (variance + 1e-6).sqrt()], dim=-1)
        return states.unflatten(0, (n, windows)).flatten(1, 2)

    def _vision_grid(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tower output of pictures `(n, 3, H, W)` pooled to `(n, g columns, g rows, C)`."""
        hidden = self.vision_tower(pixel_values.to(self.vision_tower.dtype)).last_hidden_state
        if hidden.dim() == 3:
            side = int(hidden.shape[1] ** 0.5)
            hidden = hidden[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        pooled = nn.functional.adaptive_avg_pool2d(hidden, self.config.vision_grid)
        return pooled.permute(0, 3, 2, 1)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Token embeddings of pictures as `.pooler_output (n, tokens, D)`."""
        states = self.encode_images(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.vision_projector(states))

    def get_video_features(self, pixel_values_videos: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Token embeddings of videos as `.pooler_output (n, tokens, D)`."""
        states = self.encode_videos(pixel_values_videos)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.vision_projector(states))

    def get_audio_features(
        self, input_features: torch.Tensor, audio_windows: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Token embeddings of sounds as `.pooler_output (n, tokens, D)`; of unequal lengths, `(all tokens, D)`."""
        states = self.encode_audio(input_features)
        if audio_windows is not None:
            states = _drop_padding(states, audio_windows.flatten() * self.config.audio_window_tokens)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.audio_projector(states))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_windows: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        video_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states `(B, L, D)`. `*_states (n, tokens, C)` are cached tower outputs in the media's order."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        embeddings = {
            "image": _embed(self.get_image_features, pixel_values, self.vision_projector, image_states),
            "video": _embed(self.get_video_features, pixel_values_videos, self.vision_projector, video_states),
            "audio": _embed(
                self.get_audio_features,
                input_features,
                self.audio_projector,
                audio_states,
                audio_windows=audio_windows,
            ),
        }
        for modality, embedded in embeddings.items():
            if embedded is not None:
                inputs_embeds = self._place(input_ids, inputs_embeds, modality, embedded)
        return self.language_model(
            input_ids=None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def _place(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor, modality: str, embedded: torch.Tensor
    ) -> torch.Tensor:
        """Put a modality's embeddings at its placeholders; as many of one as of the other, else ValueError."""
        if input_ids is None:
            raise ValueError(f"{modality} inputs need input_ids, whose placeholders say where they belong")
        embedded = embedded.reshape(-1, embedded.shape[-1]).to(inputs_embeds.dtype)
        mask = input_ids == getattr(self.config, f"{modality}_token_id")
        torch._check(
            int(mask.sum()) == embedded.shape[0],
            lambda: f"{int(mask.sum())} {modality} placeholders for {embedded.shape[0]} {modality} embeddings",
        )
        return inputs_embeds.masked_scatter(mask.unsqueeze(-1), embedded)


class AvtForConditionalGeneration(AvtPreTrainedModel, GenerationMixin):
    """AVT with the LLM's head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: AvtConfig):
        super().__init__(config)
        self.model = AvtModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_windows: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
        video_states: torch.Tensor | None = None,
        audio_states: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits `(B, L, vocabulary)`, and with `labels (B, L)` the mean next-token loss over labels other than -100.

        In training only the supervised positions go through the head, which at a large vocabulary is most of the
        work for short answers; `logits` is then None. `num_items_in_batch` replaces the count that the loss is
        divided by, as transformers' Trainer wants it under gradient accumulation.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            input_features=input_features,
            audio_windows=audio_windows,
            image_states=image_states,
            video_states=video_states,
            audio_states=audio_states,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if labels is not None and self.training:
            return CausalLMOutputWithPast(loss=self._supervised_loss(hidden, labels, num_items_in_batch))
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep, :])
        loss = None if labels is None else self._supervised_loss(hidden, labels, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def _supervised_loss(
        self, hidden: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        targets = labels[:, 1:]
        supervised = targets != -100
        logits = self.lm_head(hidden[:, :-1][supervised]).float()
        total = nn.functional.cross_entropy(logits, targets[supervised], reduction="sum")
        return total / (supervised.sum() if num_items is None else num_items)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, is_first_iteration=False, **kwargs):
        """Media go into the first pass alone; later ones find them in the cache."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in MEDIA_INPUTS:
                inputs.pop(name, None)
        return inputs


MEDIA_INPUTS = (
    "pixel_values",
    "pixel_values_videos",
    "input_features",
    "audio_windows",
    "image_states",
    "video_states",
    "audio_states",
)


def _encoder(model: PreTrainedModel) -> PreTrainedModel:
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _embed(encode, raw: torch.Tensor | None, projector: AvtProjector, states: torch.Tensor | None, **kwargs):
    if states is not None:
        return projector(states.to(projector.fc1.weight.dtype))
    return None if raw is None else encode(raw, **kwargs).pooler_output


def _drop_padding(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """`(n, longest, C)` with true `lengths (n,)` to `(sum of lengths, C)`; unchanged if nothing is padded."""
    if bool((lengths == states.shape[1]).all()):
        return states
    keep = torch.arange(states.shape[1], device=states.device) < lengths[:, None].to(states.device)
    return states[keep]


__all__ = ["AvtForConditionalGeneration", "AvtModel", "AvtPreTrainedModel"]
