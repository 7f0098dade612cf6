"""The plan of a listening test: what is heard, by whom, in which order and on which side, all from one seed.

Two listeners in a row share their draw with the sides exchanged, so sides are balanced within each listener
(to one trial) and exactly over each such couple. Conditions have names here and in `design.json`, and nowhere
on the page.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import paths
from ..errors import reading
from ..measures.loudness import match_loudness
from ..model.generation import Generation
from ..sound import encode_file, to_clips

KINDS = ("preference", "abx", "rating")


@dataclasses.dataclass(frozen=True)
class Screening:
    """Whose answers count, decided before anyone has answered; None switches a rule off.

    Attributes
    ----------
    headphones_wrong : at most so many wrong answers in the headphone check
    one_side : at most this share of forced choices on the same side (from 8 answers on)
    repeats_agree : at least this share of repeated trials answered alike (from 2 repeats on). Off by default:
        whoever hears no difference answers at random there too, so the rule favours those who hear one
    answered : at least this share of the test answered
    """

    headphones_wrong: int | None = 1
    one_side: float | None = 0.9
    repeats_agree: float | None = None
    answered: float | None = 0.5


@dataclasses.dataclass(frozen=True)
class Trial:
    """One page: `slots` are the conditions heard as A, B, C ...; `x` is the condition heard as X in ABX."""

    key: str
    stage: str  # "headphones", "practice" or "main"
    kind: str
    item: int
    slots: tuple[str, ...]
    x: str | None = None
    repeat: bool = False

    def facts(self) -> dict:
        """What an answer to it says of it."""
        told = {"stage": self.stage, "design": self.kind, "item": self.item}
        return told | {"slots": list(self.slots), "repeat": self.repeat}


@dataclasses.dataclass(frozen=True)
class Design:
    """Everything fixed before the first answer; `ListeningTest` says what its options mean."""

    name: str
    kind: str
    question: str
    conditions: tuple[str, ...]
    items: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    reference: str | None
    anchor: str | None
    seed: int
    repeats: int
    practice: int
    headphones: int
    listen: float
    loudness: float
    sample_rate: int
    duration: float
    screening: Screening
    test_hash: str
    stimuli: Mapping[str, Mapping[str, str]]  # condition -> item number as text -> file name without suffix


HEADPHONES = ("full", "antiphase", "quiet")  # the sounds of the check; see `session.headphone_tone`


def trials(design: Design, listener: int) -> list[Trial]:
    """The trials of a listener (numbered from 1), in order: headphone check, practice, test, repeats.

    A repeated trial has the sides exchanged.
    """
    couple, mirrored = divmod(listener - 1, 2)
    sides, order = (np.random.default_rng([design.seed, couple, k]) for k in (0, 1 + mirrored))
    main = _rating(design, sides, listener) if design.kind == "rating" else _forced(design, sides, mirrored)
    main = [main[k] for k in order.permutation(len(main))]
    again = [main[k] for k in order.permutation(len(main))[: design.repeats]]
    again = [dataclasses.replace(t, key=f"{t.key}:again", slots=t.slots[::-1], repeat=True) for t in again]
    practice = [
        dataclasses.replace(main[k % len(main)], key=f"practice:{n}", stage="practice")
        for n, k in enumerate(order.permutation(len(main))[: design.practice])
    ]
    tones = [tuple(str(s) for s in order.permutation(HEADPHONES)) for _ in range(design.headphones)]
    check = [Trial(f"headphones:{n}", "headphones", "headphones", n, three) for n, three in enumerate(tones)]
    return [*check, *practice, *main, *again]


def _forced(design: Design, rng: np.random.Generator, mirrored: int) -> list[Trial]:
    found = []
    for number, (a, b) in enumerate(design.pairs):
        # two bits, each balanced over the items: which side, and which one is X
        cells = (rng.integers(4) + rng.permutation(len(design.items))) % 4
        for item, cell in enumerate(cells):
            slots = (b, a) if (cell % 2) ^ mirrored else (a, b)
            x = (a, b)[cell // 2] if design.kind == "abx" else None
            found.append(Trial(f"{number}:{item}", "main", design.kind, item, slots, x))
    return found


def _rating(design: Design, rng: np.random.Generator, listener: int) -> list[Trial]:
    base, rows = rng.permutation(design.conditions), rng.permutation(len(design.items))
    turn = listener % len(base)
    slots = [tuple(str(s) for s in np.roll(base, row + turn)) for row in rows]  # rows of a Latin square
    return [Trial(f"{item}", "main", "rating", item, row) for item, row in enumerate(slots)]


def gather(conditions: Mapping[str, Any]) -> tuple[dict[str, list[np.ndarray]], list[str], int]:
    """Clips of every condition, matched by position, at one rate, number of channels, and length per item.

    `conditions` maps a name to a Generation, or to a sequence of (audio, sample_rate). Returns clips (name ->
    list of (channel, sample)), item names, and the sample rate in Hz. Shorter clips of an item end in
    silence, so that no length gives them away. Raises ValueError for fewer than two conditions, unequal
    numbers of clips, or generations whose seeds don't match.
    """
    if len(conditions) < 2 or not all(isinstance(name, str) and name.strip() for name in conditions):
        raise ValueError("a listening test compares at least two conditions: {name: clips, name: clips}")
    counts = {name: len(clips) for name, clips in conditions.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"clips are matched by position: all conditions need the same number, not {counts}")
    made = {name: clips for name, clips in conditions.items() if isinstance(clips, Generation)}
    seeds = {name: list(clips.seeds) for name, clips in made.items()}
    if len(set(map(tuple, seeds.values()))) > 1:
        raise ValueError(f"clips compared with each other should come from the same seeds: {seeds}")
    names = [f"item {k}" for k in range(max(counts.values()))]
    if made:  # what was asked for, not what was done to it: steerings differ between conditions
        first = next(iter(made.values()))
        names = [f"{p or 'no prompt'} (seed {n})" for p, n in zip(first.prompts, first.seeds, strict=True)]
    names = [name if names.count(name) == 1 else f"{name}, {k}" for k, name in enumerate(names)]
    sounds = {name: [(audio, clips.sample_rate) for audio in clips.audio] for name, clips in made.items()}
    pairs = {**conditions, **sounds}
    rate = int(max(r for clips in pairs.values() for _, r in clips))
    channels = 1 + any(np.ndim(a) > 1 and np.shape(a)[-2] > 1 for clips in pairs.values() for a, _ in clips)
    found = {n: [to_clips(a, int(r), rate, channels)[0] for a, r in clips] for n, clips in pairs.items()}
    longest = [max(clip.shape[-1] for clip in item) for item in zip(*found.values(), strict=True)]
    pad = lambda clip, length: np.pad(clip, ((0, 0), (0, length - clip.shape[-1])))
    return {name: list(map(pad, clips, longest)) for name, clips in found.items()}, names, rate


def test_hash(clips: Mapping[str, Sequence[np.ndarray]], options: Mapping) -> str:
    """Sixteen hex digits over audio and options: whether a folder holds this very test."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name, part in clips.items():
        for clip in part:
            digest.update(f"{name}{clip.shape}".encode() + np.ascontiguousarray(clip).tobytes())
    return digest.hexdigest()[:16]


