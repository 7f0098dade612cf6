"""Tokens from logits: audiocraft's greedy loop made to sample, every row with random numbers of its own."""

import contextlib
from collections.abc import Iterator, Sequence

import torch


class Sampler:
    """A forward hook on the LM that makes audiocraft's greedy choice a sample.

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
        self.uniform: torch.Tensor | None = None  # (clip, codebook, card)
        self.told: torch.Tensor | bool = True  # whether all logits so far were numbers

    def draw(self, logits: torch.Tensor, n_steps: int) -> torch.Tensor:
        """The uniform numbers for the step after `n_steps` more steps."""
        if self.uniform is None:
            self.uniform = torch.empty(logits.shape)
        for row, generator in zip(self.uniform, self.generators, strict=True):
            for _ in range(n_steps):
                torch.rand(row.shape, generator=generator, out=row)
        return self.uniform.to(logits.device)

    def choose(self, logits: torch.Tensor, n_steps: int) -> torch.Tensor:
        """(clip, codebook, card) guided logits to (clip, codebook, 1) tokens."""
        if self.temperature < 1e-30:  # where dividing by it leaves float32
            return logits.argmax(-1, keepdim=True)
        uniform = self.draw(logits, n_steps)
        kept = None
        if 0 < self.top_k < logits.shape[-1]:
            logits, kept = logits.topk(self.top_k, dim=-1)
            uniform = uniform.gather(-1, kept)
        best = (logits / self.temperature - torch.log(-torch.log(uniform))).argmax(-1, keepdim=True)
        return best if kept is None else kept.gather(-1, best)

    def check(self) -> None:
        """ValueError if logits were NaN or infinite: tokens chosen from them mean nothing."""
        if not self.told:
            raise ValueError("the model's logits became NaN or infinite: steer or guide less, or use float32")

    def __call__(self, lm, args: tuple, logits: torch.Tensor) -> torch.Tensor:
        """[cond; uncond] logits (row, codebook, step, card) to one-hot ones, alike in both halves."""
        last = logits[:, :, -1].float()
        clips = len(self.generators)
        guided = last[:clips]
        if len(last) > clips:
            guided = last[clips:] + (guided - last[clips:]) * self.guidance
        self.told = torch.isfinite(guided).all() & self.told
        chosen = torch.zeros_like(guided).scatter_(-1, self.choose(guided, logits.shape[2]), 1.0)
        return chosen.repeat(2, 1, 1).unsqueeze(2)


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
