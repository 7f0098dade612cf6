"""Everything that audiocraft and nnsight are asked for, in the one file that imports them.

Reads Meta's checkpoints into audiocraft's classes, without xformers and without running pickled code, and
mends two things in them: cross-attention to padded text, and positions in half precision.
"""

import contextlib
import functools
import importlib.machinery
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from ..errors import MissingWeights
from . import _checkpoints as checkpoints
from ._devices import check_memory
from .sampling import SITE_MODULES


def _stand_in_for_xformers() -> None:
    """Give audiocraft the names of `xformers.ops` it asks for, where xformers isn't installed.

    audiocraft's attention goes through torch by default; of xformers it only calls `ops.unbind`, which is
    `torch.unbind`. xformers has no macOS wheel and prints a page of warnings elsewhere.
    """
    if "xformers" in sys.modules or importlib.util.find_spec("xformers"):
        return
    package, ops = (types.ModuleType(name) for name in ("xformers", "xformers.ops"))
    for module in (package, ops):
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, loader=None)
    ops.unbind = torch.unbind
    ops.memory_efficient_attention = torch.nn.functional.scaled_dot_product_attention
    ops.LowerTriangularMask = type("LowerTriangularMask", (), {})
    package.ops = ops
    sys.modules.update({"xformers": package, "xformers.ops": ops})


class _Later(types.ModuleType):
    """A module, or a name in one, that is imported when it is first called."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(f"{self.__name__}.{name}")

    def __call__(self, *args, **kwargs):
        top, *path = self.__name__.split(".")
        return functools.reduce(getattr, path, importlib.import_module(top))(*args, **kwargs)


@contextlib.contextmanager
def _imported_later(*names: str) -> Iterator[None]:
    """Keep heavy modules out while audiocraft is imported, which wants them for functions that few models use."""
    absent = {name: _Later(name) for name in names if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


_HEAVY = ("transformers", "spacy", "librosa", "audiocraft.solvers", "audiocraft.solvers.compression")

_stand_in_for_xformers()
with warnings.catch_warnings(), _imported_later(*_HEAVY):
    warnings.simplefilter("ignore")
    logging.getLogger("torch.distributed.elastic.multiprocessing.redirects").setLevel(logging.ERROR)
    from audiocraft.models import CompressionModel, LMModel, MusicGen, builders
    from audiocraft.modules import transformer
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: F401
    from audiocraft.modules.conditioners import (  # noqa: F401
        AttributeDropout,
        BaseConditioner,
        ClassifierFreeGuidanceDropout,
        ConditionFuser,
        ConditioningAttributes,
        ConditioningProvider,
        T5Conditioner,
        TextConditioner,
    )
    from audiocraft.quantization import QuantizedResult, ResidualVectorQuantizer  # noqa: F401
    from omegaconf import OmegaConf


def build(source: str | Path) -> tuple[MusicGen, str]:
    """A MusicGen on the CPU in float32, and its weights' fingerprint, from a checkpoint of Meta's format."""
    package, codec_package = (
        checkpoints.read(checkpoints.locate(source, file))
        for file in (checkpoints.LM_FILE, checkpoints.CODEC_FILE)
    )
    check_memory(str(source), 4 * sum(t.numel() for t in package["best_state"].values()))
    cfg = OmegaConf.create(package["xp.cfg"])
    cfg.device, cfg.dtype = "cpu", "float32"
    cfg.transformer_lm.update(
        weight_init=None, depthwise_init=None, zero_bias_init=False
    )  # loaded just below
    extra = {
        k: c.model
        for k, c in (cfg.conditioners or {}).items()
        if k != "args" and c.model not in ("t5", "lut")
    }
    if extra or cfg.fuser.prepend:
        raise ValueError(
            f"{source} is conditioned on more than text through cross-attention ({extra or 'prepended text'}), as "
            "melody and style models are, which need demucs besides; load a text model such as facebook/musicgen-small"
        )
    try:
        lm = builders.get_lm_model(cfg)
    except OSError as error:  # transformers' own error is a page of guesses
        encoders = [c.t5.name for c in cfg.conditioners.values() if c.get("model") == "t5"]
        raise MissingWeights(
            f"no text encoder {', '.join(encoders)!r}, which {source} listens through: looked in the hub cache and on "
            "huggingface.co. Load it once with a connection: "
            f"`huggingface-cli download {' '.join(encoders)}`, or use the embedded model: ms.load('tiny')."
        ) from error
    lm.load_state_dict(package["best_state"])
    lm.cfg = cfg
    if "pretrained" in codec_package:
        codec = CompressionModel.get_pretrained(codec_package["pretrained"])
    else:
        codec_cfg = OmegaConf.create(codec_package["xp.cfg"])
        codec_cfg.device = "cpu"
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch's, of the weight_norm that EnCodec is saved with
            codec = builders.get_compression_model(codec_cfg)
        codec.load_state_dict(codec_package["best_state"])
    weights = checkpoints.weights_hash(package["best_state"], codec.state_dict())
    return MusicGen(str(source), codec, lm), weights


class CrossAttention(transformer.StreamingMultiheadAttention):
    """audiocraft's cross-attention, with two things done once: leaving padded text out, and projecting the
    text.

    audiocraft pads all prompts of a batch to one length and attends to the padding, so a row would depend on
    its neighbours; padded positions of a T5 encoding are exactly zero and get no weight here. While
    generating, keys and values of the text are kept instead of being computed at every step. A prompt alone
    gives the same numbers.
    """

    skip_padding = False

    def forward(self, query, key, value, **_):
        """(row, step, d_model) queries over (row, token, d_model) text; returns (row, step, d_model), None."""
        split = lambda x: x.unflatten(-1, (self.num_heads, -1)).transpose(
            1, 2
        )  # (row, head, position, d_head)
        weight = self.in_proj_weight.chunk(3)
        bias = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q = F.linear(query, weight[0], bias[0])
        kept = self._streaming_state.get("text")
        if kept is None:
            k, v = F.linear(key, weight[1], bias[1]), F.linear(key, weight[2], bias[2])
            kept = split(self.k_layer_norm(k) if self.qk_layer_norm else k), split(v), self._mask(key)
            if self._is_streaming:
                self._streaming_state["text"] = kept
        k, v, mask = kept
        q = split(self.q_layer_norm(q) if self.qk_layer_norm else q)
        if self.attention_as_float32:
            q, k, v = q.float(), k.float(), v.float()
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(x.transpose(1, 2).flatten(-2).to(query.dtype)), None

    def _mask(self, key):
        real = (key != 0).any(-1)  # (row, token); a row without text is all zeros, and keeps them
        real |= ~real.any(-1, keepdim=True)
        return None if not self.skip_padding or bool(real.all()) else real[:, None, None, :]


def _sin_embedding(
    positions, dim, max_period=10_000, dtype=torch.float32, *, original=transformer.create_sin_embedding
):
    """Positions in float32 whatever the model's dtype: bfloat16 can't tell step 257 from 258."""
    return original(positions, dim, max_period, torch.float32).to(dtype)


transformer.create_sin_embedding = _sin_embedding


def _rotate(self, query, key):
    """Rotary positions that go on where the cache ends; audiocraft 1.3 takes the number of heads for its length."""
    axis = transformer._get_attention_time_dimension(self.memory_efficient)
    past = self._streaming_state.get("past_keys")
    start = int(self._streaming_state.get("offset", 0)) + (0 if past is None else past.shape[axis])
    return self.rope.rotate_qk(query, key, start=start, time_dim=axis)


transformer.StreamingMultiheadAttention._apply_rope = _rotate


def adopt(lm: LMModel) -> LMModel:
    """Freeze a language model for inference and give it our cross-attention; its weights stay as they are."""
    t5 = any(isinstance(c, T5Conditioner) for c in lm.condition_provider.conditioners.values())
    for layer in lm.transformer.layers:
        layer.cross_attention.__class__ = CrossAttention
        layer.cross_attention.skip_padding = t5
    return lm.eval().requires_grad_(False)


def wrapped(lm: LMModel):
    """nnsight's `NNsight(lm)`."""
    from nnsight import NNsight

    return NNsight(lm)


