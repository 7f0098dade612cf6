"""What `kept.shared` costs, beside what else could hear chroma and pitch: processor time for a clip of 5 s.

python workshop/benchmarks/kept_speed.py [--clips 12] [--slow]

The first call of each, in which librosa compiles, isn't counted but told. With `--slow` also librosa.pyin and
torchcrepe (extra `ears`), one clip each.
"""

import argparse
import os

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import time

import librosa
import numpy as np
from scipy.stats import spearmanr

import mechsteer as ms
from mechsteer.measures import kept
from mechsteer.measures.pitch import ABOVE, HIGHEST, melody

RATE, SECONDS = 16_000, 5
PITCH = {"fmin": ABOVE, "fmax": HIGHEST, "sr": RATE, "hop_length": kept.HOP}


def cqt(clip):
    return librosa.feature.chroma_cqt(y=clip, sr=RATE, hop_length=kept.HOP, tuning=0, norm=None)


def crepe(model, clip):
    import torch
    import torchcrepe

    audio = torch.from_numpy(clip[None].copy())
    return torchcrepe.predict(audio, RATE, kept.HOP, ABOVE, HIGHEST, model, batch_size=64)


def harmony(a, b):
    cosine = (a * b).sum(0) / np.maximum(np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0), 1e-12)
    return cosine.mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--slow", action="store_true")
    options = parser.parse_args()
    table = ms.clips("orchestra").query("split == 'test' and style == 'jazz' and lead in ('piano', 'flute')")
    table = table.sort_values("score").head(options.clips)  # each score under two leads
    clips = [ms.read_clip(row)[0][0][: SECONDS * RATE] for _, row in table.iterrows()]
    jobs = {
        "chroma_stft (kept)": kept.chroma,
        "chroma_cqt": cqt,
        "beats (kept)": kept.beats,
        "YIN above 180 Hz (kept)": melody,
        "librosa.yin": lambda clip: librosa.yin(clip, **PITCH),
        "shared, a pair": lambda clip: kept.shared(clip, clips[0], RATE),
    }
    if options.slow:
        jobs["librosa.pyin"] = lambda clip: librosa.pyin(clip, **PITCH)
        jobs |= {f"torchcrepe {m}": lambda clip, m=m: crepe(m, clip) for m in ("tiny", "full")}
    for name, job in jobs.items():
        slow = name.startswith(("librosa.p", "torchcrepe"))
        times = []
        for clip in [clips[0][: RATE * SECONDS // (5 if slow else 1)], *clips[: 1 if slow else None]]:
            began = time.process_time()
            job(clip)
            times.append(time.process_time() - began)
        print(f"{name:24s} {1000 * np.median(times[1:]):8.0f} ms; first call {times[0]:.1f} s", flush=True)
    found = []
    for ear in (kept.chroma, cqt):
        heard = [ear(clip) for clip in clips]
        found.append([harmony(a, b) for i, a in enumerate(heard) for b in heard[:i]])
    r, n = spearmanr(*found).statistic, len(found[0])
    print(f"harmony of {n} pairs by both chromas, {len(clips) // 2} of one score: Spearman's r {r:.2f}")


if __name__ == "__main__":
    main()
