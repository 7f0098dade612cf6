"""Test scores with one thing changed: drums, tempo, tonic or mode.

    python -m workshop.tiny.versions

writes `data/orchestra_versions.parquet` and `data/orchestra_versions_codes.npz`, which
`ms.clips("orchestra_versions")` gives: every test score, in one lead and style (they take turns), as it is
and in four other versions. In the shipped orchestra the clips of a score differ in lead and style only; here
`ms.pairs` finds pairs that differ in the other labels. Needs FluidSynth and the soundfont, as `make
orchestra`.

The score as it is was rendered before: its codes must come out as shipped, or nothing is written. (Up to
rounding: those were made before the codec was rounded to float16 to be shipped.)
"""

import dataclasses

import numpy as np
import pandas as pd
import torch

from mechsteer import paths
from mechsteer.tiny import orchestra
from mechsteer.tiny.vocabulary import LEADS, STYLES

from .captions import caption
from .compose import Score, compose
from .render import RATE, Renderer
from .ship import SMALL

ALIKE = 0.95  # of the codes
CHANGES = {
    "drums": lambda score: not score.drums,
    "tempo": lambda score: score.tempo + (45 if score.tempo < 120 else -45),  # bpm
    "tonic": lambda score: (score.tonic + 5) % 12,
    "mode": lambda score: "minor" if score.mode == "major" else "major",
}


def main() -> None:
    """Render, encode, compare with what is shipped, write."""
    shipped = orchestra.table()
    test = shipped[shipped["split"] == "test"]
    codec, render = orchestra.codec_of(None), Renderer()
    rows, codes = [], []
    for number, score in enumerate(test["score"].unique()):
        lead, style = list(LEADS)[number % len(LEADS)], STYLES[number // len(LEADS) % len(STYLES)]
        drawn = Score.draw(0, 1, number)
        own = test[(test["score"] == score) & (test["lead"] == lead) & (test["style"] == style)].iloc[0]
        for name in ("as it is", *CHANGES):
            new = {} if name == "as it is" else {name: CHANGES[name](drawn)}
            played = dataclasses.replace(drawn, **new)
            sound = np.round(render(compose(played, lead, style)) * 32767).astype(np.int16)
            codes.append(encode(codec, sound))
            if not new and (same := np.mean(codes[-1] == own["codes"])) < ALIKE:
                raise SystemExit(f"{same:.0%} of score {score}'s codes are as shipped: another soundfont?")
            labels = own.drop(["clip", "codes", "codec", "caption", "duration", "group"]).to_dict()
            labels |= {"start": labels.pop("first_beat"), "version": name} | new
            rows.append({"clip": len(rows)} | labels)
            rows[-1]["caption"] = caption(rows[-1], np.random.default_rng((0, number)))
    with paths.replacing(paths.data() / "orchestra_versions.parquet") as scratch:
        pd.DataFrame(rows).to_parquet(scratch, index=False, **SMALL)
    with paths.replacing(paths.data() / "orchestra_versions_codes.npz") as scratch:
        np.savez_compressed(scratch, codes=np.stack(codes).astype(np.uint16), codec=shipped["codec"].iloc[0])
    print(f"{len(rows)} clips of {len(rows) // (1 + len(CHANGES))} scores")


@torch.no_grad()
def encode(codec, sound: np.ndarray) -> np.ndarray:
    """int16 [sample] at `RATE` to uint16 [codebook, frame]."""
    assert codec.sample_rate == RATE
    audio = torch.from_numpy(sound.astype(np.float32) / 32768)[None, None]
    return codec.encode(audio)[0][0].numpy().astype(np.uint16)


if __name__ == "__main__":
    main()