@torch.no_grad()
def check_map(lm: LMModel, module_of: Callable, conditions: dict) -> None:
    """Every site must exist at every layer and be (row, step, d_model) in a forward pass; else ValueError names it."""
    seen: dict[tuple[str, int], tuple] = {}

    def note(site, layer):
        def hook(module, args, out=None):
            value = args[0] if out is None else out[0] if isinstance(out, tuple) else out
            seen[site, layer] = tuple(value.shape)

        return hook

    places = [(site, layer) for site in SITE_MODULES for layer in range(len(lm.transformer.layers))]
    with contextlib.ExitStack() as hooks:
        for site, layer in places:
            try:
                module = module_of(site, layer)
            except AttributeError as error:
                raise ValueError(
                    f"no {SITE_MODULES[site][0]!r} (site {site!r}) in layer {layer}: {error}"
                ) from error
            pre = SITE_MODULES[site][1] == "input"
            register = module.register_forward_pre_hook if pre else module.register_forward_hook
            hooks.callback(register(note(site, layer)).remove)
        device = next(lm.parameters()).device
        lm(torch.zeros(1, lm.num_codebooks, 2, dtype=torch.long, device=device), [], conditions)
    for site, layer in places:
        if seen.get((site, layer)) != (1, 2, lm.dim):
            found = seen.get((site, layer), "never run")
            raise ValueError(
                f"site {site!r} of layer {layer} should be (1, 2, {lm.dim}) and is {found}; "
                "mechsteer knows the modules of audiocraft 1.3 with its own (not PyTorch's) attention"
            )


def move(musicgen: MusicGen, device: torch.device, dtype: torch.dtype) -> None:
    """The language model to `device` and `dtype`; the codec and a T5 encoder stay float32, and off MPS."""
    musicgen.lm.to(device=device, dtype=dtype)
    musicgen.compression_model.to("cpu" if device.type == "mps" else device)
    musicgen.device = musicgen.lm.condition_provider.device = device
    for conditioner in musicgen.lm.condition_provider.conditioners.values():
        if isinstance(conditioner, T5Conditioner):
            conditioner.device = "cpu" if device.type == "mps" else str(device)
            conditioner.t5.to(conditioner.device)
