"""Another model folder in transformers as a link of the chain: somebody else's merge, or an earlier one."""

from pathlib import Path

from imod_core.errors import InputError
from imod_core.families.load import load_processor
from imod_export.links import Question, Reply
from imod_export.subject import POSITIONS, Subject, load_model, release_memory
from imod_export.tensors import DTYPES, read_checkpoint
from imod_export.tolerances import ROUNDING


class FolderLink:
    """A folder that transformers loads, computing in float32."""

    arithmetic = "float32"
    weaves = True

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.stored = stored_dtype(folder)
        self.tolerance = ROUNDING[self.stored]

    def ask(self, questions: list[Question]) -> dict[str, Reply]:
        """Replies with full logits, the reference's answer teacher-forced."""
        subject = Subject(load_model(self.folder, self.stored, self.arithmetic), load_processor(self.folder))
        found = {}
        for question in questions:
            prompt = subject.prompt(question.probe)
            greedy = subject.greedy(prompt)
            logits = subject.logits(prompt, question.answer)
            first = len(question.answer) + 1 - min(POSITIONS, len(logits))
            found[question.probe.name] = Reply(prompt.ids, greedy, subject.text(greedy), first, logits)
        del subject
        release_memory()
        return found


def stored_dtype(folder: Path) -> str:
    """torch's name of the dtype that most of a folder's weights are stored in.

    Raises:
        InputError: it is none that can be compared.
    """
    sizes: dict[str, int] = {}
    for info in read_checkpoint(folder).tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    most = max(sizes, key=lambda dtype: sizes[dtype])
    names = {v: k for k, v in DTYPES.items()}
    if most not in names:
        raise InputError(f"{folder} stores most weights as {most}: only {', '.join(DTYPES)} can be compared.")
    return names[most]
