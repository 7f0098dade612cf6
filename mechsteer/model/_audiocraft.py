"""Everything that audiocraft and nnsight are asked for, in the one file that imports them.

Reads Meta's checkpoints into audiocraft's classes, without xformers and without running pickled code. A model
that is adopted gets `CrossAttention`, `SelfAttention` and `Transformer` of ours; audiocraft stays as it is.
"""

import contextlib
import functools
import importlib.machinery
import importlib.util
import inspect
import logging
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from .._machine import check_memory
from ..errors import MissingWeights, Unusable, reading
from . import _checkpoints
from .sites import SITES, hook


def _stand_in_for_xformers() -> None:
    """Give audiocraft the names of `xformers.ops` it asks for, where xformers isn't installed.

    audiocraft's attention goes through torch by default; of xformers it only calls `ops.unbind`, which is
    `torch.unbind`. xformers has no macOS wheel and prints a page of warnings elsewhere.
    """
    if "xformers" in sys.modules or importlib.util.find_spec("xformers"):
        return
    for name in ("xformers", "xformers.ops"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, loader=None)
    ops = sys.modules["xformers"].ops = sys.modules["xformers.ops"]
    ops.unbind, ops.LowerTriangularMask = torch.unbind, object
    ops.memory_efficient_attention = F.scaled_dot_product_attention


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
    """Keep heavy modules out while audiocraft is imported, which few models need: seconds at every start."""
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
    from audiocraft.models.lm import ScaledEmbedding
    from audiocraft.modules import conditioners, transformer  # noqa: F401
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # noqa: F401
    from audiocraft.modules.conditioners import ConditioningAttributes, T5Conditioner  # noqa: F401
    from audiocraft.quantization import QuantizedResult, ResidualVectorQuantizer  # noqa: F401
    from omegaconf import OmegaConf


def build(source: str | Path) -> tuple[MusicGen, str]:
    """A MusicGen on the CPU in float32, and its weights' hash, from a checkpoint of Meta's format."""
    files = (_checkpoints.LM_FILE, _checkpoints.CODEC_FILE)
    package, codec_package = (_checkpoints.read_file(_checkpoints.locate(source, file)) for file in files)
    anew = "its xp.cfg and weights must belong together; audiocraft.utils.export writes both"
    with reading(f"{files[0]} of {source}", anew):
        check_memory(str(source), 4 * sum(t.numel() for t in package["best_state"].values()))
        lm = _language_model(source, package)
    with reading(f"{files[1]} of {source}", anew):
        codec = _codec(source, codec_package)
    weights = _checkpoints.weights_hash(package["best_state"], codec.state_dict())
    return MusicGen(str(source), codec, lm), weights


def _language_model(source, package: dict) -> LMModel:
    cfg = OmegaConf.create(package["xp.cfg"])
    cfg.device, cfg.dtype = "cpu", "float32"
    cfg.transformer_lm.update(weight_init=None, depthwise_init=None, zero_bias_init=False)  # loaded below
    listed = {name: c.model for name, c in (cfg.conditioners or {}).items() if name != "args"}
    extra = {name: kind for name, kind in listed.items() if kind not in ("t5", "lut")}
    if extra or cfg.fuser.prepend:
        raise Unusable(
            f"{source} hears more than text through cross-attention ({extra or 'prepended text'}), as melody "
            "and style models do, which need demucs; load a text model: facebook/musicgen-small"
        )
    try:
        lm = builders.get_lm_model(cfg)
    except OSError as error:  # transformers' own error is a page of guesses
        encoders = " ".join(c.t5.name for c in cfg.conditioners.values() if c.get("model") == "t5")
        raise MissingWeights(
            f"no text encoder {encoders!r}, which {source} listens through: looked in the hub cache and on "
            f"huggingface.co. Load it once with a connection: `huggingface-cli download {encoders}`, or use "
            "the embedded model: ms.load('tiny')."
        ) from error
    lm.load_state_dict(package["best_state"])
    lm.cfg = cfg
    return lm


def _codec(source, package: dict) -> CompressionModel:
    if (name := package.get("pretrained")) is not None:
        if name not in _checkpoints.CODECS:  # audiocraft would open any path or repository named here
            known = " or ".join(_checkpoints.CODECS)
            raise Unusable(f"{source} asks for the codec {name!r}; mechsteer fetches {known} only")
        try:
            return CompressionModel.get_pretrained(name)
        except OSError as error:
            absent = f"no codec {name!r}, which {source} needs: load it once with a connection"
            raise MissingWeights(absent) from error
    cfg = OmegaConf.create(package["xp.cfg"])
    cfg.device = "cpu"
    with warnings.catch_warnings():  # torch's, of the weight_norm that EnCodec is saved with
        warnings.simplefilter("ignore", FutureWarning)
        codec = builders.get_compression_model(cfg)
    codec.load_state_dict(package["best_state"])
    return codec


