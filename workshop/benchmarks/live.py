"""The live panel: how soon a change is heard in a browser, and whether the seams of long music stand out.

    python workshop/benchmarks/live.py [--arms panel seams stream] [--seconds 60] [--prompts 8]

`panel` plays the embedded model in JupyterLab in headless Chromium (the system's), moves the slider and
measures on the samples that reach WebAudio: the time from Play to the first sound, from the slider to the
first sample that differs from the unsteered twin's, and underruns. `seams` streams several prompts through
windows of 8 s and compares the change in the log-mel spectrum (mean over 0.5 s after, against 0.5 s before)
at seams with that at other frames: the share of other frames with a smaller change, 0.5 if seams are like the
rest. `stream` compares joined chunks with the whole decode, by how far tokens are ahead of the sound.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import mechsteer as ms
from mechsteer.measures.intervals import mean_interval

TESTS = Path(__file__).resolve().parents[2] / "tests"
PROMPTS = [
    "jazz piano, 110 bpm, with drums", "rock guitar, 130 bpm, with drums", "classical violin, 80 bpm",
    "jazz flute, 100 bpm", "jazz trumpet, 140 bpm, with drums", "classical organ, 70 bpm",
    "rock piano, 120 bpm, with drums", "electronic guitar, 90 bpm",
]  # fmt: skip


def panel(moves: int) -> None:
    """Play, move the slider and stop, `moves` times; say what was measured."""
    sys.path.insert(0, str(TESTS))
    from browser import browser, jupyterlab, open_notebook, page, run_all
    from live_page import CHUNKS, CODE, MOVE, SPY, book, pairs

    begins, lates, said = [], [], []
    with tempfile.TemporaryDirectory() as place, browser() as chrome, page(chrome) as tab:
        path = book(Path(place), CODE)
        tab.add_init_script(SPY)
        with jupyterlab(path.parent) as address:
            open_notebook(tab, address, path.name)
            run_all(tab)
            for _ in range(moves):
                tab.evaluate("() => { window.heard = []; }")
                tab.evaluate("document.querySelector('.mechsteer-panel input[type=range]').value = 0")
                began = time.perf_counter()
                tab.get_by_role("button", name="Play").click()
                tab.wait_for_function(CHUNKS, arg=1)
                begins.append(time.perf_counter() - began)
                time.sleep(4)
                moved = tab.evaluate(MOVE)
                time.sleep(4)
                when, twin, steered, _ = next(
                    c for c in pairs(tab, moved["number"] - 1) if (c[1] != c[2]).any()
                )
                lates.append(when + (twin != steered).argmax() / 16000 - moved["now"])
                said.append(tab.locator(".mechsteer-panel .status").inner_text())
                tab.get_by_role("button", name="Stop").click()
                time.sleep(1)
    told = lambda times: f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
    print(f"{moves} times 8 s: first sound after {told(begins)};")
    print(f"a change is heard after {told(lates)}. The panel says:")
    print("\n".join(said), end="\n\n")


def seams(seconds: float, n: int) -> None:
    """Say how the change of sound at seams compares with that at other frames."""
    import librosa

    model = ms.load("tiny")
    stream = model.stream(PROMPTS[:n], seconds, seed=0)
    begins, sound = [], []
    for chunk in stream:
        sound.append(chunk)
        if not begins or begins[-1] != stream.before:
            begins.append(stream.before)
    keep = model.seconds_to_frames(stream.window / model.frame_rate * 2 / 5)
    at = [begin + keep for begin in begins[1:]]  # the first new frame of each window
    half, ranks = round(0.5 * model.frame_rate), []
    for clip in np.concatenate(sound, axis=-1):
        hop = round(model.sample_rate / model.frame_rate)
        mel = librosa.feature.melspectrogram(y=clip.mean(0), sr=model.sample_rate, n_fft=1024, hop_length=hop)
        level = np.log(mel + 1e-5)
        change = np.array([
            np.linalg.norm(level[:, f : f + half].mean(1) - level[:, f - half : f].mean(1))
            for f in range(half, level.shape[1] - half)
        ])  # fmt: skip
        near = [f - half + d for f in at for d in range(-half, half)]
        others = np.delete(change, [k for k in near if k < len(change)])
        ranks.append(np.mean([(others < change[f - half]).mean() for f in at if f - half < len(change)]))
    found = mean_interval(np.array(ranks))
    print(
        f"{len(at)} seams in each of {n} clips of {seconds:g} s: share of other frames with a smaller change"
    )
    print(
        f"{found.value:.2f} (95 % interval over clips {found.lo:.2f} to {found.hi:.2f}; 0.5: like the rest)\n"
    )


def stream(seconds: float = 8.0) -> None:
    """Print the error of joined chunks against the whole decode, by lookahead."""
    model = ms.load("tiny")
    print(f"reach of the codec: {model.codec_reach} frames\n")
    print("| tokens ahead of the sound, s | error of joined chunks, dB |\n|---|---|")
    for ahead in (0.04, 0.08, 0.16, 0.2, 0.24, None):
        made = model.stream(PROMPTS[:2], seconds, seed=1, lookahead=ahead)
        joined = np.concatenate(list(made), axis=-1)
        whole = made.finish().audio
        error = 10 * np.log10(((joined - whole) ** 2).mean() / (whole**2).mean() + 1e-30)
        print(f"| {ahead or 'the reach'} | {error:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arms = ("panel", "seams", "stream")
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each clip, for `seams`")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--moves", type=int, default=8)
    options = parser.parse_args()
    if "panel" in options.arms:
        panel(options.moves)
    if "seams" in options.arms:
        seams(options.seconds, options.prompts)
    if "stream" in options.arms:
        stream()


if __name__ == "__main__":
    main()
