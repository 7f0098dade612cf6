"""The decoding step that `generate` and `stream` run: audiocraft's arithmetic, without its modules.

`_decoding.Decoding` runs it. nnsight and PyTorch hooks see audiocraft's modules, which compute the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ._audiocraft import sines
from .effects import Plan

PACKED = 500_000_000  # parameters; a second copy of more would fill a laptop


def attention(q, k, v, mask=None, is_causal=False):
    """PyTorch's; plain products for one step in float32 on CUDA, for which its kernel takes longer."""
    if q.shape[2] > 1 or q.dtype != torch.float32 or q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores if mask is None else scores + mask).softmax(-1) @ v


class Engine:
    """The weights of `lm` for one decoding step after another.

    Queries, keys and values are one product, and so are the codebooks' heads. In float32 on a CPU, up to
    `PACKED` parameters, matrices are kept in oneDNN's blocked layout as well, which at the few rows of a step
    reads them up to four times as fast; without it, PyTorch's own `linear` runs. Only for a model in which
    nothing is `_audiocraft.strange`.
    """

    def __init__(self, lm):
        self.lm, some = lm, lm.emb[0].weight
        self.n_heads, self.rope = lm.transformer.layers[0].self_attn.num_heads, lm.transformer.rope
        self.device, self.dtype, self.shape = some.device, some.dtype, (lm.num_codebooks, lm.card)
        small = sum(p.numel() for p in lm.parameters()) <= PACKED
        self.packed = small and self.dtype == torch.float32 and self.device.type == "cpu" and _can_pack()
        self.table = torch.cat([emb.weight for emb in lm.emb])
        self.first = torch.arange(len(lm.emb), device=self.device)[:, None] * len(some)  # row of code 0
        bias = None if lm.linears[0].bias is None else torch.cat([linear.bias for linear in lm.linears])
        self.heads = self.linear(torch.cat([linear.weight for linear in lm.linears]), bias)
        self.layers = [_Layer(layer, self.linear, self.n_heads) for layer in lm.transformer.layers]
        self.out_norm, self.sines = _norm(lm.out_norm), some[:0]

    def linear(self, weight, bias) -> Callable[[torch.Tensor], torch.Tensor]:
        """`F.linear` with this weight, read from its packed copy where there is one."""
        if not self.packed:
            return lambda x: F.linear(x, weight, bias)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        run = torch.ops.mkldnn._linear_pointwise
        return lambda x: run(x, packed, bias, "none", [], "")

    def positions(self, n_steps: int) -> None:
        """Have sines (step, d_model) and rotations (step, 1, 1, d_head / 2) for so many steps."""
        if len(self.sines) < n_steps:
            stack, steps = self.lm.transformer, torch.arange(n_steps, device=self.device)[:, None]
            self.sines = sines(stack, steps[None], self.dtype)[0]
            if self.rope:
                turns = self.rope.get_rotation(0, n_steps).to(self.device) * self.rope.scale
                self.turns = (turns + (1 - self.rope.scale))[:, None, None]  # step, 1, 1, pair

    def text(self, conditions: dict) -> list[tuple]:
        """Keys and values (row, head, token, d_head) of the text at every layer, and which tokens count."""
        rows = len(next(iter(conditions.values()))[0])
        _, text = self.lm.fuser(self.table.new_zeros(rows, 1, self.lm.dim), conditions)
        return [layer.text(text) for layer in self.layers]

    def logits(self, tokens, text, plan: Plan, at, when, caches=None, length=None, mask=None, seen=None):
        """Logits (row, step, codebook, card) after `tokens` (clip, codebook, step); rows are half by half.

        Parameters
        ----------
        at, when : slice, or a tensor of one step: where `tokens` are in the window, and in the plan
        caches : (layer, 2, row, head, step, d_head), written at `at`; then only the last step has logits
        length : steps of the caches to attend to; `mask` (1, 1, 1, length) leaves out those that are to come
        seen : {(site, layer): activations}, whose values become what is there before it is steered
        """
        x = self.embed(tokens, at)
        if len(text[0][0]) > len(x):
            x = torch.cat([x, x])  # the halves of guidance
        x = self.through(x, text, plan, at, when, caches, length, mask, seen)
        return self.read(x if caches is None else x[:, -1:])

    def read(self, x):
        """The last layer's output (row, step, d_model) to logits (row, step, codebook, card), float32."""
        return self.heads(self.out_norm(x)).view(*x.shape[:2], *self.shape).float()

    def embed(self, tokens, at):
        """(clip, codebook, step) tokens at the steps `at` to the input of layer 0, (clip, step, d_model)."""
        return F.embedding(tokens + self.first, self.table).sum(1) + self.sines[at]

    def through(
        self, x, text, plan, at, when, caches=None, length=None, mask=None, seen=None, layers=slice(None)
    ):
        """`x` (row, step, d_model) after `layers`; the rest as in `logits`.

        Several steps of `x` attend to each other only, or, given a `mask`, to the caches' `length` steps.
        """
        alone, turns = x.shape[1] > 1 and mask is None, self.turns[at] if self.rope else None

        def steered(h, site, layer):
            if seen is not None and (site, layer) in seen:
                seen[site, layer] = h.clone()
            return plan.at(h, site, layer, when) if (site, layer) in plan else h

        for i, layer in list(enumerate(self.layers))[layers]:
            q, *kv = qkv = layer.queries_keys_values(x, turns)
            if caches is not None:
                caches[i][:, :, :, at] = qkv[1:]
                kv = kv if alone else caches[i][:, :, :, :length]
            y = steered(attention(q, *kv, mask, is_causal=alone).transpose(1, 2), "heads", i)
            x = x + steered(layer.out(y.reshape(x.shape)), "attn", i)
            x = x + steered(layer.listen(x, *text[i]), "cross", i)
            x = x + steered(layer.think(x), "mlp", i)
            x = steered(x, "resid", i)
        return x


