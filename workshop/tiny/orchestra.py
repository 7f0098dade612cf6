"""The labelled orchestra: compose and render every clip the embedded model learns from.

    python -m workshop.tiny.orchestra --out data/runs/orchestra --seed 0 --jobs 2

writes into the folder

- `audio.npy`: int16 [clip, sample], 16 kHz mono, readable with `np.load(..., mmap_mode="r")` while it is
  being built;
- `clips.parquet`: a row per finished clip: its labels, score, split, General MIDI programs and a caption;
- `notes.parquet` (clip, onset, offset, pitch, velocity, part), `chords.parquet` (clip, onset, offset, root,
  quality): times in seconds. Beats are at `start + k * 60 / tempo`.

Splits share no score. A paired score is played by all leads (train: in one style; test: in every style), so
rows of one `score` differ only in `lead` and `style`. A killed build goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from mechsteer import paths
from mechsteer.tiny.vocabulary import LEADS, SECONDS, STYLES

from .captions import caption
from .compose import Score, compose
from .render import RATE, Renderer

SIZES = {"paired": 300, "test": 60, "valid": 200, "single": 26560}  # scores, in the order they are built
_GROUPS = tuple(SIZES)
_CHUNK = 48  # clips per unit of work: two test scores, eight paired scores


def plan_clips(seed: int = 0, **sizes: int) -> pd.DataFrame:
    """Every clip of a build, before any note is composed.

    Parameters
    ----------
    seed : of the whole orchestra.
    sizes : scores per group, by the names in `SIZES`; those left out keep their size there.

    Returns
    -------
    DataFrame, one row per clip: clip, score, split, paired, lead, style, the fields of `Score.labels`, the
    lead's program and a caption. A clip's content depends on the seed, its group and its number in the group
    only.
    """
    if unknown := set(sizes) - set(SIZES):
        raise ValueError(f"unknown group {', '.join(sorted(unknown))}; the groups are {', '.join(SIZES)}")
    rows, first = [], 0
    for group, size in {**SIZES, **sizes}.items():
        for i in range(size):
            labels = {"score": first + i, "number": i, "group": group}
            labels |= {"split": {"paired": "train", "single": "train"}.get(group, group)}
            labels |= {"paired": group in ("paired", "test")} | Score.draw(*_entropy(seed, group, i)).labels()
            rows += [labels | {"lead": lead, "style": style} for lead, style in _versions(seed, group, i)]
        first += size
    clips = pd.DataFrame(rows)
    clips.insert(0, "clip", np.arange(len(clips)))
    clips["lead_program"] = clips.lead.map(LEADS)
    rng = np.random.default_rng((seed, len(_GROUPS)))
    clips["caption"] = [caption(row, rng) for row in clips.to_dict("records")]
    return clips


def _entropy(seed, group, number):
    return seed, _GROUPS.index(group), number


def _versions(seed, group, number) -> Iterator[tuple[str, str]]:
    """The (lead, style) pairs in which one score is played."""
    rng = np.random.default_rng((*_entropy(seed, group, number), 3))
    if group == "test":
        yield from ((lead, style) for style in STYLES for lead in LEADS)
    elif group == "paired":
        yield from ((lead, STYLES[number % len(STYLES)]) for lead in LEADS)
    else:
        yield str(rng.choice(list(LEADS))), str(rng.choice(STYLES))


def build_orchestra(out: str | Path, seed: int = 0, jobs: int = 1, **sizes: int) -> Path:
    """Compose and render the orchestra into a folder, or finish what an earlier call began.

    Parameters
    ----------
    out : folder; made if absent.
    seed, sizes : as in `plan`; must be those of the earlier call if the folder holds part of a build.
    jobs : processes.

    Raises
    ------
    RuntimeError  if pyfluidsynth, its library or the soundfont is absent (names each and how to get it).
    ValueError  if the folder holds a build of another seed or other sizes.
    """
    Renderer()  # fails here, once, if something is missing
    out, begun = Path(out), time.monotonic()
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    card = {"seed": seed, "seconds": SECONDS, "sample_rate": RATE} | SIZES | sizes
    if not (out / "build.json").exists():
        paths.replace(out / "build.json", json.dumps(card, indent=1))
    if json.loads((out / "build.json").read_text()) != card:
        raise ValueError(
            f"{out} holds another build; give its seed and sizes (see build.json) or another folder"
        )
    clips = plan_clips(seed, **sizes)
    shape = (len(clips), round(SECONDS * RATE))
    if not (out / "audio.npy").exists():
        with paths.replacing(out / "audio.npy") as scratch:
            np.lib.format.open_memmap(scratch, "w+", np.int16, shape).flush()
    chunks = [clips[i : i + _CHUNK] for i in range(0, len(clips), _CHUNK)]
    todo = [c for c in chunks if not _done(parts, c)]
    print(f"{len(clips)} clips of {SECONDS:g} s; {sum(map(len, todo))} to render", flush=True)
    finished, told = 0, begun
    with ProcessPoolExecutor(max(1, jobs), get_context("spawn")) as pool:  # FluidSynth doesn't survive a fork
        futures = [pool.submit(_render_chunk, str(out), seed, chunk) for chunk in todo]
        for future in as_completed(futures):
            finished += future.result()
            if time.monotonic() - told > 20:
                told = time.monotonic()
                _write_clips(out, chunks)
                rate = finished / (told - begun)
                left = (sum(map(len, todo)) - finished) / rate
                print(f"{finished} rendered, {rate * SECONDS:.0f} x real time, {left:.0f} s left", flush=True)
    _write_clips(out, chunks)
    for table in ("notes", "chords"):
        frames = pd.concat([pd.read_parquet(_part(parts, table, c)) for c in chunks], ignore_index=True)
        frames = frames[
            frames["clip"] < len(clips)
        ]  # the last part is longer if a bigger build was cut short
        _write(frames, out / f"{table}.parquet")
    took = time.monotonic() - begun
    print(f"done: {finished} clips in {took:.0f} s, {finished * SECONDS / took:.0f} x real time", flush=True)
    return out


def _part(folder, table, chunk):
    return folder / f"{table}-{chunk['clip'].iloc[0]:06d}.parquet"


def _done(folder, chunk):
    return all(_part(folder, table, chunk).exists() for table in ("chords", "notes"))


def _write(frame, path):
    with paths.replacing(path) as scratch:
        frame.to_parquet(scratch, index=False)


def _write_clips(out, chunks):
    """`clips.parquet`, with the rows whose audio is there."""
    done = [chunk for chunk in chunks if _done(out / "parts", chunk)]
    if done:
        clips = pd.concat(done, ignore_index=True).drop(columns=["number", "group"])
        _write(clips, out / "clips.parquet")


_renderer: Renderer | None = None  # one per process


def _render_chunk(out, seed, chunk):
    """Render some rows of the plan: audio first, then the tables that mark it as done; how many rows."""
    global _renderer
    _renderer = _renderer or Renderer()
    audio = np.lib.format.open_memmap(Path(out) / "audio.npy", "r+")
    tables, backing_of, backing = {"notes": [], "chords": []}, None, {}
    for row in chunk.itertuples():
        piece = compose(Score.draw(*_entropy(seed, row.group, row.number)), row.lead, row.style)
        if backing_of != (row.score, row.style):  # the same under every lead
            backing = _renderer.stems(piece, parts=("chords", "bass", "drums"))
            backing_of = (row.score, row.style)
        mix = _renderer.mix(piece, {**_renderer.stems(piece, parts=("lead",)), **backing})
        audio[row.clip] = np.round(mix * 32767).astype(np.int16)
        for table, frames in tables.items():
            frames.append(getattr(piece, table).assign(clip=row.clip))
    audio.flush()
    for table in ("notes", "chords"):
        frame = pd.concat(tables[table], ignore_index=True)
        frame = frame[["clip", *(name for name in frame if name != "clip")]]
        _write(frame, _part(Path(out) / "parts", table, chunk))
    return len(chunk)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Compose and render the labelled orchestra (resumable).")
    parser.add_argument("--out", default="data/runs/orchestra", help="folder to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)"
    )
    for group, size in SIZES.items():
        parser.add_argument(f"--{group}", type=int, default=size, help=f"{group} scores (default: {size})")
    options = parser.parse_args(arguments)
    try:
        build_orchestra(
            options.out, options.seed, options.jobs, **{group: getattr(options, group) for group in SIZES}
        )
    except (RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
