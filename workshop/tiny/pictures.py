"""Pictures and clips of what the embedded model does: `figures/tiny_clips.*`, `figures/audio/tiny_*.mp3`."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechsteer import paths
from mechsteer.measures.judges.hear import hear
from mechsteer.model.generation import encode_file
from mechsteer.show.plots import save_figure

from .compose import LEADS

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
            table.append({"row": i, "kind": kind, "asked": said, "heard_lead": ear["lead"], "heard_style": ear["style"],
                          "heard_drums": ear["drums"], "heard_tempo": ear["tempo"]})  # fmt: skip
    fig = make_subplots(rows, len(COLUMNS), subplot_titles=titles, shared_xaxes=True, shared_yaxes=True,
                        horizontal_spacing=0.02, vertical_spacing=0.06)  # fmt: skip
    for i in range(rows):
        for j, kind in enumerate(COLUMNS):
            levels, seconds, hz = mel_levels(shown[kind][picks[kind][i], 0], rate)
            heat = go.Heatmap(
                z=np.round(levels[:, ::step], 1),
                x=np.round(seconds[::step], 3),
                y=np.round(hz),
                coloraxis="coloraxis",
            )
            fig.add_trace(heat, i + 1, j + 1)
    fig.update_yaxes(type="log")
    fig.update_yaxes(title="frequency (Hz, mel bands)", col=1)
    fig.update_xaxes(title="time (s)", row=rows)
    fig.update_annotations(font_size=11)
    colours = {"colorscale": "Viridis", "cmin": -70, "cmax": 0, "colorbar": {"title": "level (dB)"}}
    title = "The embedded model: what it learnt from, through its codec, asked for, and left alone"
    fig.update_layout(width=1500, height=230 * rows, title=title, coloraxis=colours)
    save_figure(
        fig,
        pd.DataFrame(table),
        "tiny_clips",
        model=model.hash,
        command="python -m workshop.tiny.card --figures",
    )
    folder = paths.figures() / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    for lead in LEADS:  # the first prompt that asks for it
        clip = int(np.flatnonzero(asked["lead"] == lead)[0])
        name = "tiny_prompted_{lead}_{style}_{tempo:.0f}bpm.mp3".format(**asked.iloc[clip])
        (folder / name).write_bytes(encode_file(shown["prompted"][clip], rate, "mp3"))
    for i in range(2):
        for kind in ("original", "reconstruction", "unprompted"):
            clip = shown[kind][picks[kind][i]]
            (folder / f"tiny_{kind}_{i + 1}.mp3").write_bytes(encode_file(clip, rate, "mp3"))


def mel_levels(clip: np.ndarray, rate: int, bands: int = 64, hop: int = 256):
    """Mel spectrogram of [sample] in dB below its loudest [band, frame]; times of frames (s), centres of bands (Hz)."""
    import librosa

    mel = librosa.feature.melspectrogram(y=clip, sr=rate, n_fft=1024, hop_length=hop, n_mels=bands)
    hz = librosa.mel_frequencies(bands + 2, fmax=rate / 2)[1:-1]
    return librosa.power_to_db(mel, ref=np.max, top_db=70), np.arange(mel.shape[1]) * hop / rate, hz
