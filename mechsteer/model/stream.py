"""Music while it is made: chunks of sound as tokens come, and steering that changes on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from .._machine import calm
from .._shared import number, spelled
from ..errors import memory_told
from . import _audiocraft
from ._calls import each, in_rows
from ._decoding import Decoding
from .effects import Plan, check, plan
from .generation import Generation
from .sampling import Sampler
from .steering import Steering, Steerings, to_frames

KEPT = 2 / 5  # of a full window, with which the next one begins; audiocraft keeps 12 of 30 s
FAINT = 1e-4  # of what a frame changes where it changes most, -80 dB: less than that it doesn't reach


@spelled
def stream(
    model,
    prompts: str | None | Sequence[str | None] = None,
    duration: float | None = None,
    seed: int | Sequence[int] = 0,
    steering: Steering | Steerings | None | Sequence[Steering | Steerings | None] = None,
    guidance: float = 3.0,
    temperature: float = 1.0,
    top_k: int = 250,
    chunk: float = 0.2,
    window: float | None = None,
    lookahead: float | None = None,
    read: tuple[str, int] | None = None,
) -> Stream:
    """`Model.stream`: clips that sound while they are made, in chunks, float32 (clip, channel, sample).

    Parameters
    ----------
    prompts, seed, steering, guidance, temperature, top_k : as in `Model.generate`
    duration : float, s; None goes on for ever
    chunk : float, s of sound at a time
    window : float, s that the model looks back at most, default `model.window`; then their last 2/5 begin
        a new window, as audiocraft extends clips
    lookahead : float, s that tokens are ahead of sound. Default: as far as a frame's sound depends on those
        to come (`model.codec_reach`); with less, chunks differ more from the whole decode.
    read : (site, layer) whose activations `Stream.readings` gives for every chunk

    Raises ValueError as `generate` does, and for a model that only audiocraft's own loop can run.
    """
    prompts, seeds, rows, _ = in_rows(prompts, seed, steering)
    frames = lambda what, value: max(1, model.seconds_to_frames(number(what, value, 0, 1e6)))
    window, most = frames("window", model.window if window is None else window), model.max_duration
    if not 2 <= window <= model.seconds_to_frames(most):
        raise ValueError(f"window={window / model.frame_rate:g} s; this model takes 2 frames to {most:g} s")
    if read is not None:
        pair = isinstance(read, tuple | list) and len(read) == 2
        if not (pair and isinstance(read[0], str) and hasattr(read[1], "__index__")):
            raise ValueError(f"read={read!r:.80} isn't a place (site, layer), such as ('resid', 3)")
        model.module_of(*read)
        read = tuple(read)
    top_k, temperature = number("top_k", top_k, 0, whole=True), number("temperature", temperature, 0)
    sampler = Sampler(seeds, number("guidance", guidance), temperature, top_k)
    n_frames = None if duration is None else frames("duration", duration)
    ahead = None if lookahead is None else frames("lookahead", lookahead)
    sizes = n_frames, window, frames("chunk", chunk), ahead
    with model.alone("stream"):
        return Stream(model, prompts, seeds, rows, sampler, *sizes, read)


class Stream:
    """Iterate over its chunks of sound, `steer` on the way, `finish` for all of it as a Generation.

    Attributes
    ----------
    frames : int, handed out as sound so far; `begun`, the frames whose first codebook is chosen
    readings : float32 (clip, frame, ...), of the last chunk's frames, at the place `read`: what is there when
        the model has just seen codebook 0 of the frame, before that place is steered
    """

    def __init__(self, model, prompts, seeds, rows, sampler, n_frames, window, chunk, lookahead, read):
        self.model, self.prompts, self.seeds, self.sampler = model, prompts, seeds, sampler
        self.n_frames, self.window, self.chunk, self.read = n_frames, window, chunk, read
        self.left, self.right = model.codec_reach
        self.right = self.right if lookahead is None else min(self.right, lookahead)
        self.halves = ("cond", "uncond") if sampler.guidance != 1 else ("cond",)
        texts = prompts + [None] * len(prompts) * (len(self.halves) - 1)
        self.conditions = model.conditions(texts, len(texts))
        self.frames = self.before = self.settled = 0  # settled: steps of earlier windows
        self.past, self.fading, self.readings = None, None, None
        self.seen, self.schedule = {}, [[] for _ in rows]
        self._open(None)
        self.steer(rows)

    def _open(self, start: torch.Tensor | None) -> None:
        """Begin a window, with the last frames `start` (clip, codebook, frame) of the one before."""
        most = self.window if self.n_frames is None else min(self.window, self.n_frames - self.before)
        self.clips = Decoding(self._engine(), self.conditions, self.sampler, Plan(), most, start, self.before)
        self.clips.seen = None if self.read is None else {self.read: None}
        self._plan(self.before)

    def _engine(self):
        if (engine := self.model.engine) is None:
            raise ValueError("only the engine streams, and this model runs in audiocraft's own loop")
        return engine

    @property
    def begun(self) -> int:
        return self.before + min(self.clips.known - 1, self.clips.n_frames)

    def steer(self, steering) -> None:
        """Steer by this from now on: one Steering or None for all clips, or a list of one for each.

        Now is the end of what was handed out: tokens that are further are chosen again. `start` and `stop` of
        the steering count from now. What steered until now ends, and stays in the schedule. The sound fades
        over within a frame. That frame, and those before it within the codec's reach and the delay of the
        finest codebook, are the only ones that differ from the whole decode.

        Raises ValueError as `generate` does, and for a ramp: it would have to know when it is going to end.
        """
        rate, rows = self.model.frame_rate, each(steering, len(self.prompts), "steerings")
        check(rows, self.n_frames or int(3600 * rate), self.model, self.halves)
        if any(part.ramp for row in rows if row is not None for part in row.parts):
            raise ValueError("a stream's steering can end at any moment, which a ramp can't: give ramp=0")
        with self.model.alone("stream"), calm(self.model.lm):
            if 0 < self.frames < self._whole():
                self.fading = self._sound(self.frames, self.frames + 1)
                self.clips.rewind(max(self.frames, self.settled) - self.before)
            now = max(self._now(), self.settled)
            later = lambda seconds: None if seconds is None else seconds + now / rate
            for parts, row in zip(self.schedule, rows, strict=True):
                begun = [part for part in parts if to_frames(part.start, rate) < now]
                parts[:] = [p if self._over(p, now) else replace(p, stop=now / rate) for p in begun]
                new = row.parts if row is not None else ()
                parts += [replace(p, start=later(p.start), stop=later(p.stop)) for p in new]
            self._plan(self._now())

    def _now(self) -> int:
        """The sequence step, in the clips' own count, that is read next."""
        return self.before + self.clips.known - 1

    def _over(self, part: Steering, step: int) -> bool:
        return part.stop is not None and to_frames(part.stop, self.model.frame_rate) <= step

    def _steerings(self, since: int = -1) -> list[Steerings | None]:
        """Each clip's schedule, without what was over at sequence step `since`."""
        rows = [tuple(part for part in parts if not self._over(part, since)) for parts in self.schedule]
        return [Steerings(parts) if parts else None for parts in rows]

    def _plan(self, since: int) -> None:
        """Have what the schedule says from sequence step `since` on."""
        steps = self.before + self.clips.n_steps
        self.clips.steer(plan(self._steerings(since), steps, self.model, self.halves))

    def _codes(self) -> torch.Tensor:
        """(clip, codebook, frame) so far; the last ones lack some codebooks."""
        new = self.clips.codes()
        return new if self.past is None else torch.cat([self.past[..., : self.before], new], dim=-1)

    def _whole(self) -> int:
        """Frames that have all their codebooks."""
        delay = self.clips.n_steps - 1 - self.clips.n_frames
        return self.before + max(0, self.clips.known - 1 - delay)

    @torch.no_grad()
    def _step(self) -> None:
        fresh = self.clips.done
        if fresh and self._engine():  # before anything is changed
            self.past, self.settled = self._codes(), self.before + self.clips.n_steps - 1
            start = self.past[..., -max(1, int(KEPT * self.window)) :]
            self.before = self.past.shape[-1] - start.shape[-1]
            self._open(start)
        self.clips.step()
        if fresh:  # what ended before has been heard again
            self._plan(self._now())
        if self.read is not None:
            self.seen[self._now() - 1] = self.clips.seen[self.read][: len(self.prompts), -1].clone()

    def __iter__(self):
        return self

    def __next__(self) -> np.ndarray:
        """The next chunk, float32 (clip, channel, sample)."""
        last = self.n_frames or float("inf")
        if (end := min(self.frames + self.chunk, last)) == self.frames:
            raise StopIteration
        with memory_told("stream fewer clips"), self.model.alone("stream"), calm(self.model.lm):
            while self._whole() < min(end + self.right, last):
                self._step()
            sound = self._sound(self.frames, end)
        self.sampler.check()
        if self.fading is not None:
            first = sound[..., : self.fading.shape[-1]]  # a chunk has a frame at least
            first += (self.fading - first) * torch.linspace(1, 0, first.shape[-1])
            self.fading = None
        if self.read is not None:
            steps = [self.seen.pop(s) for s in range(self.frames + 1, end + 1) if s in self.seen]
            self.readings = torch.stack(steps, 1).float().cpu().numpy()
        self.frames = end
        return sound.numpy()

    @torch.no_grad()
    def _sound(self, begin: int, end: int) -> torch.Tensor:
        """Audio (clip, channel, sample) of some frames, decoded with those around them that it depends on."""
        first, until = max(0, begin - self.left), min(end + self.right, self._whole())
        sound = _audiocraft.sound(self.model.codec, self._codes()[..., first:until], first).cpu()
        hop = sound.shape[-1] // (until - first)
        return sound[..., (begin - first) * hop : (end - first) * hop]

    @torch.no_grad()
    def finish(self) -> Generation:
        """All of it, after running on to the end of `duration`; without one it ends with the frames `begun`.

        A Generation whose `steering` is the schedule that was played, in the clip's own time: streamed anew
        with it, or generated if it is no longer than a window, the same seed gives the same tokens.
        """
        with self.model.alone("stream"):
            while self.n_frames is not None and self._whole() < self.n_frames:
                self._step()
            if self.n_frames is None:
                if not (frames := self.begun - self.before):
                    raise ValueError("nothing was played yet")
                self.clips.lay_out(frames, self.clips.sequence[..., : self.clips.known])
                while not self.clips.done:
                    self.clips.step()
                self.n_frames = self.begun
        self.sampler.check()
        codes, rate = self._codes().cpu(), self.model.frame_rate
        how = {name: getattr(self.sampler, name) for name in ("guidance", "temperature", "top_k")}
        how |= dict(duration=self.n_frames / rate, prompt_frames=0, window=self.window / rate)
        name = f"{self.model.name} {self.model.hash}"
        facts = self.prompts, self.seeds, self._steerings(), name, how, self.model.ears
        return Generation(self.model.decode(codes), codes, self.model.sample_rate, *facts)


@torch.no_grad()
def codec_reach(model, frames: int = 100) -> tuple[int, int]:
    """Frames before and after a frame that its sound depends on, by more than `FAINT`; measured on noise."""
    codec, card, middle = model.codec, model.lm.card, frames // 2
    codes = torch.randint(card, (1, codec.num_codebooks, frames), generator=torch.Generator().manual_seed(0))
    other = codes.clone()
    other[..., middle] = (codes[..., middle] + card // 2) % card
    change = _audiocraft.sound(codec, codes)[0] - _audiocraft.sound(codec, other)[0]
    change = change.unflatten(-1, (frames, -1)).pow(2).mean((0, 2)).sqrt()
    told = (change > FAINT * change.max()).nonzero().flatten().tolist() or [middle]
    return max(told) - middle + 1, middle - min(told) + 1
