"""Pictures and clips of what the embedded model does: `figures/tiny_clips.*`, `figures/audio/tiny_*.mp3`."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsteer import paths
from mechsteer.measures._spectra import RATE, log_mel, mel_filters, mono
from mechsteer.measures.judges.hear import hear
from mechsteer.show.saving import save_figure
from mechsteer.sound import encode_file
from mechsteer.tiny.vocabulary import LEADS

COLUMNS = ("original", "reconstruction", "prompted", "unprompted")


def draw(model, shown: dict, rows: int = 4, step: int = 4) -> None:
    """Write the figure and twelve clips.

    Parameters
    ----------
    shown : audio [clip, 1, sample] under each of `COLUMNS`; `test` and `asked`, the labels of originals and
        of prompts.
    rows : clips shown of each kind; `step` thins the spectrogram's frames.
    """
    rate = model.sample_rate
    heard = {kind: hear(shown[kind], rate, judge="cnn") for kind in COLUMNS}
    test, asked = shown["test"], shown["asked"]
    styles = sorted(test["style"].unique())
    # clip i of the i-th style, among originals and among prompted clips
    picks = {
        kind: [int(np.flatnonzero(table["style"] == style)[i]) for i, style in enumerate(styles)][:rows]
        for kind, table in (("original", test), ("prompted", asked))
    }
    picks |= {"reconstruction": picks["original"], "unprompted": list(range(rows))}
    titles, table = [], []
    for i in range(rows):
        for kind in COLUMNS:
            clip = picks[kind][i]
            ear = heard[kind].iloc[clip]
            label = {"prompted": asked, "unprompted": None}.get(kind, test)
            said = "" if label is None else "{lead}, {style}, {tempo:.0f} bpm".format(**label.iloc[clip])
            titles.append(f"{kind}: {said}" if said else f"{kind}; heard: {ear['lead']}, {ear['style']}")
            table.append({"row": i, "kind": kind, "asked": said})
            table[-1] |= {f"heard_{name}": ear[name] for name in ("lead", "style", "drums", "tempo")}
    fig = make_subplots(rows, len(COLUMNS), subplot_titles=titles, shared_xaxes=True, shared_yaxes=True,
                        horizontal_spacing=0.02, vertical_spacing=0.06)  # fmt: skip
    for i in range(rows):
        for j, kind in enumerate(COLUMNS):
            levels, seconds, hz = mel_levels(shown[kind][picks[kind][i]], rate)
            z, x, y = np.round(levels[:, ::step], 1), np.round(seconds[::step], 3), np.round(hz)
            fig.add_trace(go.Heatmap(z=z, x=x, y=y, coloraxis="coloraxis"), i + 1, j + 1)
    fig.update_yaxes(type="log")
    fig.update_yaxes(title="frequency (Hz, mel bands)", col=1)
    fig.update_xaxes(title="time (s)", row=rows)
    fig.update_annotations(font_size=11)
    colours = {"colorscale": "Viridis", "cmin": -70, "cmax": 0, "colorbar": {"title": "level (dB)"}}
    title = "The embedded model: what it learnt from, through its codec, asked for, and left alone"
    fig.update_layout(width=1500, height=230 * rows, title=title, coloraxis=colours)
    facts = {"model": model.hash, "command": "python -m workshop.tiny.card --figures"}
    folder = paths.figures(paths.shipped_figures())
    save_figure(fig, pd.DataFrame(table), "tiny_clips", folder, **facts)
    for lead in LEADS:  # the first prompt that asks for it
        clip = int(np.flatnonzero(asked["lead"] == lead)[0])
        name = "tiny_prompted_{lead}_{style}_{tempo:.0f}bpm.mp3".format(**asked.iloc[clip])
        paths.replace(folder / "audio" / name, encode_file(shown["prompted"][clip], rate, "mp3"))
    for i in range(2):
        for kind in ("original", "reconstruction", "unprompted"):
            clip = shown[kind][picks[kind][i]]
            paths.replace(folder / "audio" / f"tiny_{kind}_{i + 1}.mp3", encode_file(clip, rate, "mp3"))


def mel_levels(clip: np.ndarray, rate: int, hop: int = 256, size: int = 1024, bands: int = 64):
    """The judges' mel spectrogram of (channel, sample), in dB below its loudest band and frame.

    Returns
    -------
    levels [band, frame] (dB, -70 at least), times of frames (s), centres of bands (Hz).
    """
    levels = 10 / np.log(10) * log_mel(mono(clip, rate), size, hop, bands)[0]
    centres = mel_filters(size, bands).argmax(0) * RATE / size
    return np.maximum(levels - levels.max(), -70), np.arange(levels.shape[1]) * hop / RATE, centres
