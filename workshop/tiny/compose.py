"""Procedural composer: short pieces whose every attribute is known because it was drawn first.

Randomness has two levels. A `Score` (one seed) fixes tempo, tonic, mode, register, loudness, drums, the lead
line, the chord plan and the backing instruments. `compose(score, lead, style)` then plays it: the lead only
picks a General MIDI program, the style only changes how the same chords are comped, voiced, walked and
drummed (jazz also swings). So two pieces of one score differ in nothing but what was asked for.

Time is in beats inside this module (4/4; bars of 4 beats, periods of 2 bars: a tonic bar, then a cadence bar
of two chords) and in seconds in what it returns.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from mechsteer.tiny.vocabulary import LEADS, MODES, SECONDS, STYLES

REGISTERS = {"low": (55, 68), "mid": (63, 76), "high": (74, 88)}  # MIDI pitches of the lead, ends included
LOUDNESS = {"soft": 58, "medium": 84, "loud": 110}  # velocity of an unaccented lead note
TEMPO = (60, 180)  # beats per minute
HARMONY = {"electric piano": 4, "vibraphone": 11, "marimba": 12, "saw synth": 81}
BASS = {"acoustic bass": 32, "finger bass": 33, "synth bass": 38}

_SCALE = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_TRIAD = {"maj": (0, 4, 7), "min": (0, 3, 7), "dim": (0, 3, 6)}
_SEVENTH = {"maj7": (0, 4, 7, 11), "7": (0, 4, 7, 10), "min7": (0, 3, 7, 10), "m7b5": (0, 3, 6, 10)}
# Roman numeral -> (semitones above the tonic, triad, seventh chord). No vi in major and no III in minor, so
# that relative keys don't share their chords; the minor dominant has its leading note.
_CHORDS = {
    "major": {
        "I": (0, "maj", "maj7"),
        "ii": (2, "min", "min7"),
        "IV": (5, "maj", "maj7"),
        "V": (7, "maj", "7"),
    },
    "minor": {
        "i": (0, "min", "min7"),
        "ii": (2, "dim", "m7b5"),
        "iv": (5, "min", "min7"),
        "V": (7, "maj", "7"),
        "VI": (8, "maj", "maj7"),
    },
}
# Every cadence begins on a chord that holds the mode's sixth.
_CADENCES = {"major": ("IV V", "ii V", "IV I", "ii I"), "minor": ("iv V", "VI V", "iv i", "ii i")}
# Note lengths, beats
_CELLS = ((1.0,), (1.0, 1.0), (0.5, 0.5), (1.0, 0.5, 0.5), (1.5, 0.5), (2.0,), (0.5, 0.5, 1.0))
_CELL_WEIGHTS = np.array([0.15, 0.2, 0.2, 0.12, 0.15, 0.08, 0.1])

# Comping: variants of one bar, as (beat, length). Drums: (beat, General MIDI drum, velocity).
_COMP = {
    "classical": (tuple((i / 2, 0.5) for i in range(8)),) * 2,
    "jazz": (((0, 0.7), (1.5, 0.4), (2, 0.7), (3.5, 0.4)), ((0, 0.4), (1.5, 0.8), (2.5, 0.4), (3.5, 0.4))),
    "rock": (
        ((0, 0.95), (1, 0.95), (2, 0.95), (3, 0.95)),
        ((0, 0.9), (1, 0.45), (1.5, 0.45), (2, 0.9), (3, 0.9)),
    ),
    "electronic": (
        ((0, 0.3), (0.75, 0.3), (1.5, 0.3), (2, 0.3), (2.75, 0.3), (3.5, 0.3)),
        ((0.5, 0.3), (0.75, 0.2), (1.5, 0.3), (2.5, 0.3), (2.75, 0.2), (3.5, 0.3)),
    ),
}
_ALBERTI = ((0, 2, 1, 2), (0, 1, 2, 1))
_DRUMS = {
    "classical": [(0, 36, 85), (2, 36, 70)]
    + [(b + d, 38, v) for b in (0, 2) for d, v in ((1, 60), (1.5, 45), (1.75, 45))],
    "jazz": [(b, 51, 75) for b in range(4)]
    + [(1.5, 51, 60), (3.5, 51, 60), (1, 44, 80), (3, 44, 80), (0, 36, 50)],
    "rock": [(i / 2, 42, 75 if i % 2 == 0 else 55) for i in range(8)]
    + [(0, 36, 105), (2, 36, 100), (2.5, 36, 90), (1, 38, 105), (3, 38, 105)],
    "electronic": [(b, 36, 110) for b in range(4)]
    + [(b + 0.5, 46, 70) for b in range(4)]
    + [(1, 39, 85), (3, 39, 85)],
}


@dataclass(frozen=True)
class Score:
    """What one seed fixes. `seed` is the entropy of every later draw; `start` is the time of beat 1 (s)."""

    seed: tuple[int, ...]
    tempo: float
    tonic: int
    mode: str
    register: str
    loudness: str
    drums: bool
    chords_program: int
    bass_program: int
    start: float

    @classmethod
    def draw(cls, *seed: int) -> Score:
        """A score whose attributes are independent and uniform; the same seed gives the same score."""
        rng = np.random.default_rng(seed)
        return cls(
            seed=tuple(int(s) for s in seed),
            tempo=float(rng.integers(TEMPO[0], TEMPO[1] + 1)),
            tonic=int(rng.integers(12)),
            mode=str(rng.choice(MODES)),
            register=str(rng.choice(list(REGISTERS))),
            loudness=str(rng.choice(list(LOUDNESS))),
            drums=bool(rng.integers(2)),
            chords_program=int(rng.choice(list(HARMONY.values()))),
            bass_program=int(rng.choice(list(BASS.values()))),
            start=round(float(rng.uniform(0.0, 0.1)), 4),
        )

    def labels(self) -> dict:
        """The attributes as a dict, without the seed."""
        return {name: value for name, value in asdict(self).items() if name != "seed"}


@dataclass(frozen=True)
class Piece:
    """One score as played by one lead in one style.

    notes : DataFrame with onset and offset (s), pitch (MIDI; drums: General MIDI drum), velocity, part.
    chords : DataFrame with onset and offset (s), root (pitch class, 0 is C), quality (of `_TRIAD` or
        `_SEVENTH`).
    beats : times of the beats, s.
    """

    score: Score
    lead: str
    style: str
    notes: pd.DataFrame
    chords: pd.DataFrame
    beats: np.ndarray


def compose(score: Score, lead: str, style: str, seconds: float = SECONDS) -> Piece:
    """Play a score: same lead line and chords whatever the lead and style.

    Parameters
    ----------
    score : Score
    lead, style : one of `LEADS`, one of `STYLES`.
    seconds : length of the clip, s.

    Raises
    ------
    ValueError  if the lead or the style is unknown (lists those there are).
    """
    for name, value, known in (("lead", lead, LEADS), ("style", style, STYLES)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
    periods = int(np.ceil(seconds * score.tempo / 60 / 8))
    plan = _chord_plan(score, periods)
    base = LOUDNESS[score.loudness]
    rng = np.random.default_rng((*score.seed, 2))
    variant, low = int(rng.integers(2)), int(rng.integers(50, 54))
    events = [(b, n, p, v, "lead") for b, n, p, v in _melody(score, plan, periods, base)]
    events += [(b, n, p, 0.8 * base, "chords") for b, n, p in _comp(plan, style, variant, low, periods)]
    events += [(b, n, p, 0.9 * base, "bass") for b, n, p in _bass(score, plan, style)]
    if score.drums:
        events += [(b, 0.2, p, v * base / 110, "drums") for b, p, v in _drums(style, periods)]
    beat = 60 / score.tempo
    seconds_at = lambda b: score.start + beat * (_swing(b) if style == "jazz" else b)
    rows = [(seconds_at(b), min(seconds_at(b + n), seconds), int(p), int(np.clip(v, 1, 127)), part)
            for b, n, p, v, part in events if seconds_at(b) < seconds - 0.04]  # fmt: skip
    notes = pd.DataFrame(rows, columns=["onset", "offset", "pitch", "velocity", "part"])
    notes = notes.sort_values(["onset", "part", "pitch"], kind="stable", ignore_index=True)
    chords = [(score.start + beat * b, min(score.start + beat * e, seconds), r, q[style == "jazz"])
              for b, e, r, q in plan if score.start + beat * b < seconds]  # fmt: skip
    chords = pd.DataFrame(chords, columns=["onset", "offset", "root", "quality"])
    return Piece(score, lead, style, notes, chords, np.arange(score.start, seconds, beat))


def _swing(beat: float) -> float:
    """Move what falls on or between the off-beats as a jazz player does: beat + 1/2 becomes beat + 2/3."""
    whole, part = divmod(beat, 1.0)
    return whole + (part * 4 / 3 if part <= 0.5 else 2 / 3 + (part - 0.5) * 2 / 3)


def _chord_plan(score, periods):
    """(first beat, last beat, root pitch class, (triad, seventh)) of each chord."""
    rng = np.random.default_rng((*score.seed, 0))
    table, plan = _CHORDS[score.mode], []
    for k in range(periods):
        cadence = str(rng.choice(_CADENCES[score.mode])).split()
        for b, e, numeral in ((0, 4, next(iter(table))), (4, 6, cadence[0]), (6, 8, cadence[1])):
            root, *quality = table[numeral]
            plan.append((8 * k + b, 8 * k + e, (score.tonic + root) % 12, tuple(quality)))
    return plan


def _chord_at(plan, beat):
    return next(chord for chord in reversed(plan) if chord[0] <= beat)


def _rhythm(rng):
    """Note lengths that fill two bars; the first bar's rhythm comes back in the second half the time."""

    def bar():
        lengths = []
        while sum(lengths) < 4:
            cell = _CELLS[rng.choice(len(_CELLS), p=_CELL_WEIGHTS)]
            if sum(lengths) + sum(cell) <= 4:
                lengths += cell
        return lengths

    first = bar()
    return first + (first if rng.random() < 0.5 else bar())


