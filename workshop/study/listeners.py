"""Who listens beside the judges: a beat tracker from outside, and the distance to real clips."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mechsteer.activations.clips import clips, read_clip
from mechsteer.measures.distances import texture

from .settings import Setting


def librosa(audio, sample_rate: int) -> pd.DataFrame:
    """An ear: the tempo in bpm by `librosa.feature.tempo`, which knows nothing of this music."""
    from mechsteer.measures import _spectra

    tempo = _spectra.librosa_ready().feature.tempo
    heard = [float(tempo(y=clip, sr=_spectra.RATE)[0]) for clip in _spectra.mono(audio, sample_rate, 3.0)]
    return pd.DataFrame({"tempo": heard})


def real_texture(chosen, most: int = 200, seconds: float = 5.0) -> np.ndarray:
    """`distances.texture` of real test clips, as the codec renders them; nothing learnt from their scores."""
    table = clips("orchestra")
    table = table[(table["split"] == "test") & chosen(table)]
    found = []
    for row in table.sample(min(most, len(table)), random_state=0).to_dict("records"):
        audio, rate = read_clip(row)
        found.append(texture(audio[:, : round(seconds * rate)], rate)[0])
    return np.stack(found)


def is_real(setting: Setting, table: pd.DataFrame) -> pd.Series:
    """Real clips of what the setting asks for; of any tempo, where that is the question."""
    real = table["lead"].notna()
    wanted = dict(setting.stays) | ({} if setting.question == "tempo" else {setting.label: setting.value})
    for label, value in wanted.items():
        real &= table[label] == value
    return real