def attributes(lm: LMModel, prompts) -> list[ConditioningAttributes]:
    """Prompts, or None for no text, as audiocraft's conditioners take them."""
    names = lm.condition_provider.text_conditions
    return [ConditioningAttributes(text=dict.fromkeys(names, prompt)) for prompt in prompts]


def sound(codec: CompressionModel, codes: torch.Tensor, first: int = 0) -> torch.Tensor:
    """Audio (clip, channel, sample) of codes that begin at frame `first`, should the codec ask."""
    place = {"first": first} if "first" in inspect.signature(codec.decode).parameters else {}
    return codec.decode(codes.to(next(codec.parameters()).device), None, **place).float()


def sines(stack, steps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sinusoidal positions of steps (row, step, 1), computed in float32; zeros where a model has none."""
    dim = stack.layers[0].linear1.in_features
    found = transformer.create_sin_embedding(steps, dim, stack.max_period, torch.float32)
    return (stack.positional_embedding != "rope") * stack.positional_scale * found.to(dtype)


def strange(lm: LMModel) -> str:
    """What a language model has that `engine` doesn't know; empty if it knows all."""
    found, fuser = set(), lm.fuser.fuse2cond
    if any(names for way, names in fuser.items() if way != "cross"):
        found.add("conditions that don't come through cross-attention")
    if transformer._efficient_attention_backend != "torch":
        found.add("xformers' attention")
    if not (_all_are(torch.nn.Linear, lm.linears) and _all_are(ScaledEmbedding, lm.emb)):
        found.add("other embeddings or heads")
    for layer in lm.transformer.layers:
        mine, cross = layer.self_attn, layer.cross_attention
        norms = layer.norm1, layer.norm2, layer.norm_cross
        linears = mine.out_proj, cross.out_proj, layer.linear1, layer.linear2
        known = {
            "layers of other classes": type(mine) is SelfAttention and type(cross) is CrossAttention,
            "norms after the blocks": layer.norm_first and isinstance(lm.out_norm, torch.nn.LayerNorm),
            "layer scale": isinstance(layer.layer_scale_1, torch.nn.Identity),
            "a past context": mine.past_context is None,
            "shared keys (kv_repeat)": mine.kv_repeat == 1,
            "norms of queries and keys": not (mine.qk_layer_norm or cross.qk_layer_norm),
            "attention in float32": not (mine.attention_as_float32 or cross.attention_as_float32),
            "xPos": not (mine.rope and mine.rope.xpos),
            "attention that isn't causal": mine.causal,
            "other linears or norms": _all_are(torch.nn.Linear, linears)
            and _all_are(torch.nn.LayerNorm, norms),
        }
        found |= {name for name, ok in known.items() if not ok}
    return ", ".join(sorted(found))


def _all_are(kind: type, modules) -> bool:
    return all(type(module) is kind for module in modules)


@torch.no_grad()
def weights_state(lm: LMModel) -> tuple:
    """Changes when a module is replaced, or weights move or are written, through `.data` as well."""
    kinds = tuple(map(type, lm.modules()))
    sums = torch.stack([p.sum(dtype=torch.float32) for p in lm.parameters()]).tolist()
    return kinds, tuple((p.data_ptr(), p._version) for p in lm.parameters()), tuple(sums)


def is_hooked(lm: LMModel) -> bool:
    """Whether PyTorch hooks wait on any module, or on all."""
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in lm.modules())
    return hooked or torch.nn.modules.module._has_any_global_hook()


class CrossAttention(transformer.StreamingMultiheadAttention):
    """audiocraft's cross-attention, with padded text left out, and the text projected once.

    audiocraft pads all prompts of a batch to one length and attends to the padding, so a row would depend on
    its neighbours; padded positions of a T5 encoding are exactly zero and get no weight here. While
    generating, keys and values of the text are kept. A prompt alone gives the same numbers.
    """

    skip_padding = False

    def forward(self, query, key, value, **_):
        """(row, step, d_model) queries over (row, token, d_model) text."""
        split = lambda x: x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (row, head, place, d_head)
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


