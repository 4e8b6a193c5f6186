"""What the page is about: the models to ask, the examples, where files lie."""

from dataclasses import dataclass, field

from imod_demo.examples import Example
from imod_demo.shelf import Shelf
from imod_demo.talk import Target


@dataclass(frozen=True)
class Desk:
    """All that the page needs to know."""

    targets: tuple[Target, ...]
    """Models to ask; the first is asked unless the visitor chooses."""
    beside: Target | None = None
    """Asked the same thing, from the start."""
    examples: tuple[Example, ...] = ()
    credits: str = ""
    """Whose work the examples are made of."""
    shelf: Shelf = field(default_factory=Shelf)
    max_tokens: int = 64
    """Of an answer, unless the visitor says otherwise."""

    def chosen(self, model: str, beside: str) -> list[Target]:
        """The one or two that the visitor chose by their labels."""
        labelled = {target.label: target for target in self.targets}
        first = labelled.get(model, self.targets[0])
        return [first, *([labelled[beside]] if beside in labelled else [])]
