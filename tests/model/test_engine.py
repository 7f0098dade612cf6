"""The decoding engine gives what audiocraft's own loop gives, token by token, or stands back and says so.

The reference is `LMModel.generate` with plain PyTorch hooks, written here and in by_hand.py; none of it
runs the engine.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import random
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from by_hand import attributes, edit, noise
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import mechsteer as ms
from mechsteer import paths
from mechsteer.model import _audiocraft
from mechsteer.model import _engine as engine_module
from mechsteer.model._decoding import BUCKET, Decoding
from mechsteer.model._engine import Engine
from mechsteer.model.effects import Plan, plan
from mechsteer.model.sampling import Sampler
from mechsteer.model.steering import MODES, Steering
from mechsteer.tiny.loading import load_embedded

SITES = ("resid", "attn", "heads", "cross", "mlp")
ROWS = [
    {},
    {"branch": "cond", "start": 0.12, "stop": 0.32},
    {"branch": "uncond", "every": 3},
    {"branch": "both", "start": 0.12, "ramp": 0.2},
]
TEXTS = ["jazz piano", None, "rock guitar with fast drums and a violin solo", "slow", "calm violin"]
CLOSE = 1e-3  # a tie: two candidates this near to each other, in logits plus noise
STRENGTH = 0.8


# audiocraft's loop, by hand


class ByHand:
    """A forward hook on the LM that samples; keeps how far apart the two best candidates were."""

    def __init__(self, seeds, guidance=3.0, top_k=50, temperature=1.0):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.guidance, self.top_k, self.temperature = guidance, top_k, temperature
        self.steps, self.gaps = 0, {}

    def __call__(self, lm, args, out):
        fed, shape = args[0].shape[-1], (out.shape[1], out.shape[3])
        drawn = [noise(self.generators, *shape) for _ in range(fed)][-1]  # number s belongs to step s
        self.steps += fed
        cond, uncond = out[:, :, -1].float().chunk(2)
        score = cond if self.guidance == 1 else uncond + (cond - uncond) * self.guidance
        if self.top_k:
            smallest = score.sort(dim=-1).values[..., -self.top_k, None]
            score = score.masked_fill(score < smallest, -torch.inf)
        score = score / self.temperature + drawn.to(score.device) if self.temperature else score
        first, second = score.topk(2, dim=-1).values.unbind(-1)
        self.gaps[self.steps] = first - second
        token = torch.nn.functional.one_hot(score.argmax(-1), shape[1])
        return token.float().repeat(2, 1, 1)[:, :, None]


def hooked(model, site, layer, change):
    """A plain hook that gives a site's value (row, step, ...) to `change`."""
    block = model.lm.transformer.layers[layer]
    if site == "heads":
        split = lambda x: x.unflatten(-1, (model.n_heads, model.d_head))
        return block.self_attn.out_proj.register_forward_pre_hook(lambda m, a: change(split(a[0])).flatten(2))
    if site in ("attn", "cross"):
        module = block.self_attn if site == "attn" else block.cross_attention
        return module.register_forward_hook(lambda m, a, out: (change(out[0]), None))
    module = block if site == "resid" else block.linear2
    return module.register_forward_hook(lambda m, a, out: change(out))


def by_hand(model, prompts, seeds, frames, site="resid", change=None, start=None, **sampling):
    """Codes of audiocraft's loop, and the gaps; `change(h of one step, step, layer)` acts at every layer."""
    sample = ByHand(seeds, **sampling)

    def at_layer(layer, h):
        steps = range(sample.steps, sample.steps + h.shape[1])
        return torch.cat([change(h[:, i : i + 1], step, layer) for i, step in enumerate(steps)], dim=1)

    with contextlib.ExitStack() as hooks:
        for layer in range(model.n_layers) if change else ():
            act = functools.partial(at_layer, layer)
            hooks.callback(hooked(model, site, layer, act).remove)
        hooks.callback(model.lm.register_forward_hook(sample).remove)
        options = dict(use_sampling=False, cfg_coef=3.0, two_step_cfg=False)
        start = None if start is None else start.to(model.device)
        codes = model.lm.generate(start, attributes(prompts), max_gen_len=frames, **options)
    return codes.cpu(), sample.gaps


