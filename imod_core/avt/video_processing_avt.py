"""Videos for AVT: a fixed number of frames, evenly spaced, then resized and normalised like pictures."""

import torch
from transformers.video_processing_utils import BaseVideoProcessor


class AvtVideoProcessor(BaseVideoProcessor):
    """`pixel_values_videos (n, num_frames, 3, H, W)` from videos of any length.

    Frames are taken here, after decoding, whatever sampling the caller or a server has done before: so a server that
    hands over 32 frames and a training run that hands over all of them end at the same number of tokens.
    """

    model_input_names = ["pixel_values_videos"]  # noqa: RUF012
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = False
    num_frames = 2
    size = {"height": 224, "width": 224}  # noqa: RUF012
    resample = 2
    image_mean = [0.5, 0.5, 0.5]  # noqa: RUF012
    image_std = [0.5, 0.5, 0.5]  # noqa: RUF012

    def _preprocess(self, videos: list[torch.Tensor], **kwargs):
        frames = self.num_frames
        videos = [video[torch.linspace(0, len(video) - 1, frames).long()] for video in videos]
        return super()._preprocess(videos, **kwargs)


__all__ = ["AvtVideoProcessor"]