class _Layer:
    """One layer's products; arithmetic in the order of audiocraft's `StreamingTransformerLayer`."""

    def __init__(self, layer, linear, n_heads: int):
        mine, cross, self.act = layer.self_attn, layer.cross_attention, layer.activation
        self.norm1, self.norm2, self.norm_cross = map(_norm, (layer.norm1, layer.norm2, layer.norm_cross))
        of = lambda module: linear(module.weight, module.bias)
        self.qkv, self.out = linear(mine.in_proj_weight, mine.in_proj_bias), of(mine.out_proj)
        biases = (None,) * 3 if cross.in_proj_bias is None else cross.in_proj_bias.chunk(3)
        self.q, *self.kv = (linear(*one) for one in zip(cross.in_proj_weight.chunk(3), biases, strict=True))
        self.cross_out, self.up, self.down = of(cross.out_proj), of(layer.linear1), of(layer.linear2)
        self.mask, self.heads = cross._mask, (n_heads, layer.linear1.in_features // n_heads)

    def split(self, x):
        """(row, step, d_model) to (row, head, step, d_head)."""
        if x.shape[1] == 1:
            return x.view(len(x), self.heads[0], 1, self.heads[1])
        return x.view(*x.shape[:2], *self.heads).transpose(1, 2)

    def queries_keys_values(self, x, turns):
        """(3, row, head, step, d_head)."""
        qkv = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, *self.heads)
        if turns is not None:  # the pairs of features of queries and keys, as complex numbers
            pairs = qkv[:, :, :2].float().view(*x.shape[:2], 2, self.heads[0], -1, 2)
            pairs = torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2)
            qkv = torch.cat([pairs.to(x.dtype), qkv[:, :, 2:]], 2)
        return qkv.permute(2, 0, 3, 1, 4)

    def text(self, text):
        if (mask := self.mask(text)) is not None:
            mask = text.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
        return *(self.split(project(text)) for project in self.kv), mask

    def listen(self, x, keys, values, mask):
        y = attention(self.split(self.q(self.norm_cross(x))), keys, values, mask)
        return self.cross_out(y.transpose(1, 2).reshape(x.shape))

    def think(self, x):
        return self.down(self.act(self.up(self.norm2(x))))


def _norm(module):
    shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps, False)


@functools.cache
def _can_pack() -> bool:
    """Whether this torch and processor multiply by weights in oneDNN's layout, and rightly."""
    x, weight = torch.linspace(-1, 1, 64).reshape(2, 32), torch.linspace(-1, 1, 512).reshape(16, 32)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):  # another build of torch, another processor
        return False
    return torch.allclose(found, F.linear(x, weight), atol=1e-5)
