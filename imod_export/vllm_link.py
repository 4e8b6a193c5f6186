"""vLLM as a link of the chain, in its own process: on the merged folder, or on the base with the adapter beside it.

vLLM tells its best log probabilities for tokens that it chose itself, so rows are compared as far as its greedy answer
is the reference's, and one further.
"""

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imod_core.artifacts import read_json
from imod_core.console import console
from imod_core.errors import CheckFailed, InputError, MissingExtraError
from imod_core.families.load import load_processor
from imod_core.families.served import adapter_for_vllm
from imod_core.sampling import as_clip
from imod_export.compare import common_prefix
from imod_export.links import LORA, Question, Reply, Unmerged
from imod_export.processor import view
from imod_export.subject import NEW_TOKENS, WEAVE, placeholder_ids, read_config
from imod_export.tolerances import ARITHMETIC

SUPPORT = 64
"""Log probabilities a position."""


class VllmLink:
    """vLLM on a folder, computing in float32."""

    name = "vllm"
    arithmetic = "float32"
    tolerance = ARITHMETIC["float32"]
    weaves = True

    def __init__(self, folder: Path, variant: str | None = None):
        if find_spec("vllm") is None:
            raise MissingExtraError("vllm", "serve-cpu")
        self.folder = folder
        self.adapter: Path | None = None

    def ask(self, questions: list[Question]) -> dict[str, Reply]:
        """Replies with vLLM's best log probabilities.

        Raises:
            CheckFailed: vLLM does not load the folder or dies over a probe.
        """
        tokenizer = load_processor(self.folder)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        console.print(f"vLLM on {len(questions)} probes")
        with tempfile.TemporaryDirectory(prefix="imod-parity-") as place:
            config, adapter = read_config(self.folder), self.adapter
            adapter = adapter and adapter_for_vllm(adapter, config, Path(place) / "adapter")
            write_requests(Path(place), questions, placeholder_ids(config) or [], adapter)
            found = self._run(self._served(Path(place)), Path(place))
        replies = {}
        for question in questions:
            ids, greedy, rows = (found[question.probe.name][key] for key in ("prompt", "tokens", "rows"))
            text = tokenizer.decode(greedy, skip_special_tokens=True)
            rows = rows[: common_prefix(question.answer, greedy) + 1]
            replies[question.probe.name] = Reply(ids, greedy, text, 0, *as_tensors(rows))
        return replies

    def _served(self, place: Path) -> Path:
        """The folder that vLLM is given."""
        return self.folder

    def _run(self, folder: Path, place: Path) -> dict[str, Any]:
        # -P keeps a folder `vllm` in the working directory from being imported instead.
        command = [sys.executable, "-P", "-m", "imod_export.vllm_worker", str(folder), str(place)]
        log = place / "log.txt"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
            try:
                code = process.wait()
            finally:
                process.kill()
        if code:
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            errors = [line for line in lines if "Error" in line]
            reason = (errors or lines or [f"it ended with code {code}"])[-1]
            raise CheckFailed(f"vLLM does not run {self.folder} ({reason[-300:]}): run imod doctor {self.folder}.")
        return json.loads((place / "replies.json").read_text())


class VllmLoraLink(VllmLink):
    """vLLM on the base of a merge, with its one adapter unmerged.

    Raises:
        InputError: several adapters, a weighted one, or none: vLLM cannot run that.
    """

    def __init__(self, folder: Path, unmerged: Unmerged | None = None):
        super().__init__(folder)
        self.name = LORA
        if unmerged is None or [weight for _, weight in unmerged.adapters] != [1.0]:
            raise InputError(f"--against {LORA} serves one adapter of weight 1: give --merge once, without --weight.")
        self.folder, self.adapter = unmerged.base or folder, unmerged.adapters[0][0]
        self.processor = folder if unmerged.limited else None

    def _served(self, place: Path) -> Path:
        return view(self.folder, self.processor, place / "base") if self.processor else self.folder


def write_requests(place: Path, questions: list[Question], suppressed: list[int], adapter: Path | None = None) -> None:
    """What the worker reads: `requests.json`, and each medium as an array beside it."""
    requests = []
    for number, question in enumerate(questions):
        media: dict[str, list[str]] = {}
        for kind, items in question.probe.media.items():
            for n, item in enumerate(items):
                name = f"{number}-{kind}-{n}.npy"
                np.save(place / name, np.asarray(item), allow_pickle=False)
                media.setdefault(kind, []).append(name)
        clips = [as_clip(video).metadata for video in question.probe.media.get("video", [])]
        options = {WEAVE: True} if question.probe.woven else {}
        asked = {"name": question.probe.name, "prompt": question.text, "media": media}
        requests.append({**asked, "clips": clips, "options": options})
    longest = max(len(question.ids) for question in questions) + NEW_TOKENS
    settings: dict[str, Any] = {
        "max_tokens": NEW_TOKENS,
        "support": SUPPORT,
        "suppressed": suppressed,
        "length": longest + 64,
    }
    if adapter:
        settings |= {"adapter": str(adapter), "rank": read_json(adapter / "adapter_config.json")["r"]}
    (place / "requests.json").write_text(json.dumps({"requests": requests, **settings}))


def as_tensors(rows: list[list[list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `[token id, log probability]` as `(K, M)` values and ids, cut to the shortest row."""
    width = min((len(row) for row in rows), default=0)
    values = torch.tensor([[pair[1] for pair in row[:width]] for row in rows], dtype=torch.float64)
    ids = torch.tensor([[int(pair[0]) for pair in row[:width]] for row in rows], dtype=torch.int64)
    return values, ids
