"""Read activations while the model runs, pooled on the spot: plain hooks, the numbers of nnsight's trace.

Nothing here grows with the number of clips, and with the number of frames only where frames are asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
import torch

from ..errors import memory_told
from ..model.model import Model
from ..model.sites import INPUT, hook

POOLS = ("mean", "frames")
BUDGET = 256e6  # bytes of activations inside a forward pass on the CPU


class _Enough(Exception):  # noqa: N818
    """Ends a forward pass: the last layer that was asked for has run."""


class Reader:
    """Hooks that pool sites of a model over each row's valid steps, in every forward pass inside `with`.

    Parameters
    ----------
    sites : of `sites.SITES`; values are float32, after any steering of the same place
    layers : 0-based
    n_frames : (row,) frames of each row; steps beyond them are padding and count nowhere
    pool : "mean" over `model.valid_steps`, or "frames": step t + 1 at frame t
    stop : leave the forward pass (by an exception that `read` catches) once the last of `layers` has run

    In generation the first rows are the conditional half, and only they are read. `result` has, per site,
    float32 arrays (row, layer, [frame,] [head,] feature) and `<site>_norm` (row, layer[, head]), the mean L2
    norm over valid steps; and `input` (row, [frame,] d_model), the sum of the codebooks' embeddings before
    layer 0. Frames beyond a row's own are NaN.
    """

    def __init__(self, model: Model, sites, layers, n_frames: Sequence[int], pool="mean", stop=False):
        self.model, self.pool, self.stop = model, pool, stop
        self.sites, self.layers = tuple(sites), list(layers)
        spans = [model.valid_steps(int(n)) for n in n_frames]
        self.first, self.width = spans[0].start, max(span.stop for span in spans)
        valid = torch.zeros(len(spans), self.width)
        for row, span in enumerate(spans):
            valid[row, span] = 1 / (span.stop - span.start)
        self.valid = valid.to(model.device)
        self.pooled: dict[tuple, torch.Tensor] = {}
        self.norms: dict[tuple, torch.Tensor] = {}
        self.now = self.next = 0
        self.placed = False

    def __enter__(self) -> Reader:
        self.hooks = contextlib.ExitStack()
        self.hooks.enter_context(self.model.alone("reading activations"))
        self.hooks.callback(self.model.lm.register_forward_pre_hook(self._begin).remove)
        return self

    def __exit__(self, *error) -> None:
        self.hooks.close()

    def _begin(self, lm, args) -> None:
        """Count steps; at first, add the reading hooks: after those that steer, to see their effect."""
        self.now, self.next = self.next, self.next + args[0].shape[-1]
        if self.placed:
            return
        self.placed = True
        keep = lambda handle: self.hooks.callback(handle.remove)
        keep(lm.transformer.register_forward_pre_hook(lambda module, args: self._take((INPUT,), args[0])))
        for place in product(self.sites, self.layers):
            keep(hook(lm, *place, partial(self._take, place)))
        if self.stop:
            keep(lm.transformer.layers[max(self.layers)].register_forward_hook(_enough))

    def _take(self, key: tuple, h: torch.Tensor) -> None:
        """Pool h (row, step, [head,] feature), whose first step is sequence step `now`."""
        R, now = len(self.valid), self.now
        S = min(h.shape[1], self.width - now)
        if S <= 0:
            return
        h = h[:R, :S].float()
        mean = lambda x: torch.einsum("rs,rs...->r...", self.valid[:, now : now + S], x)
        self.norms[key] = self.norms.get(key, 0) + mean(torch.linalg.vector_norm(h, dim=-1))
        if self.pool == "mean":
            self.pooled[key] = self.pooled.get(key, 0) + mean(h)
            return
        if key not in self.pooled:
            self.pooled[key] = h.new_full((R, self.width - self.first, *h.shape[2:]), torch.nan)
        skip = max(self.first - now, 0)
        self.pooled[key][:, now + skip - self.first : now + S - self.first] = h[:, skip:]

    def result(self) -> dict[str, np.ndarray]:
        """See the class; call it after the forward passes."""
        padding = self.valid[:, self.first :] == 0  # (row, frame)
        for value in self.pooled.values() if self.pool == "frames" else ():
            value[padding] = torch.nan
        stack = lambda values, site: torch.stack([values[site, i] for i in self.layers], 1).cpu().numpy()
        found = {INPUT: self.pooled[INPUT,].cpu().numpy()}
        for site in self.sites:
            found |= {site: stack(self.pooled, site), f"{site}_norm": stack(self.norms, site)}
        return found


def _enough(module, args, out):
    raise _Enough


@torch.no_grad()
@memory_told("give a smaller batch_size")
def read(model: Model, codes, sites=("resid",), layers=None, pool: str = "mean", prompts=None) -> dict:
    """Teacher-forced activations of clips of any lengths in one forward pass; `Reader` says what comes back.

    Parameters
    ----------
    codes : one (codebook, frame) per clip; the shorter are padded at the end, where a causal model can't look
    prompts : None (unconditional), one str for all, or one per clip
    """
    codes = [torch.as_tensor(np.asarray(c, dtype=np.int64)) for c in codes]
    lengths = [c.shape[-1] for c in codes]
    batch = torch.stack([torch.nn.functional.pad(c, (0, max(lengths) - c.shape[-1])) for c in codes])
    layers = range(model.n_layers) if layers is None else layers
    with Reader(model, sites, layers, lengths, pool, stop=True) as reader, contextlib.suppress(_Enough):
        model.lm(model.sequence(batch), [], model.conditions(prompts, len(codes)))
    return reader.result()


def mean_norms(model: Model, codes: Sequence, site: str = "resid", prompts=None) -> np.ndarray:
    """Mean L2 norm of the activations over frames, then clips: the units of a steering's strength.

    float32 (layer,), for `heads` (layer, head). `codes` are (clip, codebook, frame), or one (codebook, frame)
    per clip; `prompts` as in `read`.
    """
    shared, found = prompts is None or isinstance(prompts, str), []
    size = auto_batch(model, max(np.shape(c)[-1] for c in codes))
    for at in range(0, len(codes), size):
        some = slice(at, at + size)
        each = read(model, codes[some], (site,), prompts=prompts if shared else prompts[some])
        found.append(each[f"{site}_norm"])
    return np.concatenate(found).mean(0)


def auto_batch(model: Model, n_frames: int) -> int:
    """How many clips of `n_frames` go through the model at once: what a fixed memory holds, 64 at most."""
    budget = BUDGET
    if model.device.type == "cuda":
        budget = max(budget, torch.cuda.mem_get_info(model.device)[0] / 4)
    width = 24 * model.d_model * model.dtype.itemsize  # about what a layer holds at its widest, per step
    return int(np.clip(budget // (width * (n_frames + 1)), 1, 64))
