"""The model interface, on a checkpoint of Meta's format and on the embedded model."""

import contextlib
import shutil
import warnings

import numpy as np
import pytest
import soundfile
import torch
from by_hand import GUIDANCE, TOP_K, attributes, pick
from meta_checkpoint import write

import mechsteer as ms
from mechsteer import errors
from mechsteer.activations.read import mean_norms
from mechsteer.model import _checkpoints
from mechsteer.model.steering import Steering

PROMPTS = [
    "jazz piano",
    None,
    "rock guitar with fast drums and a violin solo",
    "slow",
    "calm violin",
    None,
    "fast",
    "a",
]


def noise_clips(model, clips=2, frames=20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, model.lm.card, (clips, model.n_codebooks, frames), generator=generator)


def somewhere(model) -> np.ndarray:
    return np.random.default_rng(0).normal(size=model.d_model)


def seconds(model, frames):
    return frames / model.frame_rate


# Loading


def test_it_says_what_it_is(model):
    assert model.d_model == model.n_heads * model.d_head
    assert model.n_codebooks == model.codec.num_codebooks and model.lm.card == model.codec.cardinality
    assert model.dtype == torch.float32 and model.device.type == "cpu"
    for fact in (model.name, model.hash, f"{model.n_layers} layers", f"{model.sample_rate} Hz"):
        assert fact in repr(model)


def test_hash_names_the_weights_in_any_dtype(meta_folder, tmp_path):
    hashes = [ms.load(meta_folder, "cpu", dtype).hash for dtype in ("float32", "bfloat16")]
    from conftest import CACHE

    other = ms.load(write(tmp_path / "other", CACHE, seed=1), "cpu").hash
    assert hashes[0] == hashes[1] != other


def test_half_precision_keeps_its_place_in_time(meta_folder):
    """Sequence steps beyond 256 can't be told apart in bfloat16 unless positions stay float32."""
    full, half = (ms.load(meta_folder, "cpu", dtype) for dtype in ("float32", "bfloat16"))
    codes = noise_clips(full, 1, 400)
    last = []
    for model in (full, half):
        with model.trace(codes):
            h = model.resid[0].save()
        last.append(h[0, 300:].float())
    similar = torch.cosine_similarity(*last, dim=-1)
    assert similar.min() > 0.999


def test_stereo_codes_and_sound(tmp_path):
    from conftest import CACHE

    model = ms.load(write(tmp_path / "stereo", CACHE, stereo=True), "cpu")
    made = model.generate("jazz", seconds(model, 6), progress=False)
    assert made.codes.shape == (1, 8, 6) and made.audio.shape[1] == 2
    assert model.encode(made.audio, model.sample_rate).shape == (1, 8, 6)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path):
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(FileNotFoundError, match=r"state_dict\.bin.*notes\.txt"):
        ms.load(tmp_path)


def test_a_hub_model_that_is_nowhere_says_where_it_looked():
    with pytest.raises(
        FileNotFoundError, match=r"facebook/musicgen-small.*hub cache.*offline.*ms\.load\('tiny'\)"
    ):
        ms.load("facebook/musicgen-small")


def test_a_missing_text_encoder_is_named(meta_folder, tmp_path):
    package = torch.load(meta_folder / "state_dict.bin", weights_only=True)
    package["xp.cfg"] = package["xp.cfg"].replace("t5-base", "t5-large")
    torch.save(package, tmp_path / "state_dict.bin")
    (tmp_path / "compression_state_dict.bin").write_bytes(
        (meta_folder / "compression_state_dict.bin").read_bytes()
    )
    with pytest.raises(FileNotFoundError, match="t5-large"):
        ms.load(tmp_path)


def test_a_melody_model_is_refused_in_one_sentence(meta_folder, tmp_path):
    package = torch.load(meta_folder / "state_dict.bin", weights_only=True)
    package["xp.cfg"] = package["xp.cfg"].replace(
        "conditioners:", "conditioners:\n  self_wav:\n    model: chroma_stem"
    )
    torch.save(package, tmp_path / "state_dict.bin")
    (tmp_path / "compression_state_dict.bin").write_bytes(
        (meta_folder / "compression_state_dict.bin").read_bytes()
    )
    with pytest.raises(ValueError, match="chroma_stem.*demucs.*musicgen-small"):
        ms.load(tmp_path)


