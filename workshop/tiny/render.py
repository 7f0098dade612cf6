"""Notes to sound: one FluidSynth, a General MIDI soundfont, the same samples for the same notes every time.

Each part is rendered dry at 32 kHz by itself, set to a fixed level below the lead, summed, and brought to 16
kHz. The soundfont's recordings are at 44.1 kHz and FluidSynth doesn't filter when it resamples: at 32 kHz the
images fold to above 12 kHz, which the decimation removes; rendering at 16 kHz would leave them in the music.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

from mechsteer.tiny.vocabulary import LEADS, SECONDS

from .compose import Piece

RATE = 16_000  # Hz, of what `Renderer` returns
LEVEL = {"soft": -34.0, "medium": -28.0, "loud": -22.0}  # RMS of the lead, dB below full scale
BALANCE = {"lead": 0.0, "chords": -6.5, "bass": -6.5, "drums": -7.0}  # dB relative to the lead
PEAK = 0.94

_SYNTH_RATE, _BLOCK = 32_000, 64  # FluidSynth computes 64 samples at once; events fall on block edges (2 ms)
_DRUM_CHANNEL = 9
_SETTINGS = {"synth.reverb.active": 0, "synth.chorus.active": 0, "synth.cpu-cores": 1, "synth.polyphony": 256}
_FONTS = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/local/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/local/share/fluidsynth/FluidR3_GM.sf2",
    "/opt/homebrew/share/sounds/sf2/FluidR3_GM.sf2",
    "/opt/homebrew/share/fluidsynth/FluidR3_GM.sf2",
    "~/Library/Audio/Sounds/Banks/FluidR3_GM.sf2",
    "~/.local/share/sounds/sf2/FluidR3_GM.sf2",
)


def find_soundfont() -> Path | None:
    """The soundfont named by MECHSTEER_SOUNDFONT, else FluidR3_GM.sf2 in the usual places, else None."""
    named = os.environ.get("MECHSTEER_SOUNDFONT")
    return next(
        (p for p in map(lambda f: Path(f).expanduser(), [named] if named else _FONTS) if p.is_file()), None
    )


def missing() -> list[str]:
    """What rendering lacks on this machine, one line each with how to get it; empty if nothing."""
    lacks = []
    try:
        import fluidsynth  # noqa: F401
    except ModuleNotFoundError:
        lacks.append(
            "the Python package pyfluidsynth: uv sync --extra orchestra (or pip install pyfluidsynth)"
        )
    except (ImportError, OSError, AttributeError):
        lacks.append("the FluidSynth library: apt install libfluidsynth3 (macOS: brew install fluid-synth)")
    if find_soundfont() is None:
        lacks.append(
            "the soundfont FluidR3_GM.sf2: apt install fluid-soundfont-gm, or put it anywhere and set "
            "MECHSTEER_SOUNDFONT to its path"
        )
    return lacks


class Renderer:
    """A synthesiser kept open: `renderer(piece)` gives audio, whatever was rendered before.

    Parameters
    ----------
    soundfont : path of a General MIDI soundfont; found by `find_soundfont` if left out.

    Raises
    ------
    RuntimeError if pyfluidsynth, the FluidSynth library or the soundfont is absent (names each and how to get
    it).
    """

    def __init__(self, soundfont: str | Path | None = None):
        lacks = missing()
        if soundfont is not None and Path(soundfont).is_file():
            lacks = [line for line in lacks if "MECHSTEER_SOUNDFONT" not in line]
        if lacks:
            raise RuntimeError(
                "rendering the orchestra needs:\n" + "\n".join(f"  - {line}" for line in lacks)
            )
        import fluidsynth

        self._fluidsynth, library = fluidsynth, fluidsynth._fl
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        # pyfluidsynth's own call is the 16-bit one, which dithers with a counter; floats have no such memory.
        library.fluid_synth_write_float.argtypes = [pointer, integer, *[pointer, integer, integer] * 2]
        library.fluid_synth_get_sfont_by_id.argtypes = [pointer, integer]
        library.fluid_synth_get_sfont_by_id.restype = pointer
        library.fluid_synth_add_sfont.argtypes = [pointer, pointer]
        library.fluid_synth_remove_sfont.argtypes = [pointer, pointer]
        library.fluid_set_log_function.argtypes = [integer, pointer, pointer]
        # No warning for channels without an instrument; errors remain.
        library.fluid_set_log_function(2, None, None)
        self._library, self._owner = library, self._synth()
        self._font = library.fluid_synth_get_sfont_by_id(
            self._owner.synth, self._owner.sfload(str(soundfont or find_soundfont()))
        )

    def _synth(self):
        return self._fluidsynth.Synth(gain=0.5, samplerate=float(_SYNTH_RATE), channels=16, **_SETTINGS)

    def __call__(self, piece: Piece, seconds: float = SECONDS) -> np.ndarray:
        """Audio of a piece: float32 [sample], mono at `RATE`, peak at most `PEAK`."""
        return self.mix(piece, self.stems(piece, seconds))

    def stems(self, piece: Piece, seconds: float = SECONDS, parts: tuple[str, ...] = tuple(BALANCE)) -> dict:
        """Each part alone: name -> float32 [sample] at `RATE`, RMS 1 (silent parts are left out)."""
        import soxr

        programs = {
            "lead": LEADS[piece.lead],
            "chords": piece.score.chords_program,
            "bass": piece.score.bass_program,
        }
        stems = {}
        for part in parts:
            notes = piece.notes[piece.notes.part == part]
            if len(notes):
                audio = soxr.resample(self._part(notes, programs.get(part), seconds), _SYNTH_RATE, RATE)
                stems[part] = audio / np.sqrt(np.mean(audio.astype(np.float64) ** 2)).astype(np.float32)
        return stems

    def mix(self, piece: Piece, stems: dict) -> np.ndarray:
        """Stems at the levels of `BALANCE` below the lead, which has the `LEVEL` of the score's loudness."""
        level = LEVEL[piece.score.loudness]
        audio = sum(np.float32(10 ** ((level + BALANCE[part]) / 20)) * stem for part, stem in stems.items())
        return audio * np.float32(min(1.0, PEAK / max(np.abs(audio).max(), 1e-9)))

    def _part(self, notes, program, seconds):
        """Mono audio of one part at the synthesiser's rate; `program` None is the drum kit."""
        # A fresh synthesiser that borrows the loaded soundfont costs 2 ms. Resetting one that has played
        # isn't enough: the voices keep filter states and tails.
        synth, channel = self._synth(), _DRUM_CHANNEL if program is None else 0
        font = self._library.fluid_synth_add_sfont(synth.synth, self._font)
        synth.program_select(channel, font, 128 if program is None else 0, program or 0)
        block = lambda t: np.round(np.asarray(t) * _SYNTH_RATE / _BLOCK).astype(int)
        n_blocks = int(np.ceil(seconds * _SYNTH_RATE / _BLOCK))
        on, off = block(notes.onset), block(notes.offset)
        events = sorted(  # at one time, offs (0) before ons (1)
            [(b, 0, p, 0) for b, p in zip(off, notes.pitch, strict=True)]
            + [(b, 1, p, v) for b, p, v in zip(on, notes.pitch, notes.velocity, strict=True)]
        )
        out = np.zeros((2, n_blocks * _BLOCK), np.float32)
        left, right = (side.ctypes.data for side in out)
        now = 0
        for at, kind, pitch, velocity in [*events, (n_blocks, 0, None, 0)]:
            if (at := min(at, n_blocks)) > now:
                skip = now * _BLOCK
                self._library.fluid_synth_write_float(
                    synth.synth, (at - now) * _BLOCK, left, skip, 1, right, skip, 1
                )
                now = at
            if pitch is not None and at < n_blocks:
                synth.noteon(channel, int(pitch), int(velocity)) if kind else synth.noteoff(
                    channel, int(pitch)
                )
        self._library.fluid_synth_remove_sfont(synth.synth, self._font)
        synth.delete()
        return out.mean(0)[: round(seconds * _SYNTH_RATE)]
