"""Tokens from logits: every row with random numbers of its own, in the engine and in audiocraft's loop."""

import contextlib
from collections.abc import Iterator, Sequence

import torch

BLOCK, HELD = 8, 32  # steps that are drawn at once, and that are held, so that a stream may go back


class Sampler:
    """Chooses tokens; as a forward hook on the LM, it makes audiocraft's greedy choice a sample.

    Row r draws from `torch.Generator().manual_seed(seeds[r])`, on the CPU whatever the device: the token of
    sequence step s (s >= 1) is argmax(log p / temperature + G) over the `top_k` largest guided logits, where
    G = -log(-log(u)) and u is the s-th `torch.rand(codebook, card)` of that generator (the Gumbel-max trick).
    So a row's tokens depend on its own logits only, and a clip continued from its codes goes on as it did.

    Parameters
    ----------
    seeds : one int per clip
    guidance : float, classifier-free: uncond + (cond - uncond) x guidance, as audiocraft computes it
    temperature, top_k : 0 is greedy, and 0 keeps all
    """

    def __init__(self, seeds: Sequence[int], guidance: float, temperature: float, top_k: int):
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.guidance, self.temperature, self.top_k = guidance, temperature, top_k
        self.greedy = temperature < 1e-30  # where dividing by it leaves float32
        self.uniform = self.told = None  # (clip, step, codebook, card); are all logits numbers?
        self.used = self.drawn = self.shift = 0

    def begin(self, step: int, shape: tuple[int, int], device) -> None:
        """A window whose first choice is sequence step `step`; after the first window, the numbers go on."""
        self.shift = self.used - (step - 1) if self.used else 0
        if self.told is None:
            self.drawing = torch.empty(len(self.generators), BLOCK, *shape)
            self.uniform = torch.empty(len(self.generators), HELD, *shape, device=device)
            self.told = torch.ones((), dtype=torch.bool, device=device)

    def draw(self, step: int) -> None:
        """Have the numbers for a sequence step of this window."""
        self.used = self.shift + step
        while self.drawn < self.used and not self.greedy:
            for row, generator in zip(self.drawing, self.generators, strict=True):
                torch.rand(row.shape, generator=generator, out=row)
            at = self.drawn % HELD
            self.uniform[:, at : at + BLOCK] = self.drawing.to(self.uniform.device)
            self.drawn += BLOCK

    def next(self, logits: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """[cond; uncond] logits (row, codebook, card), in float32, to `step`'s tokens (clip, codebook, 1)."""
        clips = len(self.generators)
        if len(logits) > clips:
            logits = logits[clips:] + (logits[:clips] - logits[clips:]) * self.guidance
        self.told &= torch.isfinite(logits).all()
        if self.greedy:
            return logits.argmax(-1, keepdim=True)
        return self.choose(logits, self.uniform[:, (self.shift + step - 1) % HELD].view_as(logits))

    def choose(self, logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """(clip, codebook, card) guided logits and uniform numbers to (clip, codebook, 1) tokens."""
        kept = None
        if 0 < self.top_k < logits.shape[-1]:
            logits, kept = logits.topk(self.top_k, dim=-1, sorted=False)
            uniform = uniform.gather(-1, kept)
        best = (logits / self.temperature - torch.log(-torch.log(uniform))).argmax(-1, keepdim=True)
        return best if kept is None else kept.gather(-1, best)

    def check(self) -> None:
        """ValueError if logits were NaN or infinite: tokens chosen from them mean nothing."""
        if not self.told:
            raise ValueError("the model's logits became NaN or infinite: steer or guide less, or use float32")

    def __call__(self, lm, args: tuple, logits: torch.Tensor) -> torch.Tensor:
        """[cond; uncond] logits (row, codebook, step, card) to one-hot ones, alike in both halves."""
        step = self.used + logits.shape[2]
        self.begin(step, (logits.shape[1], logits.shape[3]), logits.device)
        self.shift = 0
        self.draw(step)
        tokens = self.next(logits[:, :, -1].float(), step)
        chosen = torch.zeros_like(logits[: len(tokens), :, -1], dtype=torch.float32)
        return chosen.scatter_(-1, tokens, 1.0).repeat(2, 1, 1).unsqueeze(2)


@contextlib.contextmanager
def sampled(lm, sampler: Sampler, both_halves: bool) -> Iterator[None]:
    """Let `lm.generate(use_sampling=False)` sample through `sampler`, on one half of guidance or both."""
    clips = len(sampler.generators)

    def conditional_only(lm, args, kwargs):
        tensors = {k: (c[:clips], m[:clips]) for k, (c, m) in kwargs["condition_tensors"].items()}
        return (args[0][:clips], *args[1:]), kwargs | {"condition_tensors": tensors}

    with contextlib.ExitStack() as hooks:
        if not both_halves:
            hooks.callback(lm.register_forward_pre_hook(conditional_only, with_kwargs=True).remove)
        hooks.callback(lm.register_forward_hook(sampler).remove)
        yield