class SelfAttention(transformer.StreamingMultiheadAttention):
    """audiocraft's self-attention with rotary positions that go on where the cache ends, not at n_heads."""

    def _apply_rope(self, query, key):
        axis = transformer._get_attention_time_dimension(self.memory_efficient)
        past = self._streaming_state.get("past_keys")
        start = int(self._streaming_state.get("offset", 0)) + (0 if past is None else past.shape[axis])
        return self.rope.rotate_qk(query, key, start=start, time_dim=axis)


class Transformer(transformer.StreamingTransformer):
    """audiocraft's layers, with sinusoidal positions in float32: bfloat16 can't tell step 257 from 258."""

    def forward(self, x, *args, **kwargs):
        """(row, step, d_model) to (row, step, d_model)."""
        B, T, _ = x.shape
        before = self._streaming_state.get("offsets", torch.zeros(B, dtype=torch.long, device=x.device))
        x = x + sines(self, torch.arange(T, device=x.device).view(1, -1, 1) + before.view(-1, 1, 1), x.dtype)
        for layer in self.layers:
            x = self._apply_layer(layer, x, *args, **kwargs)
        if self._is_streaming:
            self._streaming_state["offsets"] = before + T
        return x


def adopt(lm: LMModel) -> LMModel:
    """Freeze a language model for inference and give it our attention and positions; its weights stay."""
    t5 = any(isinstance(c, T5Conditioner) for c in lm.condition_provider.conditioners.values())
    lm.transformer.__class__ = Transformer
    for layer in lm.transformer.layers:
        if type(layer.self_attn) is transformer.StreamingMultiheadAttention:  # else check_sites says so
            layer.self_attn.__class__ = SelfAttention
        layer.cross_attention.__class__ = CrossAttention
        layer.cross_attention.skip_padding = t5
    return lm.eval().requires_grad_(False)


def wrapped(lm: LMModel, alone):
    """nnsight's `NNsight(lm)`, whose traces run while they hold `alone` (`_shared.OneAtATime`)."""
    import nnsight
    from nnsight.intervention.tracer import InterleavingTracer

    class Tracer(InterleavingTracer):
        n_steps = 1  # forward passes

        @property
        def steps(self):
            return self.iter[0 : self.n_steps]

        def execute(self, code):
            with alone("trace"):
                super().execute(code)

    class NNsight(nnsight.NNsight):
        trace = functools.partialmethod(nnsight.NNsight.trace, tracer_cls=Tracer)

    return NNsight(lm)


@torch.no_grad()
def check_sites(lm: LMModel, conditions: dict) -> None:
    """ValueError unless every site is at every layer and of width d_model in a forward pass."""
    seen = {(site, layer): "never run" for site in SITES for layer in range(len(lm.transformer.layers))}
    with contextlib.ExitStack() as hooks:
        for site, layer in seen:
            note = lambda h, place=(site, layer): seen.update({place: tuple(h.flatten(2).shape)})
            try:
                hooks.callback(hook(lm, site, layer, note).remove)
            except AttributeError as error:
                missing = f"no {SITES[site][0]!r} (site {site!r}) in layer {layer}: {error}"
                raise ValueError(missing) from error
        device = next(lm.parameters()).device
        lm(torch.zeros(1, lm.num_codebooks, 2, dtype=torch.long, device=device), [], conditions)
    for (site, layer), shape in seen.items():
        if shape != (1, 2, lm.dim):
            known = "mechsteer knows the modules of audiocraft 1.3 with its own (not PyTorch's) attention"
            found = f"site {site!r} of layer {layer} should be (1, 2, {lm.dim}) and is {shape}"
            raise ValueError(f"{found}; {known}")


def move(musicgen: MusicGen, device: torch.device, dtype: torch.dtype) -> None:
    """The language model to `device` and `dtype`; the codec and a T5 encoder stay float32, and off MPS."""
    musicgen.lm.to(device=device, dtype=dtype)
    if (rope := musicgen.lm.transformer.rope) and rope.rotation is not None:
        rope.rotation = rope.rotation.to(device)  # no buffer, so it stays where it was
    musicgen.compression_model.to("cpu" if device.type == "mps" else device)
    musicgen.device = musicgen.lm.condition_provider.device = device
    for conditioner in musicgen.lm.condition_provider.conditioners.values():
        if isinstance(conditioner, T5Conditioner):
            conditioner.device = "cpu" if device.type == "mps" else str(device)
            conditioner.t5.to(conditioner.device)
