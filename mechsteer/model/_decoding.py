"""Clips on their way: their caches, their tokens so far, and the loop that `generate` and `stream` share."""

from collections.abc import Callable

import torch

from ._audiocraft import attributes
from .effects import plan, steered
from .sampling import BLOCK, HELD, Sampler, sampled

BUCKET = 256  # a captured graph attends to a multiple of so many steps
UNKNOWN = -1  # a token that is to come


class Decoding:
    """Clips on their way; `step()` adds one sequence step to each.

    Parameters
    ----------
    conditions : audiocraft's condition tensors, of the clips and, under guidance, then of their other halves
    sampler : Sampler, with the clips' random numbers
    plan : Plan, which `steer` replaces between steps
    n_frames : int, of the window that is decoded
    start : (clip, codebook, frame) codes to go on from, fewer than `n_frames`
    before : frames before this window: its sequence step s is step `before` + s of the plan
    graph : replay the step as a CUDA graph; default: on CUDA. `static` is the same step uncaptured.
    """

    def __init__(
        self, engine, conditions, sampler, plan, n_frames, start=None, before=0, graph=None, static=False
    ):
        self.engine, self.sampler, self.before = engine, sampler, before
        self.graph = engine.device.type == "cuda" if graph is None else graph
        self.static, self.fed, self.seen = self.graph or static, 0, None
        self.steer(plan)
        if start is None:
            start = torch.empty(len(sampler.generators), engine.shape[0], 0, dtype=torch.long)
        self.text, self.start = engine.text(conditions), start
        self.lay_out(n_frames)
        self.known = self.first = self.pattern.get_first_step_with_timesteps(start.shape[-1])
        room = -(-self.n_steps // BUCKET) * BUCKET if self.static else self.n_steps
        engine.positions(self.n_steps)
        sizes = len(engine.layers), 2, len(self.text[0][0]), engine.n_heads, room, engine.layers[0].heads[1]
        self.caches = self.engine.table.new_zeros(sizes)
        self.at, self.steps = (torch.arange(n, device=engine.device) for n in (1, room))
        sampler.begin(self.known, engine.shape, engine.device)

    def steer(self, plan) -> None:
        self.plan, self.graphs = plan, {}  # {length: None, or its graph and what was `seen` in it}

    def lay_out(self, n_frames: int, chosen: torch.Tensor | None = None) -> None:
        """Lay `start` out in the pattern of `n_frames`, and the steps `chosen`; the rest of it is to come."""
        self.pattern = self.engine.lm.pattern_provider.get_pattern(n_frames)
        whole = torch.full((*self.start.shape[:2], n_frames), UNKNOWN, device=self.engine.device)
        whole[..., : self.start.shape[-1]] = self.start
        self.sequence, _, self.mask = self.pattern.build_pattern_sequence(whole, self.engine.shape[1])
        self.n_steps, self.n_frames, self.graphs = len(self.pattern.layout), n_frames, {}
        if chosen is not None:
            self.sequence[..., : chosen.shape[-1]] = chosen

    def rewind(self, frame: int) -> None:
        """Forget the tokens chosen since codebook 0 of `frame`, of at most `HELD` - `BLOCK` steps."""
        known = max(frame + 1, self.first + 1, self.known - HELD + BLOCK)
        if known < self.known:
            self.lay_out(self.n_frames, self.sequence[..., :known])
            self.fed, self.known = known - 1, known

    @property
    def done(self) -> bool:
        return self.known == self.n_steps

    def step(self) -> None:
        """Choose the tokens of the next sequence step."""
        at, nxt = slice(self.fed, self.known), slice(self.known, self.known + 1)
        self.sampler.draw(self.known)
        if self.static and self.known - self.fed == 1:
            self._replay(-(-self.known // BUCKET) * BUCKET)
        else:
            when = slice(self.before + at.start, self.before + at.stop)
            self._advance(at, nxt, when, self.known, None)
        self.fed, self.known = self.known, self.known + 1

    def _advance(self, at, nxt, when, length: int, mask) -> None:
        logits = self.engine.logits(
            self.sequence[..., at], self.text, self.plan, at, when, self.caches, length, mask, self.seen
        )
        chosen = self.sampler.next(logits[:, 0], nxt.start if isinstance(nxt, slice) else nxt)
        tokens = torch.where(self.mask[:, nxt], chosen, self.engine.shape[1])
        old = self.sequence[..., nxt]
        self.sequence[..., nxt] = torch.where(old == UNKNOWN, tokens, old)

    def _replay(self, length: int) -> None:
        """The step at fixed addresses: which one it is stands in a tensor, and later steps are masked."""

        def run():
            later = (self.steps[:length] > self.at)[None, None, None]
            mask = self.caches.new_zeros(later.shape).masked_fill(later, -torch.inf)
            self._advance(self.at, self.at + 1, self.at + self.before, length, mask)

        self.at.fill_(self.known - 1)
        if not self.graph or length not in self.graphs:
            self.graphs[length] = None
            return run()  # the first time, for libraries to choose their kernels and workspaces
        if self.graphs[length] is None:
            with torch.cuda.graph(graph := torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                run()
            self.graphs[length] = graph, self.seen and dict(self.seen)
        self.graphs[length][0].replay()
        self.seen = self.graphs[length][1]

    def codes(self) -> torch.Tensor:
        """(clip, codebook, frame) of the window, `UNKNOWN` where they are to come."""
        return self.pattern.revert_pattern_sequence(self.sequence, UNKNOWN)[0]


def both_halves(sampler: Sampler, prompts, rows) -> bool:
    """Whether the unconditional half can matter: under guidance, for a prompt or a branch."""
    named = any(part.branch != "both" for row in rows if row is not None for part in row.parts)
    return sampler.guidance != 1 and (named or any(prompt is not None for prompt in prompts))


@torch.no_grad()
def decode(model, prompts, rows, start, sampler: Sampler, n_frames: int, tell: Callable) -> torch.Tensor:
    """Codes (clip, codebook, frame) on the CPU of one batch, steered by `rows`; `tell()` follows every step.

    A model that the engine doesn't know, or that carries PyTorch hooks, runs in audiocraft's own loop.
    """
    both = both_halves(sampler, prompts, rows)
    n_steps = len(model.lm.pattern_provider.get_pattern(n_frames).layout)
    planned = plan(rows, n_steps, model, ("cond", "uncond") if both else ("cond",))
    if (engine := model.engine) is not None:
        texts = [*prompts, *[None] * len(prompts)] if both else prompts
        clips = Decoding(engine, model.conditions(texts, len(texts)), sampler, planned, n_frames, start)
        while not clips.done:
            clips.step()
            tell()
        codes = clips.codes()
    else:
        options = dict(use_sampling=False, cfg_coef=sampler.guidance, two_step_cfg=False)
        options["callback"] = lambda done, total: tell()
        with steered(model.lm, planned), sampled(model.lm, sampler, both):
            codes = model.lm.generate(start, attributes(model.lm, prompts), max_gen_len=n_frames, **options)
    sampler.check()
    return codes.cpu()
