"""The ONNX graphs of a folder as a link of the chain, run without torch; `onnx:int8` names a smaller form."""

from pathlib import Path

import torch

from imod_core.console import track
from imod_core.errors import InputError
from imod_export.links import Question, Reply
from imod_export.onnx.layout import FOLDER, FULL, SUFFIXES, variants_in
from imod_export.onnx.runtime import OnnxModel
from imod_export.subject import NEW_TOKENS, POSITIONS, placeholder_ids, read_config
from imod_export.tolerances import ONNX


class OnnxLink:
    """`folder`/onnx in one of its forms; float32 where `variant` is None."""

    weaves = False

    def __init__(self, folder: Path, variant: str | None):
        form = variant or FULL
        if form not in SUFFIXES:
            raise InputError(f"--against onnx:{form}: the forms are {', '.join(SUFFIXES)}.")
        if form not in variants_in(folder / FOLDER):
            raise InputError(f"{folder} has no ONNX graphs in {form}: write them with imod export --onnx.")
        self.folder, self.form = folder, form
        self.name = "onnx" if form == FULL else f"onnx:{form}"
        self.arithmetic = "float32" if form == FULL else form
        self.tolerance = ONNX[form]

    def ask(self, questions: list[Question]) -> dict[str, Reply]:
        """Replies with full logits, the reference's answer teacher-forced token by token."""
        model = OnnxModel(self.folder / FOLDER, self.form)
        suppressed = placeholder_ids(read_config(self.folder)) or []
        replies = {}
        for question in track(questions, f"ONNX on probes, {self.form}"):
            prompt = model.prompt(question.probe.messages, question.probe.media)
            greedy = model.greedy(prompt, NEW_TOKENS, suppressed)
            logits = torch.from_numpy(model.logits(prompt, question.answer, POSITIONS))
            first = len(question.answer) + 1 - len(logits)
            replies[question.probe.name] = Reply(prompt.ids, greedy, model.text(greedy), first, logits)
        return replies
