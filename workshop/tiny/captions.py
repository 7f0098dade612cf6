"""Write captions: what a clip is, in varied words that `mechsteer.tiny.captions.parse` reads back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mechsteer.measures.judges.hear import tempo_class

TONICS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")


def caption(labels: Mapping, rng: np.random.Generator, full: bool = False) -> str:
    """Describe a clip in one line.

    Parameters
    ----------
    labels : mapping with lead, style, drums, tempo (bpm), mode, tonic (0-11), register, loudness; others are
        ignored.
    rng : chooses which attributes are named, in which words and order.
    full : name every attribute, the tempo both as a word and in bpm.

    Returns
    -------
    str; `parse` gives back exactly the attributes it names. At least one is named.
    """
    share = {
        "lead": 0.85,
        "style": 0.8,
        "drums": 0.6,
        "tempo": 0.65,
        "mode": 0.5,
        "register": 0.3,
        "loudness": 0.3,
    }
    named = {slot: full or rng.random() < p for slot, p in share.items()}
    if not any(named.values()):
        named["lead"] = True
    say = lambda *options: str(rng.choice(options))
    before, after = [], []
    tempo = ({"word", "bpm"} if full else {str(rng.choice(["word", "bpm"]))}) if named["tempo"] else set()
    if "word" in tempo:
        words = {
            "slow": ("slow", "unhurried", "leisurely"),
            "medium": ("mid-tempo", "medium-tempo", "moderate"),
            "fast": ("fast", "quick", "up-tempo", "lively"),
        }
        before.append(say(*words[tempo_class(labels["tempo"])]))
    if named["loudness"]:
        words = {
            "soft": ("soft", "quiet", "gentle"),
            "medium": ("moderately loud", "medium-loud"),
            "loud": ("loud", "powerful"),
        }
        word = say(*words[labels["loudness"]])
        before.append(word) if rng.random() < 0.5 else after.append(word)
    rng.shuffle(before)
    text = [*before]
    if named["style"]:
        text.append(str(labels["style"]))
    text.append(say("tune", "piece", "track", "song", "melody"))
    if named["lead"]:
        lead = str(labels["lead"])
        after.insert(
            0, say(f"with a {lead} lead", f"led by {lead}", f"played on the {lead}", f"featuring {lead}")
        )
    if named["mode"]:
        tonic = TONICS[labels["tonic"]] if full or rng.random() < 0.4 else None
        mode = labels["mode"]
        after.append(f"in {tonic} {mode}" if tonic else say(f"in a {mode} key", f"in a {mode} mode"))
    if named["drums"]:
        after.append(
            say("with drums", "with a drum kit", "with a beat")
            if labels["drums"]
            else say("without drums", "no drums", "with no drums", "drumless")
        )
    if "bpm" in tempo:
        number = f"{labels['tempo']:g}"
        after.append(say(f"{number} bpm", f"at {number} bpm", f"{number} beats per minute"))
    if named["register"]:
        words = {"low": ("low register", "low-pitched"), "mid": ("middle register",)}
        after.append(say(*words.get(labels["register"], ("high register", "high-pitched"))))
    head, tail = after[:1], after[1:]
    if not named["lead"]:
        head, tail = [], after
    rng.shuffle(tail)
    if not full and rng.random() < 0.2:  # keywords instead of a sentence
        return ", ".join([" ".join(text), *head, *tail])
    start = say("a", "the", "") if text[0][0] not in "aeiou" else say("an", "the", "")
    return ", ".join([" ".join([*([start] if start else []), *text, *head]), *tail])