class Noted(Sampler):
    """The package's sampler, keeping the gaps as `ByHand` does."""

    def begin(self, step, *facts):
        super().begin(step, *facts)
        self.gaps, self.step = {}, step

    def choose(self, logits, uniform):
        top = (logits / self.temperature - torch.log(-torch.log(uniform))).topk(2, dim=-1).values
        self.gaps[self.step], self.step = top[..., 0] - top[..., 1], self.step + 1
        return super().choose(logits, uniform)


def compared(ours, theirs, gaps) -> tuple[int, int]:
    """Tokens that were compared, and ties that fell otherwise; fails if anything else differs.

    A token decides what follows it in its clip: a clip counts until the first step that differs, and every
    token that differs there must have been a tie.
    """
    assert ours.shape == theirs.shape
    frame, book = torch.arange(ours.shape[-1]), torch.arange(ours.shape[1])
    step = (frame + book[:, None] + 1).expand(ours.shape)  # of the delay pattern of both models
    tokens = flips = 0
    for clip, differs in enumerate(ours != theirs):
        last = int(step[clip][differs].min()) if differs.any() else int(step.max())
        for k, _ in (differs & (step[clip] == last)).nonzero().tolist():
            gap = float(gaps[last][clip, k])
            assert gap < CLOSE, f"clip {clip}, codebook {k}, step {last}: {gap:.2g} from the next candidate"
        tokens += int((step[clip] <= last).sum())
        flips += bool(differs.any())
    return tokens, flips


