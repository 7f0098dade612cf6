"""What the study asks: a concept, where it is to come in, and what would count."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mechsteer._shared import did_you_mean

STRENGTHS = (0.5, 1.0, 1.5, 2.5)  # class gaps
SIGNED = (-2.0, -1.0, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One place for a concept to come in.

    Attributes
    ----------
    name : unique
    label, value : what a judge must hear: `value` in its column `label`, such as "lead" and "guitar"
    question : "main" (methods, refitted), "penalty", "ways", "late" (from the third second on) or "tempo"
    source : the prompt that is played, None for music that no prompt asks for
    asked : the prompt that asks for the concept outright
    among : classes of `label` that readers and writers learn from; empty for all
    stays : labels that the prompt names beside `label`
    site : where directions are read and added; "resid" at the middle layer, others at every layer
    """

    name: str
    label: str
    value: Any
    question: str = "main"
    source: str | None = None
    asked: str | None = None
    among: tuple[str, ...] = ()
    stays: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    site: str = "resid"

    @property
    def concept(self) -> str:
        """What the directions of a flag, or of a number, are called after: its label."""
        return self.value if isinstance(self.value, str) and self.label in ("lead", "style") else self.label

    @property
    def branch(self) -> str:
        return "both" if self.source is None else "cond"

    def captions(self, labels: Mapping[str, Any]) -> tuple[str, str]:
        """For a clip with these labels: the caption that asks for the concept, and the one that doesn't."""
        source = next(of for of in self.among if of != self.value)
        return tuple(words({**labels, self.label: value}) for value in (self.value, source))


def words(labels: Mapping[str, str]) -> str:
    """ "jazz piano" for {"lead": "piano", "style": "jazz"}."""
    return " ".join(labels[label] for label in ("style", "lead") if label in labels)


def _against(name, label, source, target, stays, **options) -> Setting:
    prompts = (words({**stays, label: value}) for value in (source, target))
    return Setting(
        name, label, target, options.pop("question", "main"), *prompts, (source, target), stays, **options
    )


_GUITAR = ("lead", "piano", "guitar", {"style": "jazz"})
SETTINGS = (
    Setting("guitar", "lead", "guitar"),
    _against("piano to guitar", *_GUITAR),
    Setting("rock", "style", "rock"),
    Setting("drums", "drums", True),
    _against("piano to guitar, ways to add", *_GUITAR, question="ways"),
    Setting("guitar, by penalty", "lead", "guitar", "penalty"),
    _against("piano to guitar, from the third second", *_GUITAR, question="late"),
    Setting("tempo", "tempo", "bpm", "tempo"),
    Setting("violin", "lead", "violin"),
    Setting("guitar at attention outputs", "lead", "guitar", site="attn"),
    Setting("rock, by penalty", "style", "rock", "penalty"),
)


def chosen(names: Sequence[str] = ()) -> list[Setting]:
    """The settings of these names, all without any; ValueError for a name that none has, which lists them."""
    every = {setting.name: setting for setting in SETTINGS}
    for name in names:
        if name not in every:
            told = [f"No setting is called {name!r}.", did_you_mean(name, every)]
            raise ValueError(" ".join(filter(None, [*told, f"There are {', '.join(map(repr, every))}"])))
    return [every[name] for name in names or every]
