"""Who said what, with which media: what a visitor and one model have said so far."""

from dataclasses import dataclass, replace
from typing import Any

from imod_demo.medium import Medium
from imod_serve.answer import Answer
from imod_serve.messages import Turn

ORDER = ("image", "video", "audio")
"""In which a turn's media stand before its text."""


@dataclass(frozen=True)
class Said:
    """One turn."""

    role: str
    """`user` or `assistant`."""
    text: str
    media: tuple[Medium, ...] = ()

    @property
    def turn(self) -> Turn:
        """As the client takes it."""
        files = {kind: tuple(m.path for m in self.media if m.kind == kind) for kind in ORDER}
        return Turn(self.role, self.text, files["image"], files["audio"], files["video"])

    @property
    def bubbles(self) -> list[str]:
        """What is shown of it: a line for each medium, then the text."""
        return [*(f"{medium.name} · {medium.facts}" for medium in self.media), self.text]


@dataclass(frozen=True)
class Conversation:
    """Turns in order; each question is followed by its answer, the last one perhaps not yet."""

    said: tuple[Said, ...] = ()
    answer: Answer | None = None
    """The last answer with its figures, once it is complete."""

    @property
    def awaits(self) -> bool:
        """Whether a question stands unanswered."""
        return bool(self.said) and self.said[-1].role == "user"

    @property
    def media(self) -> tuple[Medium, ...]:
        """All that was shown and played so far."""
        return tuple(medium for said in self.said for medium in said.media)

    @property
    def turns(self) -> list[Turn]:
        """Up to the last question."""
        said = self.said if self.awaits else self.said[:-1]
        return [one.turn for one in said]

    @property
    def kinds(self) -> list[str]:
        """Modalities in the order in which they stand in the prompt, each once: `["video", "audio"]`."""
        found: list[str] = []
        for said in self.said:
            for kind in ORDER:
                for medium in (m for m in said.media if m.kind == kind):
                    found += [kind, "audio"] if kind == "video" and medium.sounding else [kind]
        return list(dict.fromkeys(found))

    def asked(self, text: str, media: tuple[Medium, ...]) -> "Conversation":
        """With one more question; it replaces one that was never answered and takes over its media."""
        kept, left = (self.said[:-1], self.said[-1].media) if self.awaits else (self.said, ())
        return Conversation((*kept, Said("user", text, (*left, *media))))

    def answered(self, answer: Answer) -> "Conversation":
        """With the answer to the question that stands, or as far as it has come."""
        question = self.said if self.awaits else self.said[:-1]
        return Conversation((*question, Said("assistant", answer.text)), answer)

    def unanswered(self) -> "Conversation":
        """Without the last answer."""
        return self if self.awaits else replace(self, said=self.said[:-1], answer=None)

    def bubbles(self) -> list[dict[str, Any]]:
        """As Gradio's chatbot takes it."""
        return [{"role": said.role, "content": text} for said in self.said for text in said.bubbles]