def test_a_damaged_checkpoint_is_one_clear_error_whatever_is_damaged(tmp_path):
    path = tmp_path / "state_dict.bin"
    torch.save({"best_state": {}, "xp.cfg": "a: 1"}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x85]) + whole[place + 1 :])
        with contextlib.suppress(ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of another protocol
            _checkpoints.read_file(path)
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="was not loaded: it is damaged") as error:
        _checkpoints.read_file(path)
    assert "weights_only" not in str(error.value)


def test_a_codec_is_fetched_only_where_meta_publishes_it(meta_folder, tmp_path):
    (tmp_path / "state_dict.bin").write_bytes((meta_folder / "state_dict.bin").read_bytes())
    for name in (str(meta_folder), "somebody/codec"):
        torch.save({"pretrained": name}, tmp_path / "compression_state_dict.bin")
        with pytest.raises(ValueError, match=r"asks for the codec.*facebook/encodec_32khz"):
            ms.load(tmp_path)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_checkpoint_cannot_run_code(meta_folder, tmp_path):
    marker = tmp_path / "was-run"
    package = torch.load(meta_folder / "state_dict.bin", weights_only=True) | {"extra": Payload(marker)}
    folder = tmp_path / "malicious"
    folder.mkdir()
    torch.save(package, folder / "state_dict.bin")
    (folder / "compression_state_dict.bin").write_bytes(
        (meta_folder / "compression_state_dict.bin").read_bytes()
    )
    with pytest.raises(ValueError, match="more than tensors"):
        ms.load(folder)
    assert not marker.exists()
    torch.load(folder / "state_dict.bin", weights_only=False)  # the payload is a live one
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_file_is_named(meta_folder, tmp_path, content):
    whole = (meta_folder / "state_dict.bin").read_bytes()
    (tmp_path / "state_dict.bin").write_bytes(whole[: len(whole) // 2] if content is None else content)
    (tmp_path / "compression_state_dict.bin").write_bytes(
        (meta_folder / "compression_state_dict.bin").read_bytes()
    )
    with pytest.raises(ValueError, match=r"state_dict\.bin"):
        ms.load(tmp_path)


@pytest.mark.parametrize("file", ["state_dict.bin", "compression_state_dict.bin"])
@pytest.mark.parametrize(
    "damage",
    [
        {"xp.cfg": "a: [1"},
        {"xp.cfg": "a: 1"},
        {"xp.cfg": ""},
        {"xp.cfg": 3},
        {"best_state": {}},
        {"best_state": {"x": torch.zeros(2)}},
        {"best_state": 7},
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit_is_one_sentence(meta_folder, tmp_path, file, damage):
    shutil.copytree(meta_folder, tmp_path / "folder")
    path = tmp_path / "folder" / file
    torch.save(torch.load(path, weights_only=True) | damage, path)
    with pytest.raises(ValueError) as error:
        ms.load(tmp_path / "folder")
    said = str(error.value)
    assert file in said and str(tmp_path / "folder") in said and "\n" not in said and len(said) < 500
    assert error.value._render_traceback_() and isinstance(error.value, errors.Told)


def test_changed_modules_are_named_at_load(meta_folder):
    from mechsteer.model.model import Model

    musicgen = ms.load(meta_folder, "cpu").musicgen
    layer = musicgen.lm.transformer.layers[1]
    layer._modules["feed_forward"] = layer._modules.pop("linear2")
    with pytest.raises(ValueError, match=r"linear2.*'mlp'.*layer 1"):
        Model(musicgen, "changed")


# Codes and sound


@pytest.mark.parametrize("dtype", ["int16", "float64", "uint8"])
def test_encode_takes_any_rate_channels_and_dtype(model, dtype):
    time = np.arange(44100) / 44100
    wave = 0.5 * np.sin(2 * np.pi * 440 * time)
    scaled = {
        "int16": (wave * 32768).astype("int16"),
        "float64": wave,
        "uint8": (wave * 128 + 128).astype("uint8"),
    }[dtype]
    codes = model.encode(np.stack([scaled, scaled]), 44100)
    assert codes.dtype == torch.int64
    assert codes.shape == (1, model.n_codebooks, round(model.frame_rate))
    same = model.encode(torch.from_numpy(scaled), 44100)
    assert (codes == same).float().mean() > 0.95  # the mean of two equal channels, but for rounding


def test_decode_gives_sound_of_the_right_length(model):
    audio = model.decode(noise_clips(model, 3, 20))
    assert audio.dtype == np.float32 and audio.shape[:2] == (3, model.codec.channels)
    assert (
        abs(audio.shape[2] - 20 * model.sample_rate / model.frame_rate) < model.sample_rate / model.frame_rate
    )
    assert np.isfinite(audio).all()


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros(0), "shape"),
        (np.full(9000, np.nan), "NaN"),
        (np.zeros((9000, 2)), None),
        (np.zeros((9000, 2)).T + 0j, "dtype"),
        (np.zeros(3), "shorter than one frame"),
    ],
)
def test_encode_refuses_what_is_not_sound(model, audio, message):
    with pytest.raises(ValueError, match=message or r"\(sample, channel\)"):
        model.encode(audio, model.sample_rate)


def test_codes_of_another_codec_are_refused(model):
    with pytest.raises(ValueError, match="codebooks"):
        model.decode(torch.zeros(1, model.n_codebooks + 1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="lie in"):
        model.decode(torch.full((1, model.n_codebooks, 5), model.lm.card))


# Looking inside


def read_by_hand(model, codes, prompts):
    """Every site and layer through plain hooks, on a delay-pattern sequence built here."""
    clips, books, frames = codes.shape
    sequence = torch.full((clips, books, frames + 1), model.lm.card)
    for k in range(books):
        sequence[:, k, k + 1 :] = codes[:, k, : frames - k]
    found, handles = {}, []

    def keep(key, value):
        found[key] = value.detach().clone()

    for i, layer in enumerate(model.lm.transformer.layers):
        on = lambda m, key, which: m.register_forward_hook(lambda m, a, out: keep(key, which(out)))
        handles += [
            on(layer, ("resid", i), lambda out: out),
            on(layer.self_attn, ("attn", i), lambda out: out[0]),
            on(layer.cross_attention, ("cross", i), lambda out: out[0]),
            on(layer.linear2, ("mlp", i), lambda out: out),
            layer.self_attn.out_proj.register_forward_pre_hook(
                lambda m, a, i=i: keep(("heads", i), a[0].view(*a[0].shape[:2], model.n_heads, model.d_head))
            ),
        ]
    provider = model.lm.condition_provider
    with torch.no_grad():
        logits = model.lm(sequence, [], provider(provider.tokenize(attributes(prompts))))
    for handle in handles:
        handle.remove()
    return found, logits


@pytest.mark.parametrize("prompts", [[None, None], ["jazz piano", "rock"]])
def test_every_site_and_layer_reads_as_plain_hooks_do(model, prompts):
    codes = noise_clips(model)
    by_hand, logits = read_by_hand(model, codes, prompts)
    found = {}
    with model.trace(codes, prompts):
        for i in range(model.n_layers):
            found["heads", i] = model.heads[i].save()
            found["attn", i] = model.attn[i].save()
            found["cross", i] = model.cross[i].save()
            found["mlp", i] = model.mlp[i].save()
            found["resid", i] = model.resid[i].save()
        out = model.nn.output.save()
    assert set(found) == set(by_hand)
    for key, value in found.items():
        torch.testing.assert_close(value, by_hand[key], msg=str(key))
    torch.testing.assert_close(out, logits)
    assert found["resid", 0].shape[1] == codes.shape[-1] + 1


def test_assignment_in_a_trace_changes_what_follows(model):
    codes = noise_clips(model)
    for site, layer in (("resid", 0), ("attn", 1), ("heads", 1), ("cross", 1), ("mlp", 1)):
        with model.trace(codes):
            place = getattr(model, site)
            place[layer] = place[layer] + 1.0
            changed = model.nn.output.save()
        with model.trace(codes):
            plain = model.nn.output.save()
        assert not torch.allclose(changed, plain), site


def test_gradients_reach_a_vector_but_not_the_weights(model):
    vector = torch.zeros(model.d_model, requires_grad=True)
    with model.trace(noise_clips(model)):
        model.resid[0] = model.resid[0] + vector
        loss = model.nn.output.logsumexp(-1).mean().save()
    loss.backward()
    assert vector.grad.norm() > 0
    assert all(p.grad is None for p in model.lm.parameters())


def test_a_step_has_seen_exactly_the_frames_it_says(model):
    """Step t + 1 has seen codebook 0 of frame t; nothing before it has."""
    codes = noise_clips(model, 1, 12)
    other = codes.clone()
    other[0, 0, 5] = (codes[0, 0, 5] + 1) % model.lm.card
    states = []
    for c in (codes, other):
        with model.trace(c):
            h = model.resid[model.n_layers - 1].save()
        states.append(h[0, model.valid_steps(12)])
    differs = (states[0] != states[1]).any(-1)
    assert not differs[:5].any() and differs[5:].all()


def test_likelihood_is_the_mean_over_codes_in_place(model):
    codes = noise_clips(model, 2, 15)
    _, logits = read_by_hand(model, codes, ["jazz piano"] * 2)
    logp = logits.log_softmax(-1)
    wanted = []
    for clip in range(2):
        terms = [
            -logp[clip, k, t + k, codes[clip, k, t]]
            for k in range(model.n_codebooks)
            for t in range(15)
            if t + k < 15
        ]
        wanted.append(torch.stack(terms).mean())
    np.testing.assert_allclose(model.nll(codes, "jazz piano"), torch.stack(wanted), rtol=1e-5)
    assert not np.allclose(model.nll(codes), model.nll(codes, "jazz piano"))


# Generating


def test_one_prompt_alone_gives_audiocrafts_own_tokens(meta_folder):
    """On a language model that this package never touched, sampled by hand."""
    from mechsteer.model._audiocraft import build

    lm = build(meta_folder)[0].lm.eval()
    generators = [torch.Generator().manual_seed(5)]
    handle = lm.register_forward_hook(lambda m, a, out: pick(out, generators))
    theirs = lm.generate(
        None, attributes(["jazz piano"]), max_gen_len=30, use_sampling=False, cfg_coef=GUIDANCE
    )
    handle.remove()
    model = ms.load(meta_folder, "cpu", "float32")
    ours = model.generate("jazz piano", seconds(model, 30), 5, guidance=GUIDANCE, top_k=TOP_K, progress=False)
    assert torch.equal(ours.codes, theirs)


def test_rows_do_not_depend_on_their_batch(model):
    d = Steering(somewhere(model), layers=range(model.n_layers), norm=2.0, strength=0.5)
    steering = [None, d, -d, None, 2 * d, None, d, -d]
    together = model.generate(PROMPTS, seconds(model, 12), 11, steering, progress=False)
    assert together.seeds == list(range(11, 19))
    for i, prompt in enumerate(PROMPTS):
        alone = model.generate(prompt, seconds(model, 12), 11 + i, steering[i], progress=False)
        assert torch.equal(alone.codes[0], together.codes[i]), (i, prompt)
    split = model.generate(PROMPTS, seconds(model, 12), 11, steering, batch_size=3, progress=False)
    assert torch.equal(split.codes, together.codes)


def test_seeds_decide(model):
    make = lambda **options: model.generate("jazz", seconds(model, 6), progress=False, **options).codes
    assert torch.equal(make(seed=1), make(seed=1)) and not torch.equal(make(seed=1), make(seed=2))
    sweep = make(seed=4, steering=[None, None])
    assert torch.equal(sweep[0], sweep[1])
    assert torch.equal(make(temperature=0, seed=1), make(temperature=0, seed=2))


def test_global_random_state_is_left_alone(model):
    before = torch.get_rng_state()
    model.generate("jazz", seconds(model, 5), progress=False)
    assert torch.equal(before, torch.get_rng_state())


def test_an_audio_prompt_keeps_its_codes_and_goes_on(model):
    whole = model.generate(["jazz", "rock"], seconds(model, 16), 3, progress=False)
    given = whole.codes[:, :, :8]
    more = model.generate(["jazz", "rock"], seconds(model, 16), [8, 9], audio_prompt=given, progress=False)
    assert torch.equal(more.codes[:, :, :8], given)
    assert not torch.equal(more.codes, whole.codes)
    again = model.generate(["jazz", "rock"], seconds(model, 16), 3, audio_prompt=given, progress=False)
    assert torch.equal(again.codes, whole.codes)  # a clip continued from its own codes goes on as it did


def test_a_sounding_audio_prompt_serves_all_rows(model):
    audio = np.random.default_rng(0).normal(size=(1, 44100)).astype("float32") * 0.1
    made = model.generate(["jazz", "rock"], 1.2, audio_prompt=(audio, 44100), progress=False)
    given = model.encode(audio, 44100)
    assert torch.equal(made.codes[:, :, : given.shape[-1]], given.expand(2, -1, -1))


def test_late_steering_of_a_continuation_changes_only_what_is_late(model):
    given = model.generate("jazz", seconds(model, 6), progress=False).codes
    norm = mean_norms(model, given)
    late = Steering(somewhere(model), layers=0, norm=norm, strength=2.0, start=seconds(model, 10))
    plain, steered = (
        model.generate("jazz", seconds(model, 16), 1, s, audio_prompt=given, progress=False).codes
        for s in (None, late)
    )
    assert torch.equal(plain[:, :, :6], given) and torch.equal(steered[:, :, :6], given)
    assert torch.equal(plain[:, 0, :10], steered[:, 0, :10]) and not torch.equal(
        plain[:, 0, 10:], steered[:, 0, 10:]
    )


def test_nothing_stays_on_the_model(model, monkeypatch):
    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.lm.modules()]

    before = hooks()
    s = Steering(somewhere(model), layers=0, norm=1.0)
    model.generate("jazz", seconds(model, 5), steering=s, progress=False)
    assert hooks() == before

    from mechsteer.model.sampling import Sampler

    def interrupted(self, logits, n_steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "choose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate("jazz", seconds(model, 5), steering=s, progress=False)
    assert hooks() == before
    assert not model.lm._is_streaming and not model.lm.get_streaming_state()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"duration": 1e4}, "at most"),
        ({"duration": 0.0}, "longer than"),
        ({"prompts": ["a", "b"], "seed": [1, 2, 3]}, "2 prompts for 3 rows"),
        ({"steering": [None, None], "prompts": ["a", "b", "c"]}, "2 steerings for 3 rows"),
    ],
)
def test_impossible_calls_say_why(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**({"duration": 0.2, "progress": False} | options))


def test_a_generation_is_shown_saved_and_sliced(model, tmp_path):
    s = Steering(somewhere(model), layers=0, norm=1.0)
    made = model.generate("jazz & <piano>", 0.5, steering=[None, s], progress=False)
    page = made._repr_html_()
    assert (
        page.count("<audio") == 2 and page.count("data:image/png") == 2 and "jazz &amp; &lt;piano&gt;" in page
    )
    for suffix, close in ((".wav", 1e-3), (".flac", 1e-3), (".mp3", None)):
        paths = made.save(tmp_path / f"take{suffix}")
        assert [p.name for p in paths] == [f"take-00{suffix}", f"take-01{suffix}"]
        sound, rate = soundfile.read(paths[1], dtype="float32", always_2d=True)
        assert rate == model.sample_rate
        if close:  # loudness as generated, never normalised
            np.testing.assert_allclose(sound.T, np.clip(made.audio[1], -1, 1), atol=close)
    with pytest.raises(FileExistsError):
        made.save(tmp_path / "take.wav")
    assert made[1].seeds == [0] and made[1].steering == [s] and len(made[:2]) == 2
    assert made[1].save(tmp_path / "one.wav") == [tmp_path / "one.wav"]
