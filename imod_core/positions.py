"""Where the text after a video stands in Qwen2-VL and Qwen2.5-VL: after everything of the video, its last moment too.

The models were made with positions that go on one after the largest of the video's, in time, height or width.
transformers 5 goes on after height and width alone, so that the text shares positions with the video's later frames,
unlike in the models' first release and in vLLM; see docs/vllm-differences.md. `mend_video_positions` puts it right, and
leaves a transformers alone that is.
"""

from typing import Any

import torch

MODELS = ("Qwen2VLModel", "Qwen2_5_VLModel")
VIDEO = 2
"""In `mm_token_type_ids`."""


def mend_video_positions() -> tuple[str, ...]:
    """Correct transformers' classes in this process, where they need it; their names. Safe to call again."""
    import transformers

    found = [getattr(transformers, name) for name in MODELS]
    wrong = [model for model in found if not _is_right(model)]
    for model in wrong:
        model.get_rope_index = _mended(model.get_rope_index)
    return tuple(model.__name__ for model in wrong)


def after_videos(
    positions: torch.Tensor, kinds: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions `(3, B, L)` with what follows each video moved behind it, and the model's `rope_deltas (B, 1)`.

    `kinds (B, L)` are the processor's `mm_token_type_ids`; padding is not touched.
    """
    positions = positions.clone()
    deltas = []
    for row, kind in enumerate(kinds):
        kept = attention_mask[row].bool() if attention_mask is not None else torch.ones_like(kind, dtype=torch.bool)
        own, marks = positions[:, row, kept], kind[kept]
        edges = torch.nonzero(marks[1:] != marks[:-1]).flatten() + 1
        for start, end in zip([0, *edges.tolist()], edges.tolist(), strict=False):
            if marks[start] == VIDEO:
                own[:, end:] += (own[:, start:end].max() + 1 - own[0, end]).clamp(min=0)
        positions[:, row, kept] = own
        deltas.append(own.max() + 1 - len(marks))
    return positions, torch.stack(deltas).unsqueeze(1)


def _mended(original: Any) -> Any:
    def get_rope_index(
        self: Any, input_ids: torch.Tensor, mm_token_type_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        positions, _ = original(self, input_ids, mm_token_type_ids, *args, **kwargs)
        return after_videos(positions, mm_token_type_ids, kwargs.get("attention_mask"))

    get_rope_index.__doc__ = original.__doc__
    return get_rope_index


def _is_right(model: Any) -> bool:
    """Whether text goes on at 5 after a video of a row of two patches at 1 that lasts until 4, or says too little."""
    from types import SimpleNamespace

    vision = SimpleNamespace(spatial_merge_size=1, tokens_per_second=1)
    stub = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    try:
        stub.get_vision_position_ids = model.get_vision_position_ids.__get__(stub)
        kinds = torch.tensor([[0] + [VIDEO] * 8 + [0]])
        found, _ = model.get_rope_index(stub, torch.zeros_like(kinds), kinds, video_grid_thw=torch.tensor([[4, 1, 2]]))
    except (TypeError, AttributeError):  # another interface, as before transformers 5: nothing is known to be wrong
        return True
    return int(found[0, 0, -1]) != 3