def same(ours, theirs, gaps) -> None:
    """The same tokens, but for at most one tie."""
    tokens, flips = compared(ours, theirs, gaps)
    assert flips <= max(1, tokens // 10_000)


def direction(model, site="resid", seed=0, norm=0.5):
    """A random direction at every layer, of the norms `norm`, `norm` + 1, ..."""
    shape = (model.n_heads, model.d_head) if site == "heads" else (model.d_model,)
    values = np.random.default_rng(seed).normal(size=(model.n_layers, *shape))
    norms = norm + np.arange(model.n_layers)
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / lengths, norms


def steering(model, site="resid", mode="add", strength=STRENGTH, seed=0, **options) -> Steering:
    unit, norms = direction(model, site, seed)
    import xarray as xr

    dims = ("layer", "head", "d_head") if site == "heads" else ("layer", "d_model")
    coords = {"layer": np.arange(model.n_layers), "norm": ("layer", norms)}
    array = xr.DataArray(unit, dims=dims, coords=coords)
    return Steering(array, site=site, mode=mode, strength=strength, **options)


def steered_by_hand(model, site, mode, rows):
    unit, norms = direction(model, site)
    unit = torch.tensor(unit, dtype=torch.float32)
    return lambda h, step, layer: edit(
        h, step, model.frame_rate, rows, mode, STRENGTH, norms[layer], unit[layer]
    )


def ours(model, prompts, seeds, frames, steering=None, start=None, **sampling):
    options = {"guidance": 3.0, "top_k": 50} | sampling
    seconds = frames / model.frame_rate
    return model.generate(
        prompts, seconds, seeds, steering, audio_prompt=start, progress=False, **options
    ).codes


def noise_codes(model, clips, frames, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.lm.card, (clips, model.n_codebooks, frames), generator=generator)


# Tokens


@pytest.mark.filterwarnings("ignore:.*does nothing")  # the unconditional half, at guidance 1
def test_every_token_is_that_of_plain_hooks(model):
    """Sites x modes, and beside them batch sizes, texts, guidance, audio prompts and sampling, shuffled.

    Branches and schedules (ROWS) cycle over the rows of each batch. The same arithmetic in another order may
    flip a tie of two candidates; see `compared`. At most one may in 10,000 tokens.
    """
    places = list(itertools.product(SITES, MODES))
    settings = list(itertools.product((1, 3, 8), ("texts", "none"), (3.0, 1.0), (0, 5)))
    random.Random(0).shuffle(settings)
    samplings = itertools.cycle([dict(top_k=50), dict(top_k=0, temperature=0.7), dict(temperature=0.0)])
    tokens, flips, frames = 0, 0, 48 // model.n_codebooks
    for i, (batch, texts, guidance, given) in enumerate(settings):
        site, mode = places[i % len(places)]
        rows = [ROWS[(i // 4 + j) % len(ROWS)] for j in range(batch)]
        prompts = [TEXTS[j % len(TEXTS)] if texts == "texts" else None for j in range(batch)]
        seeds = [i + 7 * j for j in range(batch)]
        start = noise_codes(model, batch, given) if given else None
        sampling = {"guidance": guidance, **next(samplings)}
        theirs, gaps = by_hand(
            model, prompts, seeds, frames, site, steered_by_hand(model, site, mode, rows), start, **sampling
        )
        steerings = [steering(model, site, mode, **options) for options in rows]
        found = ours(model, prompts, seeds, frames, steerings, start, **sampling)
        try:
            some, flipped = compared(found, theirs, gaps)
        except AssertionError as error:
            raise AssertionError(f"{site} {mode} {batch} {texts} {given} {sampling}: {error}") from None
        tokens, flips = tokens + some, flips + flipped
    assert tokens > 4000 and flips <= max(1, tokens // 10_000), (flips, tokens)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_unsteered_tokens_are_audiocrafts(model, batch):
    prompts, seeds = (TEXTS * 2)[:batch], list(range(batch))
    theirs, gaps = by_hand(model, prompts, seeds, 10)
    same(ours(model, prompts, seeds, 10), theirs, gaps)


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_that_goes_on_from_codes_is_steered_in_them_too(model, mode):
    """Many steps at once, under schedules: `edit` by hand acts step by step."""
    prompts, seeds, start = TEXTS[:4], [1, 2, 3, 4], noise_codes(model, 4, 9)
    theirs, gaps = by_hand(
        model, prompts, seeds, 13, "resid", steered_by_hand(model, "resid", mode, ROWS), start
    )
    found = ours(model, prompts, seeds, 13, [steering(model, mode=mode, **o) for o in ROWS], start)
    assert torch.equal(found[..., :9], start)
    same(found, theirs, gaps)


def test_the_embedded_models_tokens_stay_what_they_were(tiny):
    """They may differ on another processor, where a tie falls otherwise: then audiocraft's loop decides."""
    model = tiny
    vector = np.random.default_rng(0).standard_normal(model.d_model)
    s = Steering(vector, layers=[3], strength=0.3, norm=10.0)
    prompts, rows = ["jazz piano", None, "rock guitar", "flute"], [None, s, s, None]
    codes = model.generate(prompts, duration=4, seed=7, steering=rows, progress=False).codes
    if hashlib.sha256(codes.numpy().tobytes()).hexdigest().startswith("b28adbd367718263"):
        return
    unit = torch.tensor(vector / np.linalg.norm(vector), dtype=torch.float32)
    on = torch.tensor([0.0, 1, 1, 0] * 2)[:, None, None]
    change = lambda h, step, layer: h + 0.3 * 10.0 * on * unit if layer == 3 else h
    same(codes, *by_hand(model, prompts, [7, 8, 9, 10], codes.shape[-1], "resid", change, top_k=250))


# Logits


def in_the_engine(model, sequence, prompts):
    """Logits (clip, codebook, step, card) of a whole teacher-forced sequence, and step by step."""
    engine, steps = model.engine, sequence.shape[-1]
    engine.positions(steps)
    text, every = engine.text(model.conditions(prompts, len(sequence))), slice(0, steps)
    whole = engine.logits(sequence, text, Plan(), every, every)
    sizes = len(engine.layers), 2, len(sequence), model.n_heads, steps, model.d_head
    caches, single = torch.zeros(sizes, dtype=model.dtype, device=model.device), []
    for s in range(steps):
        at = slice(s, s + 1)
        single.append(engine.logits(sequence[..., at], text, Plan(), at, at, caches, s + 1))
    return (x.transpose(1, 2) for x in (whole, torch.cat(single, 1)))


def in_audiocraft(model, sequence, prompts):
    return model.lm(sequence, [], model.conditions(prompts, len(sequence))).float()


@torch.no_grad()
def test_logits_are_audiocrafts_at_once_and_step_by_step(model):
    sequence = model.sequence(noise_codes(model, 3, 25))
    theirs = in_audiocraft(model, sequence, TEXTS[:3])
    for found in in_the_engine(model, sequence, TEXTS[:3]):
        torch.testing.assert_close(found, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype, bound", [("bfloat16", 0.02), ("float16", 0.003)])
@pytest.mark.parametrize("name", ["meta", "tiny"])
def test_half_precision_is_as_near_as_audiocrafts_own(name, request, meta_folder, dtype, bound):
    """RMS error by the standard deviation of the float32 logits; and no more than 1.5 x audiocraft's."""
    model, half = request.getfixturevalue(name), ms.load({"meta": meta_folder}.get(name, name), "cpu", dtype)
    sequence = model.sequence(noise_codes(model, 3, 30))
    full = in_audiocraft(model, sequence, TEXTS[:3])
    error = lambda logits: float((logits - full).pow(2).mean().sqrt() / full.std())
    theirs = error(in_audiocraft(half, sequence, TEXTS[:3]))
    for found in in_the_engine(half, sequence, TEXTS[:3]):
        assert error(found) < bound and error(found) < 1.5 * theirs


@torch.no_grad()
@pytest.mark.parametrize("mode", [None, *MODES])
def test_many_steps_at_once_are_as_many_single_steps(model, mode):
    """Keys and values of codes to go on from, and the logits after them."""
    start, s = noise_codes(model, 2, 12), mode and steering(model, mode=mode, start=0.12, every=2)
    conditions, planned = model.conditions(["jazz", None] * 2, 4), plan([s, None], 40, model)
    clips = Decoding(model.engine, conditions, Sampler([1, 2], 3.0, 1.0, 50), planned, 20, start)
    known, single = clips.known, torch.zeros_like(clips.caches)
    run = functools.partial(model.engine.logits, text=clips.text, plan=planned)
    for step in range(known):
        at = slice(step, step + 1)
        last = run(clips.sequence[..., at], at=at, when=at, caches=single, length=step + 1)
    at = slice(0, known)
    whole = run(clips.sequence[..., at], at=at, when=at, caches=clips.caches, length=known)
    torch.testing.assert_close(clips.caches, single, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(whole, last, atol=1e-4, rtol=1e-4)


# The form that CUDA captures


@pytest.mark.parametrize("mode", [None, *MODES])
def test_the_step_at_fixed_addresses_gives_the_tokens_of_the_sliced_one(model, mode):
    """Also where it attends to one bucket more."""
    at = SITES[MODES.index(mode)] if mode else "resid"
    rows = [steering(model, at, mode, **o) if mode else None for o in ROWS[1:]]
    long = (BUCKET + 2, noise_codes(model, 3, BUCKET - 3)) if mode in (None, "replace") else ()
    for frames, start in ((12, None), *[long] * bool(long)):
        found = []
        for static in (False, True):
            sampler, planned = Noted([1, 2, 3], 3.0, 1.0, 50), plan(rows, frames + 10, model)
            conditions = model.conditions(TEXTS[:3] + [None] * 3, 6)
            with torch.no_grad():
                clips = Decoding(model.engine, conditions, sampler, planned, frames, start, 0, False, static)
                while not clips.done:
                    clips.step()
            found.append(clips.codes().cpu())
        assert clips.caches.shape[-2] % BUCKET == 0
        same(found[1], found[0], sampler.gaps)


fake = functools.cache(FakeTensorMode)  # made when it is used: it imports torch's compiler


def pretended(tensors):
    """Tensors without values, as on a CUDA device: what would read one, or wait for one, raises."""
    like = lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
    with fake():
        return tree_map_only(torch.Tensor, like, tensors)


class OnTheDevice(TorchDispatchMode):
    """Refuses a step's operations on anything that isn't there already, which a graph couldn't replay."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, lambda t: self.check(t, function), (args, kwargs, out))
        return out

    def check(self, tensor, function):
        assert tensor.device.type == "cuda", f"{function} on {tensor.device}"


def pretended_engine(model) -> Engine:
    lm = copy.deepcopy(model.lm)
    for module in lm.modules():
        for kind in (module._parameters, module._buffers):
            kind |= {name: pretended(t) for name, t in kind.items() if t is not None}
    with fake(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the addresses that `weights_state` asks for
        made = Engine(lm)
    made.sines = pretended(model.engine.sines)
    if model.engine.rope:
        made.turns = pretended(model.engine.turns)
    return made


@torch.no_grad()
def test_a_step_can_be_captured(model):
    """It runs on tensors without values, on one device: nothing waits for a number, or is copied there."""
    with pytest.raises(DataDependentOutputException), fake():
        bool(pretended(torch.ones(1)).all())  # so would any step that looks
    with pytest.raises(AssertionError, match="on cpu"), fake(), OnTheDevice():
        torch.zeros(1)
    model.engine.positions(BUCKET)
    engine = pretended_engine(model)
    samplings = itertools.cycle([(1.0, 50), (0.7, 0), (0.0, 50)])  # temperature, top_k
    for site, mode in [("resid", None), *zip(SITES, (*MODES, "add"), strict=True)]:
        rows = [steering(model, site, mode, **o) if mode else None for o in ROWS[:2]]
        sampler, conditions = Sampler([1, 2], 3.0, *next(samplings)), model.conditions(["a", "slow"] * 2, 4)
        clips = Decoding(model.engine, conditions, sampler, plan(rows, 40, model), 20, static=True)
        clips.step()
        for name in ("sequence", "mask", "caches", "at", "steps", "text"):
            setattr(clips, name, pretended(getattr(clips, name)))
        for name in ("uniform", "told"):
            setattr(sampler, name, pretended(getattr(sampler, name)))
        on = lambda e: dataclasses.replace(
            e, **pretended({n: getattr(e, n) for n in ("gain", "amount", "vector")})
        )
        clips.plan = Plan({place: [on(e) for e in effects] for place, effects in clips.plan.items()})
        clips.engine = engine
        with fake(), OnTheDevice():
            clips._replay(BUCKET)
        assert clips.sequence.device.type == "cuda"


def test_rotary_positions_move_with_the_model():
    """They are kept in a plain tensor, which `lm.to` leaves behind; every machine has the device "meta"."""
    musicgen = load_embedded()
    _audiocraft.move(musicgen, torch.device("meta"), torch.float32)
    assert musicgen.lm.transformer.rope.rotation.device.type == "meta"


# Packed weights


def test_packed_weights_give_the_tokens_of_plain_ones(model, monkeypatch):
    prompts, seeds, s = TEXTS[:3], [4, 5, 6], steering(model, strength=0.3)
    rows = [None, s, -s]
    packed = ours(model, prompts, seeds, 20, rows)
    assert model.engine.packed or not engine_module._can_pack()
    monkeypatch.setattr(engine_module, "_can_pack", lambda: False)
    monkeypatch.setattr(model, "_engine", None)  # a new one, until the end of this test
    monkeypatch.setattr(model, "_state", None)
    sampler, conditions = Noted(seeds, 3.0, 1.0, 50), model.conditions(prompts + [None] * 3, 6)
    with torch.no_grad():
        clips = Decoding(model.engine, conditions, sampler, plan(rows, 30, model), 20)
        while not clips.done:
            clips.step()
    assert not model.engine.packed
    assert torch.equal(ours(model, prompts, seeds, 20, rows), clips.codes())
    same(packed, clips.codes(), sampler.gaps)


def test_without_onednn_weights_are_not_packed(monkeypatch):
    """It is asked once in a process; asked anew here, of builds that lack it, refuse it or get it wrong."""
    anew = engine_module._can_pack.__wrapped__

    def refuse(*args):
        raise RuntimeError("no kernel")

    ops = type("ops", (), {"mkldnn": type("mkldnn", (), {})})
    monkeypatch.setattr(torch, "ops", ops)
    assert anew() is False
    ops.mkldnn._reorder_linear_weight, ops.mkldnn._linear_pointwise = lambda weight: weight, refuse
    assert anew() is False
    ops.mkldnn._linear_pointwise = lambda x, weight, *rest: x @ weight.T + 1
    assert anew() is False
    ops.mkldnn._linear_pointwise = lambda x, weight, *rest: x @ weight.T
    assert anew() is True


# What it knows, and what it doesn't


def variant(folder, path, codec=True, fuser=None, **changes):
    """A checkpoint like `folder`, but for its language model's configuration and random weights."""
    from omegaconf import OmegaConf

    from mechsteer.model._audiocraft import builders

    path.mkdir()
    config = yaml.safe_load(torch.load(folder / "state_dict.bin", weights_only=True)["xp.cfg"])
    config["transformer_lm"] |= changes
    config["fuser"] |= fuser or {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lm = builders.get_lm_model(OmegaConf.create(config | {"device": "cpu", "dtype": "float32"}))
        with torch.no_grad():
            for weight in lm.parameters():  # biases, norms and scales too
                weight += 0.05 * torch.randn_like(weight)
    package = {"best_state": lm.state_dict(), "xp.cfg": yaml.safe_dump(config)}
    torch.save(package, path / "state_dict.bin")
    shutil.copy(folder / "compression_state_dict.bin", path)
    return path


KNOWN = {
    "rotary": {"positional_embedding": "rope"},
    "rotary, scaled": {"positional_embedding": "sin_rope", "positional_scale": 0.5},
    "biases": {"bias_ff": True, "bias_attn": True, "bias_proj": True},
    "relu, narrow": {"activation": "relu", "hidden_scale": 1},
    "without efficient attention": {"custom": True, "memory_efficient": False},
    "text with positions": {"fuser": {"cross_attention_pos_emb": True, "cross_attention_pos_emb_scale": 0.5}},
}
UNKNOWN = {
    "layer scale": {"layer_scale": 0.1},
    "a past context": {"past_context": 6, "custom": True, "memory_efficient": False},
    "norms of queries and keys": {"qk_layer_norm": True},
    "shared keys (kv_repeat)": {"kv_repeat": 2},
    "norms after the blocks": {"norm_first": False},
    "attention in float32": {"attention_as_float32": True},
    "xPos": {"positional_embedding": "rope", "xpos": True},
}


def both_ways(model):
    """Steered tokens by `generate`, and by hand; not all sites, and few clips."""
    prompts, seeds, rows = TEXTS[:3], [1, 2, 3], ROWS[:3]
    theirs = by_hand(model, prompts, seeds, 10, "attn", steered_by_hand(model, "attn", "blend", rows))
    return ours(model, prompts, seeds, 10, [steering(model, "attn", "blend", **o) for o in rows]), *theirs


@pytest.mark.parametrize("name", KNOWN)
def test_other_shapes_of_audiocrafts_transformer_run_in_the_engine(meta_folder, tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = ms.load(variant(meta_folder, tmp_path / "other", **KNOWN[name]), "cpu", "float32")
    assert model.engine is not None
    same(*both_ways(model))


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_engine_does_not_know_is_named_and_runs_in_audiocrafts_loop(meta_folder, tmp_path, name):
    folder = variant(meta_folder, tmp_path / "other", **UNKNOWN[name])
    with pytest.warns(UserWarning, match="generates in audiocraft's own loop, which is slower") as told:
        model = ms.load(folder, "cpu", "float32")
    assert len(told) == 1 and f"other has {name}: it" in str(told[0].message)
    assert model.engine is None
    same(*both_ways(model))
    with pytest.raises(ValueError, match="only the engine streams") as error:
        model.stream("jazz")
    assert "\n" not in str(error.value)


# Hooks and weights


HOOKED = {
    "transformer.layers.1": torch.zeros_like,
    "transformer.layers.0.self_attn.out_proj": torch.zeros_like,
    "linears.0": lambda out: out.flip(-1),
}


@pytest.mark.parametrize("path", HOOKED)
def test_a_pytorch_hook_on_a_module_acts_in_generate(model, path):
    prompts, seeds = ["jazz piano", "rock guitar solo", "slow"], [1, 2, 3]
    plain, module = ours(model, prompts, seeds, 5), model.lm.get_submodule(path)
    hook = module.register_forward_hook(lambda module, args, out: HOOKED[path](out))
    try:
        assert model.engine is None
        changed, (theirs, gaps) = ours(model, prompts, seeds, 5), by_hand(model, prompts, seeds, 5)
        with pytest.raises(ValueError, match="only the engine streams"):
            model.stream("jazz")
    finally:
        hook.remove()
    same(changed, theirs, gaps)
    assert not torch.equal(changed, plain)
    assert model.engine is not None and torch.equal(ours(model, prompts, seeds, 5), plain)


def test_a_hook_that_only_reads_sees_every_step(model):
    seen = []
    hook = model.lm.transformer.layers[0].linear1.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape)
    )
    try:
        read = ours(model, TEXTS[:2], [1, 2], 10)
    finally:
        hook.remove()
    assert len(seen) == 10 + model.n_codebooks - 1 and {shape[0] for shape in seen} == {4}
    same(read, *by_hand(model, TEXTS[:2], [1, 2], 10))


def test_a_trace_before_generating_changes_nothing(meta_folder):
    tokens = []
    for traced in (False, True):
        model = ms.load(meta_folder, "cpu", "float32")
        if traced:
            with model.trace(noise_codes(model, 1, 5)):
                model.resid[0] = model.resid[0] + 1.0
        assert model.engine is not None
        tokens.append(ours(model, TEXTS[:2], [1, 2], 10))
    assert torch.equal(*tokens)


def test_weights_that_are_written_in_place_are_noticed(model):
    plain = ours(model, TEXTS[:2], [1, 2], 4)
    for part in ("linears.0", "emb.1", "transformer.layers.1.linear2", "out_norm"):
        weight = model.lm.get_submodule(part).weight
        kept = weight.clone()
        try:
            with torch.no_grad():
                weight.mul_(-0.5)
            changed = ours(model, TEXTS[:2], [1, 2], 4)
            same(changed, *by_hand(model, TEXTS[:2], [1, 2], 4))
        finally:
            with torch.no_grad():
                weight.copy_(kept)
        assert not torch.equal(changed, plain), part
    assert torch.equal(ours(model, TEXTS[:2], [1, 2], 4), plain)


def test_weights_that_are_loaded_or_replaced_are_noticed(meta_folder):
    model = ms.load(meta_folder, "cpu", "float32")
    state = {name: t.clone() for name, t in model.lm.state_dict().items()}
    plain = ours(model, TEXTS[:2], [1, 2], 6)
    model.lm.load_state_dict({name: -t if "linears" in name else t for name, t in state.items()})
    loaded = ours(model, TEXTS[:2], [1, 2], 6)
    same(loaded, *by_hand(model, TEXTS[:2], [1, 2], 6))
    model.lm.load_state_dict(state)
    assert torch.equal(ours(model, TEXTS[:2], [1, 2], 6), plain)
    for linear in model.lm.linears:
        linear.weight = torch.nn.Parameter(-linear.weight.detach(), requires_grad=False)
    assert torch.equal(ours(model, TEXTS[:2], [1, 2], 6), loaded) and not torch.equal(loaded, plain)


def test_the_shipped_studys_unsteered_clips_are_made_again(tiny):
    """As rounded there; one tie may fall."""
    study = pd.read_parquet(paths.data() / "study" / "clips.parquet")
    study = study.query("setting == 'guitar' and part == 'refits' and name == 'unsteered'").head(6)
    made = tiny.generate(None, 5.0, study["seed"].tolist(), progress=False)
    heard = ms.hear(made.audio, made.sample_rate, "cnn")["lead"].to_numpy()
    same = (heard == study["cnn_lead"].to_numpy()) & (
        abs(tiny.nll(made.codes) - study["nll_unprompted"]) < 0.006
    )
    assert len(study) == 6 and (~same).sum() <= 1


def test_weights_written_past_torchs_counter_and_other_modules_are_noticed(meta_folder):
    """`.data` isn't counted by `_version`; a LoRA-like module computes more than its `.weight`."""

    class Louder(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear, self.weight, self.bias = linear, linear.weight, linear.bias
            self.in_features = linear.in_features

        def forward(self, x):
            return 3 * self.linear(x)

    model = ms.load(meta_folder, "cpu", "float32")
    make = lambda: ours(model, ["jazz"], [1], 10, None)
    plain, layer = make(), model.lm.transformer.layers[0]
    for change, back in (
        (model.lm.linears[0].weight.data.neg_, model.lm.linears[0].weight.data.neg_),
        (
            lambda linear=layer.linear1: setattr(layer, "linear1", Louder(linear)),
            lambda linear=layer.linear1: setattr(layer, "linear1", linear),
        ),
    ):
        change()
        changed = make()
        assert not torch.equal(changed, plain)
        same(changed, *by_hand(model, ["jazz"], [1], 10, "resid", lambda h, step, layer: h))
        back()
        assert torch.equal(make(), plain) and model.engine is not None
