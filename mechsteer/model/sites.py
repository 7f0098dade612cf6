"""The places in a transformer layer that can be read and changed: one table, one hook, `Site` for traces.

Layers are 0-based and mean the block's output, or that of the named part inside it. What enters layer 0 (the
sum of the codebooks' embeddings) is no layer: tables and Datasets of activations call it the site `input`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SITES = {  # name -> (module inside a layer, "" for the layer itself; which of its values)
    "resid": ("", "output"),
    "attn": ("self_attn", "first"),  # of a tuple of outputs
    "heads": ("self_attn.out_proj", "input"),
    "cross": ("cross_attention", "first"),
    "mlp": ("linear2", "output"),
}
INPUT = "input"


def check_site(site: str) -> str:
    """The name, if it is a site's; ValueError naming those there are."""
    if site not in SITES:
        raise ValueError(f"site={site!r} isn't one of {', '.join(SITES)}")
    return site


def feature_dims(site: str) -> tuple[str, ...]:
    """The dims of one activation: (head, d_head) at `heads`, (d_model,) elsewhere."""
    return ("head", "d_head") if site == "heads" else ("d_model",)


def module_of(layers, site: str, layer: int):
    """The module of a site in `layers`, a list of PyTorch modules or of nnsight envoys.

    IndexError for a layer that isn't there. Negative numbers aren't: -1 would be mistaken for the input.
    """
    path, _ = SITES[check_site(site)]
    if not 0 <= layer < len(layers):
        raise IndexError(f"no layer {layer}: this model has layers 0 to {len(layers) - 1}")
    return operator.attrgetter(path)(layers[layer]) if path else layers[layer]


def hook(lm, site: str, layer: int, act: Callable[[torch.Tensor], torch.Tensor | None]):
    """Give `act` a site's value in every forward pass of `lm`; what it returns, if anything, takes its place.

    Values are (row, step, d_model), for `heads` (row, step, head, d_head). Returns PyTorch's handle.
    """
    module, (_, value) = module_of(lm.transformer.layers, site, layer), SITES[site]
    n_heads = lm.transformer.layers[layer].self_attn.num_heads

    def change(h):
        new = act(h.unflatten(-1, (n_heads, -1)) if site == "heads" else h)
        return h if new is None else new.reshape(h.shape)

    if value == "input":
        return module.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    if value == "first":
        return module.register_forward_hook(lambda module, args, out: (change(out[0]), *out[1:]))
    return module.register_forward_hook(lambda module, args, out: change(out))


class Site:
    """One site of every layer, inside `with model.trace(...)`: `model.resid[7]` reads, assignment changes.

    Values are plain tensors, of the shapes that `hook` gives; `.save()` keeps one.
    """

    def __init__(self, model, name: str):
        self.model, self.name = model, check_site(name)
        self.value = SITES[name][1]

    def __getitem__(self, layer: int) -> torch.Tensor:
        envoy = module_of(self.model.nn.transformer.layers, self.name, layer)
        if self.value == "input":
            return envoy.input.unflatten(-1, (self.model.n_heads, -1))
        return envoy.output[0] if self.value == "first" else envoy.output

    def __setitem__(self, layer: int, value: torch.Tensor) -> None:
        envoy = module_of(self.model.nn.transformer.layers, self.name, layer)
        if self.value == "input":
            envoy.input = value.flatten(-2)
        else:
            envoy.output = (value, None) if self.value == "first" else value
