"""Read captions: phrases of `VOCABULARY` become slot values, filler is passed over, the rest is reported."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NOTES = {"c": 0, "d": 2, "e": 4, "f": 5, "g": 7, "a": 9, "b": 11}
_PHRASES = {
    "lead": {
        "piano": "piano, grand piano, acoustic piano, pianist, keys",
        "guitar": "guitar, acoustic guitar, steel guitar, guitarist, guitars",
        "violin": "violin, fiddle, violinist, violins",
        "flute": "flute, flutist, flautist, flutes",
        "trumpet": "trumpet, trumpeter, trumpets",
        "organ": "organ, hammond, hammond organ, organist",
    },
    "style": {
        "classical": "classical, baroque, chamber music, orchestral",
        "jazz": "jazz, jazzy, swing, swinging, bebop",
        "rock": "rock, rocking, rock and roll, rock n roll",
        "electronic": "electronic, electronica, edm, techno, house, dance music, synthpop",
    },
    "drums": {
        True: "drums, with drums, drum kit, drum set, drummer, drum beat, beat, with a beat, percussion",
        False: "no drums, without drums, drumless, no drum kit, without a drum kit, without any drums, "
        "no beat, without a beat, no percussion, without percussion, no drummer, without a drummer",
    },
    "tempo": {
        "slow": "slow, slowly, slow tempo, unhurried, leisurely, downtempo, adagio",
        "medium": "medium tempo, mid tempo, moderate, moderate tempo, moderately paced, walking pace, "
        "andante, medium paced",
        "fast": "fast, quick, uptempo, up tempo, rapid, fast tempo, lively, presto",
    },
    "mode": {"major": "major, major key, major mode", "minor": "minor, minor key, minor mode"},
    "register": {
        "low": "low, low register, low pitched, deep",
        "mid": "middle register, mid register, medium register, mid range, middle range",
        "high": "high, high register, high pitched",
    },
    "loudness": {
        "soft": "soft, softly, quiet, quietly, gentle, gently, soft dynamics",
        "medium": "medium loud, moderately loud, medium volume, medium loudness, mezzo forte",
        "loud": "loud, loudly, forte, powerful, loud dynamics",
    },
}
VOCABULARY: Mapping[str, tuple[str, object]] = {
    phrase.strip(): (slot, value)
    for slot, values in _PHRASES.items()
    for value, phrases in values.items()
    for phrase in phrases.split(",")
} | {
    f"{note} {accidental}": ("tonic", (number + shift) % 12)
    for note, number in _NOTES.items()
    for accidental, shift in (("sharp", 1), ("flat", -1))
}
"""Phrase -> (slot, value). Bare notes ("in C minor", "key of G") and bpm need their neighbours: `_match`."""

_FILLER = (
    "a an the this that it its is are was be with and or of in on at by for to from as some please very "
    "quite rather tune piece music song track clip melody line lead leads leading led solo solos soloist "
    "instrument instrumental played plays playing play player performed featuring features style genre key "
    "tempo speed pace paced dynamics volume register range pitched mode bpm beats per minute about around "
    "kind sort where there section sounds sounding like make me give short"
)
FILLER = frozenset(_FILLER.split())
_NOUNS = {"key", "mode", "tune", "piece", "music", "song", "track", "clip", "melody", "line", "scale"}

_WORD = re.compile(r"[a-z]+(?:#|(?:'[a-z]+))?|\d+(?:\.\d+)?")
_SPELLINGS = ((r"[-_/]", " "), (r"\u266f", "#"), (r"\u266d", " flat "), (r"(\d)\s*bpm\b", r"\1 bpm"))
_LONGEST = max(len(phrase.split()) for phrase in VOCABULARY)


def parse(text: str) -> tuple[dict[str, list], list[str]]:
    """Read attributes out of any text, longest phrases first ("no drums" before "drums").

    Returns
    -------
    attributes : slot -> list of values in order of mention, without repeats. Values: strings; bool for drums;
        0-11 for tonic; tempo is a class word or a float in bpm ("96 bpm", "96 beats per minute").
    unknown : words neither vocabulary nor filler, in order, once each. A number without bpm is unknown.
    """
    text = text.lower()
    for pattern, replacement in _SPELLINGS:
        text = re.sub(pattern, replacement, text)
    words = _WORD.findall(text)
    found: dict[str, list] = {}
    unknown, i = [], 0
    while i < len(words):
        used, slot, value = _match(words, i)
        if slot is None:
            if words[i] not in FILLER and words[i] not in unknown:
                unknown.append(words[i])
        elif value not in found.setdefault(slot, []):
            found[slot].append(value)
        i += used
    return found, unknown


def _match(words, i):
    """(words used, slot, value) of the longest phrase at word i; slot None if there is none."""
    if words[i][0].isdigit():
        unit = words[i + 1 : i + 4]
        if unit[:1] == ["bpm"]:
            return 2, "tempo", float(words[i])
        if unit == ["beats", "per", "minute"]:
            return 4, "tempo", float(words[i])
        return 1, None, None
    note, sharp = (words[i][:-1], 1) if words[i].endswith("#") else (words[i], 0)
    if note in _NOTES:
        rest = words[i + 1 : i + 3]
        shift = {"sharp": 1, "flat": -1}.get(rest[0] if rest else "", 0)
        mode, noun = rest[bool(shift) :][:1], rest[1:]
        # "a" and other lone letters are notes only where a key is named: "in A minor", "F#", "key of D", not
        # where it is the article of "a minor key", "a major mode", "a minor tune"
        article = words[i] == "a" and not shift and not _NOUNS.isdisjoint(noun)
        keyed = mode in (["major"], ["minor"]) and not article
        if sharp or shift or keyed or words[max(i - 2, 0) : i] == ["key", "of"]:
            return 1 + bool(shift), "tonic", (_NOTES[note] + sharp + shift) % 12
    for length in range(min(_LONGEST, len(words) - i), 0, -1):
        if (phrase := " ".join(words[i : i + length])) in VOCABULARY:
            return length, *VOCABULARY[phrase]
    return 1, None, None
