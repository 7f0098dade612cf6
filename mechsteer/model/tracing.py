"""nnsight on a MusicGen: one forward pass, or a whole generation, to be read and changed while it runs."""

from __future__ import annotations

import torch

from .._shared import number, spelled
from ._audiocraft import attributes
from ._calls import in_rows
from ._decoding import both_halves
from .sampling import Sampler, sampled


def trace(model, codes, prompts=None, **options):
    """nnsight's own trace of one forward pass: `with model.trace(codes): h = model.resid[3].save()`.

    Parameters
    ----------
    codes : (clip, codebook, frame), of one length; the delay pattern makes frame + 1 steps of it
    prompts : None, str or one per clip
        None is unconditional: no text that could leak a label. There is no guidance: one row per clip.
    options : for nnsight
        Everything it offers works on `model.nn`; `model.nn.output` are the logits (clip, codebook, step,
        card). Parameters are frozen, so gradients reach only what you add.

    Taught in 02_reach_inside.
    """
    sequence = model.sequence(codes)
    return model.nn.trace(sequence, [], model.conditions(prompts, len(sequence)), **options)


@spelled
def tracing_generation(
    model,
    prompts=None,
    duration: float = 8.0,
    seed=0,
    guidance: float = 3.0,
    temperature: float = 1.0,
    top_k: int = 250,
):
    """nnsight's trace of a generation in audiocraft's own loop, to read and write at every step of it:

        with model.tracing_generation("jazz piano", duration=2) as run:
            for _ in run.steps:
                model.resid[3] = model.resid[3] + push
            codes = run.result.save()

    Parameters as in `generate`, whose tokens these are if nothing is written; `model.decode(codes)` is sound.

    Returns
    -------
    nnsight's tracer. `result` are the codes (clip, codebook, frame); `steps` goes through the forward passes,
    one for each sequence step, and ends, as nnsight's open `iter[:]` wouldn't: what follows it would never
    run. A value inside it is (row, 1, d_model), where the rows are the clips, and under guidance with a
    prompt the clips' conditional rows, then their unconditional ones. What is saved in every pass stays in
    memory: append `value[:, 0].cpu()` to a list made before the block.

    Raises ValueError as `generate` does. Taught in 02_reach_inside.
    """
    frames = model.frames_of(duration)
    prompts, seeds, rows, _ = in_rows(prompts, seed, None)
    number("temperature", temperature, 0), number("top_k", top_k, 0, whole=True)
    sampler = Sampler(seeds, number("guidance", guidance), temperature, top_k)

    @torch.no_grad()
    def generate(told):
        with sampled(model.lm, sampler, both_halves(sampler, prompts, rows)):
            options = dict(use_sampling=False, cfg_coef=guidance, two_step_cfg=False)
            codes = model.lm.generate(None, told, max_gen_len=frames, **options)
        sampler.check()
        return codes

    tracer = model.nn.trace(attributes(model.lm, prompts), fn=generate)
    tracer.n_steps = len(model.lm.pattern_provider.get_pattern(frames).layout) - 1
    return tracer
