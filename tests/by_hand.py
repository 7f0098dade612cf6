"""Sampling and steering written by hand, in PyTorch hooks or nnsight, without the package's own code."""

import contextlib

import torch
from nnsight import NNsight

TOP_K, GUIDANCE = 50, 3.0


def noise(generators, codebooks: int, card: int) -> torch.Tensor:
    """One step's Gumbel noise, (clip, codebook, card)."""
    return torch.stack([-torch.log(-torch.log(torch.rand(codebooks, card, generator=g))) for g in generators])


def pick(logits: torch.Tensor, generators) -> torch.Tensor:
    """[cond; uncond] logits (2 x clip, codebook, step, card) to one-hot ones: a greedy choice samples."""
    cond, uncond = logits[:, :, -1].chunk(2)
    guided = uncond + (cond - uncond) * GUIDANCE
    smallest = guided.sort(dim=-1).values[..., -TOP_K, None]
    guided = guided.masked_fill(guided < smallest, -torch.inf)
    token = (guided + noise(generators, *guided.shape[1:]).to(guided.device)).argmax(-1)
    return torch.nn.functional.one_hot(token, guided.shape[-1]).float().repeat(2, 1, 1)[:, :, None]


def gain(step: int, frame_rate: float, start=0.0, stop=None, every=1, ramp=0.0, **_) -> float:
    """The schedule of one row at one sequence step, in [0, 1]."""
    first = int(start * frame_rate + 0.5)
    if step < first or (stop is not None and step >= int(stop * frame_rate + 0.5)) or (step - first) % every:
        return 0.0
    return min(1.0, (step - first + 1) / int(ramp * frame_rate + 0.5)) if ramp else 1.0


def edit(h, step: int, frame_rate: float, rows: list[dict], mode: str, strength: float, norm, d):
    """Activations (2 x clip, 1, ..., width), each row by its own options; `d` (..., width) is unit."""
    out, d = h.clone(), d.to(h.device)
    for half, name in enumerate(("cond", "uncond")):
        for index, options in enumerate(rows):
            if options.get("branch", "both") not in ("both", name):
                continue
            g, row = gain(step, frame_rate, **options), half * len(rows) + index
            x = h[row]
            along = (x * d).sum(-1, keepdim=True)
            if mode == "add":
                out[row] = x + g * strength * norm * d
            elif mode == "blend":
                out[row] = (x + x.norm(dim=-1, keepdim=True) * g * strength * d) / (1 + g * strength)
            elif mode == "replace":
                out[row] = x + g * (strength * norm - along) * d
            elif mode == "remove":
                out[row] = x - g * strength * along * d
    return out


def with_hooks(model, prompts, seeds, n_frames: int, site: str, layers, change) -> torch.Tensor:
    """Codes of audiocraft's own loop with `change(value, step, layer)` in plain PyTorch hooks at `site`."""
    lm, calls = model.lm, {"n": 0}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def sample(module, args, out):
        calls["n"] += 1
        return pick(out, generators)

    def hook_on(layer):
        block = lm.transformer.layers[layer]
        if site == "resid":
            return block.register_forward_hook(lambda m, a, out: change(out, calls["n"], layer))
        if site == "attn":
            return block.self_attn.register_forward_hook(
                lambda m, a, out: (change(out[0], calls["n"], layer), None)
            )
        if site == "mlp":
            return block.linear2.register_forward_hook(lambda m, a, out: change(out, calls["n"], layer))
        split = lambda x: x.view(*x.shape[:2], model.n_heads, model.d_head)
        pre = lambda m, a: (change(split(a[0]), calls["n"], layer).flatten(2),)
        return block.self_attn.out_proj.register_forward_pre_hook(pre)

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(hook_on(layer).remove)
        hooks.callback(lm.register_forward_hook(sample).remove)
        options = dict(max_gen_len=n_frames, use_sampling=False, cfg_coef=GUIDANCE)
        return lm.generate(None, attributes(prompts), **options).cpu()


def with_nnsight(model, prompts, seeds, n_frames: int, site: str, layers, change) -> torch.Tensor:
    """The same in an nnsight trace of audiocraft's loop."""
    nn = NNsight(model.lm)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"max_gen_len": n_frames, "use_sampling": False, "cfg_coef": GUIDANCE}
    calls, count = n_frames + model.n_codebooks - 1, 0
    with nn.trace(None, attributes(prompts), **options, fn=model.lm.generate) as tracer:
        for _ in tracer.iter[0:calls]:
            for layer in layers:
                block = nn.transformer.layers[layer]
                if site == "resid":
                    block.output = change(block.output, count, layer)
                elif site == "attn":
                    block.self_attn.output = (change(block.self_attn.output[0], count, layer), None)
                elif site == "mlp":
                    block.linear2.output = change(block.linear2.output, count, layer)
                else:
                    value = block.self_attn.out_proj.input
                    heads = value.view(*value.shape[:2], model.n_heads, model.d_head)
                    block.self_attn.out_proj.input = change(heads, count, layer).flatten(2)
            nn.output = pick(nn.output, generators)
            count += 1
        codes = tracer.result.save()
    return codes.cpu()


def attributes(prompts):
    from mechsteer.model._audiocraft import ConditioningAttributes

    return [ConditioningAttributes(text={"description": prompt}) for prompt in prompts]