def _melody(score, plan, periods, base):
    """The lead line: chord notes on strong beats (rather thirds and sixths of the mode), steps between."""
    rng = np.random.default_rng((*score.seed, 1))
    low, high = REGISTERS[score.register]
    window = np.arange(low, high + 1)
    rhythm = _rhythm(rng)
    colour = {(score.tonic + _SCALE[score.mode][degree]) % 12 for degree in (2, 5)}
    pitch, beat, line = (low + high) / 2, 0.0, []
    for length in rhythm * periods:
        _, _, root, (triad, _) = _chord_at(plan, beat)
        chord = {(root + i) % 12 for i in _TRIAD[triad]}
        scale = {(score.tonic + i) % 12 for i in _SCALE[score.mode]}
        leading = (score.tonic + 11) % 12
        if leading in chord:  # harmonic minor over the dominant
            scale = scale - {(score.tonic + 10) % 12} | {leading}
        if beat % 8 == 0:  # each period opens on the tonic or its third
            chord = {score.tonic, (score.tonic + _SCALE[score.mode][2]) % 12}
        strong = beat % 2 == 0 or length > 1 or rng.random() < 0.4
        weights = np.array([float(p % 12 in (chord if strong else scale)) for p in window])
        weights *= np.where([p % 12 in colour for p in window], 2.0, 1.0)
        weights *= np.exp(-np.abs(window - pitch) / (3.5 if strong else 2.0)) * np.where(
            window == pitch, 0.15, 1.0
        )
        pitch = int(rng.choice(window, p=weights / weights.sum()))
        breath = 0.7 if beat % 8 + length == 8 and rng.random() < 0.4 else 0.96
        accent = 8 if beat % 4 == 0 else 0
        line.append((beat, length * breath, pitch, base + accent + rng.integers(-5, 6)))
        beat += length
    return line