def save_design(folder: Path, clips: Mapping[str, Sequence], rate: int, options: Mapping) -> Design:
    """Match the loudness of all clips, write them under random names, then the plan; returns it."""
    places = [(name, str(k)) for name, part in clips.items() for k in range(len(part))]
    matched, reached = match_loudness([clips[name][int(k)] for name, k in places], rate, options["loudness"])
    stimuli: dict[str, dict[str, str]] = {name: {} for name in clips}
    for (name, k), clip in zip(places, matched, strict=True):
        token = stimuli[name][k] = secrets.token_hex(12)
        paths.replace(folder / "stimuli" / f"{token}.flac", encode_file(clip, rate, "flac"))
    seconds = max(clip.shape[-1] for clip in matched) / rate
    facts = {**options, "loudness": round(reached, 2), "sample_rate": rate, "duration": round(seconds, 3)}
    facts |= {"fingerprint": test_hash(clips, options), "stimuli": stimuli}
    paths.replace(folder / "design.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return load_design(folder)


def load_design(folder: Path) -> Design:
    """Read the plan of a test; raises FileNotFoundError if the folder holds none.

    The plan may be a stranger's: ValueError if it isn't whole, or a sound isn't a file of the folder's own.
    """
    path = Path(folder) / "design.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no listening test (no design.json)")
    with reading(path, "copy the plan of the listening test again"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        facts |= {"test_hash": facts.pop("fingerprint"), "screening": Screening(**facts["screening"])}
        facts |= {key: tuple(facts[key]) for key in ("conditions", "items")}
        design = Design(**facts | {"pairs": tuple(map(tuple, facts["pairs"]))})
        asked = [design.stimuli[c][str(k)] for c in design.conditions for k in range(len(design.items))]
    home = Path(folder).resolve() / "stimuli"
    for name in asked:
        file = home / f"{name}.flac"
        if not re.fullmatch("[0-9a-f]{8,64}", str(name)) or file.resolve() != file:
            raise ValueError(f"{path} names a sound that isn't in its own stimuli/ ({name!r}): don't open it")
    return design
