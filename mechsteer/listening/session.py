"""One listener's way through a test, as messages: what the page sends in, what it may know comes out.

No browser and no widget here, so the same code serves JupyterLab, voila and the tests. A page never learns a
condition: it gets letters, a random token per trial, and sound that is dithered afresh each time it is
served, so that neither names nor sizes nor bytes tell which clips are the same.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np

from ..sound import encode_file
from .answers import AnswerStore, clean_name
from .design import Design, Trial, trials

LETTERS = "ABCDEFGHIJKLMNOP"
FADE = 0.01  # s, at both ends of a clip, so that loops don't click
ASKED = ("hello", "name", "someone else", "next", "answer")
STAGES = ("headphones", "practice", "main")
UNREADABLE = "This page sent something that the test can't read. Please reload it."


class Session:
    """State of one page; `handle(message)` returns what to show and its sounds, as the bytes of wav files."""

    def __init__(self, design: Design, folder: Path):
        self.design, self.folder = design, Path(folder)
        self.store = AnswerStore(self.folder / "answers.jsonl")
        self.listener: int | None = None
        self._introduced: set[str] = set()
        self._served: tuple[Trial, dict, list[bytes]] | None = None  # trial, page with its token, sounds

    def handle(self, message: dict) -> tuple[dict, list[bytes]]:
        """Answer one message: `hello`, `name`, `someone else`, `next` or `answer` (key `do`).

        Any other JSON value is answered too: by the current page, with an error.
        """
        message = message if isinstance(message, dict) else {}
        done = message.get("do")
        error = "" if done in ASKED else UNREADABLE
        if done == "name":
            name = message.get("name")
            return self._enter(name if isinstance(name, str) else "", bool(message.get("again")))
        if done == "someone else":
            self.listener = self._served = None
            self._introduced.clear()
        if self.listener is None:
            return self._welcome(error)
        if done == "next" and message.get("stage") in STAGES:
            self._introduced.add(message["stage"])
        elif done == "next":
            error = UNREADABLE
        elif done == "answer":
            error = self._record(message)
        page, sounds = self._current()
        return {**page, "error": error}, sounds

    def _welcome(self, error: str = "") -> tuple[dict, list[bytes]]:
        d, plan = self.design, trials(self.design, 1)
        sounds = {"preference": 2, "abx": 3, "rating": len(d.conditions)}[d.kind]
        minutes = max(1, round(len(plan) * (1.5 * sounds * d.listen + 6) / 60))
        page = {"page": "welcome", "question": d.question, "kind": d.kind, "trials": len(plan)}
        return {**page, "error": error, "minutes": minutes, "test": d.test_hash}, []

    def _enter(self, name: str, again: bool) -> tuple[dict, list[bytes]]:
        try:
            name = clean_name(name)
        except ValueError as error:
            return self._welcome(str(error))
        known = self.store.listeners()
        if name in known and not again:
            plan, left = self._left(known[name])
            return {"page": "resume", "name": name, "done": len(plan) - len(left), "total": len(plan)}, []
        self.listener, self._served = self.store.register(name), None
        return self._current()

    def _left(self, listener: int) -> tuple[list[Trial], list[Trial]]:
        """The plan of a listener, and which of its trials aren't answered."""
        plan = trials(self.design, listener)
        answered = {line["trial"] for line in self.store.answers(listener)}
        return plan, [trial for trial in plan if trial.key not in answered]

    def _current(self) -> tuple[dict, list[bytes]]:
        plan, left = self._left(self.listener)
        if not left:
            return {"page": "done", "answered": len(plan)}, []
        trial = left[0]
        stage = [t for t in plan if t.stage == trial.stage]
        number = stage.index(trial) + 1
        if number == 1 and trial.stage not in self._introduced:
            return {"page": "intro", "stage": trial.stage, "kind": self.design.kind, "trials": len(stage)}, []
        if self._served is None or self._served[0] != trial:
            sounds = [self._sound(trial, heard) for heard in (*trial.slots, trial.x) if heard is not None]
            letters = [*LETTERS[: len(trial.slots)], "X"][: len(sounds)]
            question, listen = self.design.question, self.design.listen
            if trial.kind == "headphones":
                question, listen = "Which tone is the quietest?", 0.5
            page = {"page": "trial", "token": secrets.token_urlsafe(12), "stage": trial.stage}
            page |= {"kind": trial.kind, "question": question, "letters": letters, "listen": listen}
            self._served = trial, page | {"number": number, "total": len(stage)}, sounds
        return self._served[1:]

    def _record(self, message: dict) -> str:
        """Store an answer to the trial being shown; returns what is wrong with it, if anything is."""
        if self._served is None or message.get("token") != self._served[1]["token"]:
            return ""  # sent twice, or from a page that is out of date: what is current is shown again
        trial, page, _ = self._served
        if not (heard := _numbers(message.get("heard"), len(page["letters"]), page["listen"] - 0.05)):
            return f"Please listen to each sound for at least {page['listen']:.0f} s first."
        if not (told := _numbers([message.get("switches", 0), message.get("seconds", 0)], 2)):
            return UNREADABLE
        heard, seconds = [round(s, 2) for s in heard], round(told[1], 2)
        facts = {"heard": heard, "switches": int(told[0]), "seconds": seconds}
        if trial.kind == "rating":
            if not (given := _numbers(message.get("ratings"), len(trial.slots), most=100)):
                return "Please rate every sound."
            facts["ratings"] = dict(zip(trial.slots, given, strict=True))
        else:
            letters = page["letters"][: len(trial.slots)]
            if message.get("choice") not in letters:
                return "Please choose an answer."
            facts |= {"choice": message["choice"], "chosen": trial.slots[letters.index(message["choice"])]}
            facts |= {"x": trial.x} if trial.x else {}
        self.store.add(self.listener, trial.key, trial.facts() | facts)
        return ""

    def _sound(self, trial: Trial, condition: str) -> bytes:
        if trial.kind == "headphones":
            return encode_file(headphone_tone(condition), 44100, "wav")
        import soundfile

        path = self.folder / "stimuli" / f"{self.design.stimuli[condition][str(trial.item)]}.flac"
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        ramp = min(int(FADE * rate), len(samples) // 2)
        samples[:ramp] *= np.linspace(0, 1, ramp)[:, None]
        samples[len(samples) - ramp :] *= np.linspace(1, 0, ramp)[:, None]
        noise = np.random.default_rng().random((2, *samples.shape), dtype="float32")
        samples += (noise[0] - noise[1]) / 2**15  # triangular dither, one bit
        return encode_file(samples.T, rate, "wav")


def _numbers(values: Any, count: int, least: float = 0, most: float = 1e9) -> list[float]:
    """So many numbers within the limits, or none if the values are anything else."""
    whole = isinstance(values, list) and len(values) == count
    good = whole and all(type(v) in (int, float) and least <= v <= most for v in values)
    return [float(v) for v in values] if good else []


def headphone_tone(condition: str, rate: int = 44100) -> np.ndarray:
    """One second of 200 Hz, (channel, sample): `full`, `quiet` (6 dB less) or `antiphase` (right inverted).

    Over loudspeakers the antiphase tone nearly cancels and seems the quietest; over headphones `quiet` is.

    Source: Woods et al. 2017, "Headphone screening to facilitate web-based auditory experiments".
    """
    t = np.arange(rate) / rate
    ramp = np.clip(np.minimum(t, 1 - t) / 0.1, 0, 1)
    tone = 0.1 * np.sin(2 * np.pi * 200 * t) * ramp * (0.5 if condition == "quiet" else 1)
    noise = np.random.default_rng().random((2, 2, rate)) / 2**15
    return np.stack([tone, -tone if condition == "antiphase" else tone]) + noise[0] - noise[1]