def _comp(plan, style, variant, low, periods):
    """Chord part: broken triads (classical), rootless sevenths (jazz), triads (rock), stabs (electronic)."""
    for bar in range(2 * periods):
        for i, (at, length) in enumerate(_COMP[style][variant]):
            beat = 4 * bar + at
            _, end, root, (triad, seventh) = _chord_at(plan, beat)
            tones = _SEVENTH[seventh][1:] if style == "jazz" else _TRIAD[triad]
            pitches = sorted(low + (root + t - low) % 12 for t in tones)
            if style == "classical":
                pitches = [pitches[_ALBERTI[variant][i % 4]]]
            elif style == "rock":
                pitches = [low - 7 + (root - low + 7) % 12, *pitches]
            for pitch in dict.fromkeys(pitches):
                yield beat, min(length, end - beat), pitch


def _bass(score, plan, style):
    """Bass: half notes (classical), walking quarters (jazz), root eighths (rock), octaves (electronic)."""
    lowest = 31
    for k, (begin, end, root, (triad, _)) in enumerate(plan):
        note = lowest + (root - lowest) % 12
        third, fifth = (note + i for i in _TRIAD[triad][1:])
        if style == "classical":
            yield from ((b, 1.9, note) for b in range(begin, end, 2))
        elif style == "rock":
            yield from ((begin + i / 2, 0.45, note) for i in range(2 * (end - begin)))
        elif style == "electronic":
            yield from ((begin + i / 2, 0.4, note + 12 * (i % 2)) for i in range(2 * (end - begin)))
        else:
            following = plan[k + 1][2] if k + 1 < len(plan) else score.tonic
            target = lowest + (following - lowest) % 12
            scale = [p for p in range(28, 46) if (p - score.tonic) % 12 in _SCALE[score.mode] and p != target]
            approach = min(scale, key=lambda p: (abs(p - target), -p))
            walk = (note, third, fifth, approach) if end - begin == 4 else (note, approach)
            yield from ((begin + i, 0.9, pitch) for i, pitch in enumerate(walk))


def _drums(style, periods):
    """One bar's pattern; every fourth bar of rock ends in a fill, every second classical bar in a roll."""
    for bar in range(2 * periods):
        fill = style == "rock" and bar % 4 == 3
        yield from (
            (4 * bar + b, drum, v) for b, drum, v in _DRUMS[style] if not (fill and b >= 3 and drum != 42)
        )
        if fill:
            yield from ((4 * bar + 3 + i / 4, drum, 95) for i, drum in enumerate((48, 48, 45, 41)))
        if style == "classical" and bar % 2 == 1:
            yield from ((4 * bar + 3 + i / 4, 38, 40 + 8 * i) for i in range(1, 4, 2))
        if style == "rock" and bar % 4 == 0:
            yield 4 * bar, 49, 90
