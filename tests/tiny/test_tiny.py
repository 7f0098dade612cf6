"""The embedded model: codec, conditioner, training that survives a kill, and what ships."""

import json
import warnings

import numpy as np
import pytest
import torch

import mechsteer as ms
from mechsteer import errors, paths
from mechsteer.model import _audiocraft
from mechsteer.model.model import load
from mechsteer.tiny import loading, orchestra
from mechsteer.tiny.codec import Codec, CodecConfig, Synth, oscillator_frequencies
from mechsteer.tiny.lm import SLOTS, LMConfig, SlotConditioner, build_lm
from workshop.tiny import train
from workshop.tiny.captions import caption
from workshop.tiny.loop import Muon, loop, orthogonalise

SMALL = CodecConfig(
    latent=16, encoder_dim=24, decoder_dim=24, encoder_depth=1, decoder_depth=1, n_q=3, bins=16
)


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    codec = Codec(SMALL).train()
    codec.quantizer(codec.latents(codec.features(torch.randn(4, 1, 16_000))), 25)  # starts the codebooks
    return codec.eval()


@torch.no_grad()
def test_codec_lengths_and_rows(codec):
    audio = torch.randn(3, 1, 10 * 640 + 1)
    codes, scale = codec.encode(audio)
    assert codes.shape == (3, SMALL.n_q, 11) and scale is None
    assert codec.decode(codes).shape == (3, 1, 11 * 640)
    assert torch.equal(codec.encode(audio[1:2])[0], codes[1:2])
    assert torch.allclose(codec.decode(codes[1:2]), codec.decode(codes)[1:2], atol=1e-5)


def test_codec_frames_see_their_own_time(codec):
    """A click in frame 20 changes the features of its neighbours only, within the longest window."""
    quiet = torch.zeros(1, 1, 40 * 640)
    click = quiet.clone()
    click[..., 20 * 640 + 320] = 1.0
    with torch.no_grad():
        change = (codec.features(click) - codec.features(quiet)).abs().amax(-1)[0]
    assert change.argmax() == 20
    assert torch.nonzero(change > 1e-6).flatten().sub(20).abs().max() <= 4


def test_synth_holds_a_steady_pitch():
    """Constant amplitude and phase of one oscillator is one pure tone, without gaps between frames."""
    synth = Synth(CodecConfig())
    freqs = oscillator_frequencies(16_000)
    a4 = int((freqs - 440).abs().argmin())
    amplitude = torch.zeros(1, 200, synth.n_osc)
    amplitude[..., a4] = 0.5
    still = torch.zeros_like(amplitude)
    audio = synth(amplitude, still, torch.zeros(1, 200, synth.n_noise))[0, 0, 320:-320].double()
    n = (
        torch.arange(len(audio)) + 320 - 80
    )  # control frame i is centred on sample 160 i + 80, where its phase is counted
    tone = 0.5 * torch.cos(2 * torch.pi * 440 * (n + 80) / 16_000)
    assert (audio - tone).abs().max() < 1e-3


def test_conditioner_reads_free_text():
    conditioner = SlotConditioner(output_dim=8)
    weights = conditioner.tokenize(["Piano and guitar, 97.5 bpm, no drums!", None, ""])
    assert torch.equal(weights[1], weights[2])
    assert torch.allclose(weights @ conditioner.owner, torch.ones(3, len(SLOTS)))
    said = {conditioner.items[i]: round(w, 3) for i, w in enumerate(weights[0].tolist()) if w}
    assert said[("lead", "piano")] == said[("lead", "guitar")] == 0.5
    assert said[("tempo", 90.0)] == said[("tempo", 105.0)] == 0.5
    assert said[("drums", False)] == 1 and said[("style", None)] == 1
    vectors, mask = conditioner(weights)
    assert vectors.shape == (3, len(SLOTS), 8) and bool((mask == 1).all())


def test_conditioner_reports_unknown_words_once():
    conditioner = SlotConditioner(output_dim=8)
    with pytest.warns(UserWarning, match="theremin"):
        first = conditioner.tokenize(["a theremin and a flute"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(conditioner.tokenize(["theremin, flute"]), first)


def test_every_caption_word_is_in_the_conditioner():
    """Whatever the composer can label has an item, so that no caption fails to condition."""
    from workshop.tiny.compose import LEADS, STYLES, Score

    conditioner, rng = SlotConditioner(output_dim=8), np.random.default_rng(0)
    for i in range(200):
        labels = Score.draw(5, i).labels() | {"lead": rng.choice(list(LEADS)), "style": rng.choice(STYLES)}
        conditioner.tokenize([caption(labels, rng, full=True)])


def test_training_resumes_where_it_was_killed(tmp_path):
    """Killed at step 7 of 12 (checkpoint at every step), the run ends with an uninterrupted one's weights."""

    class Killed(BaseException):
        pass

    def run(work, kill_at=None):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 4)

        def loss_of(step):
            if step == kill_at:
                raise Killed
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            loss = (layer(x) - x.roll(1, 1)).square().mean()
            return loss, {"loss": loss}

        optimizers = [Muon([layer.weight], lr=0.1), torch.optim.AdamW([layer.bias], lr=0.1)]
        work.mkdir(exist_ok=True)
        loop("toy", 12, layer, optimizers, loss_of, work, every=-1.0)
        return layer

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "parts", kill_at=7)
    parts = run(tmp_path / "parts")
    assert torch.equal(whole.weight, parts.weight) and torch.equal(whole.bias, parts.bias)


def test_orthogonalised_updates_have_equal_singular_values():
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 6)[:, None]
    for matrix in (x, x.T):
        values = torch.linalg.svdvals(orthogonalise(matrix, steps=10))
        assert values.min() > 0.5 and values.max() < 1.3


def test_delay_pattern_is_audiocrafts():
    lm = build_lm(LMConfig(dim=16, num_heads=2, num_layers=1, n_q=3, card=8))
    codes = torch.randint(0, 8, (2, 3, 10), generator=torch.Generator().manual_seed(0))
    pattern = lm.pattern_provider.get_pattern(10)
    theirs, _, _ = pattern.build_pattern_sequence(codes, lm.special_token_id)
    assert torch.equal(train.delayed(codes, lm.special_token_id), theirs)


@torch.no_grad()
def test_training_loss_is_audiocrafts():
    model = load("tiny")
    codes = torch.randint(
        0, model.lm.card, (2, model.n_codebooks, 12), generator=torch.Generator().manual_seed(0)
    )
    conditions = model.conditions(["a jazz tune", None], 2)
    ours = train.next_code_loss(model.lm, codes, conditions)
    out = model.lm.compute_predictions(codes, [], conditions, keep_only_valid_steps=False)
    theirs = torch.nn.functional.cross_entropy(out.logits.permute(0, 3, 1, 2), codes, reduction="none").mean(
        (0, 2)
    )
    assert bool(out.mask.all()) and torch.allclose(ours, theirs, rtol=1e-4)


@torch.no_grad()
def test_slips_are_the_models_own_and_targets_stay_true():
    """Rows without slips keep their loss; in the others only the input holds what the model draws."""
    torch.manual_seed(0)
    lm = build_lm(LMConfig(dim=16, num_heads=2, num_layers=1, n_q=3, card=8)).eval()
    codes = torch.randint(0, 8, (3, 3, 10))
    conditioner = lm.condition_provider.conditioners["description"]
    conditions = {"description": conditioner(conditioner.tokenize(["jazz", "", "fast rock"]))}
    plain = train.next_code_loss(lm, codes, conditions)
    assert torch.equal(train.next_code_loss(lm, codes, conditions, torch.zeros(3)), plain)
    heard = []
    hook = lm.register_forward_pre_hook(lambda module, args: heard.append(args[0].clone()))
    slipped = train.next_code_loss(lm, codes, conditions, torch.tensor([0.0, 1.0, 0.5]))
    hook.remove()
    true, given = train.delayed(codes, lm.special_token_id)[..., :-1], heard[-1]
    assert heard[0].shape[0] == 2, "only the rows that slip are drawn"
    assert torch.equal(given[0], true[0]) and (given[1:] != true[1:]).any()
    assert torch.equal(given == lm.special_token_id, true == lm.special_token_id)
    assert not torch.allclose(slipped, plain)


@torch.no_grad()
@pytest.mark.parametrize("efficient", (False, True))
def test_rotary_positions_go_on_where_the_cache_ends(efficient):
    torch.manual_seed(0)
    conditioner = SlotConditioner(32)
    lm = _audiocraft.LMModel(
        _audiocraft.DelayedPatternProvider(2),
        _audiocraft.conditioners.ConditioningProvider({"description": conditioner}),
        _audiocraft.conditioners.ConditionFuser({"cross": ["description"], "prepend": [], "sum": []}),
        n_q=2,
        card=16,
        **dict(dim=32, num_heads=2, num_layers=2, hidden_scale=2, causal=True, custom=True),
        **dict(cross_attention=True, positional_embedding="rope", memory_efficient=efficient),
    )
    lm, codes = _audiocraft.adopt(lm), torch.randint(0, 16, (2, 2, 12))
    said = {"description": conditioner(conditioner.tokenize(["jazz", "rock"]))}
    whole = lm(codes, [], said)
    with lm.streaming():
        parts = [lm(codes[..., a:b], [], said) for a, b in ((0, 5), *((i, i + 1) for i in range(5, 12)))]
    assert torch.allclose(torch.cat(parts, 2), whole, atol=1e-5)


def test_a_key_is_said_where_tonic_and_mode_are():
    conditioner = SlotConditioner(output_dim=8)

    def said(text):
        row = conditioner.tokenize([text])[0].tolist()
        return {
            slot: value
            for (slot, value), w in zip(conditioner.items, row, strict=True)
            if w and value is not None
        }

    assert said("in C minor") == {"tonic": 0, "mode": "minor", "key": (0, "minor")}
    assert said("in a minor key") == {"mode": "minor"}


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="make tiny"):
        loading.load_embedded(source=tmp_path)


SHIPPED = {
    "tiny/lm.safetensors": lambda: ms.load("tiny"),
    "tiny/codec.safetensors": lambda: ms.load("tiny"),
    "tiny/judge.safetensors": lambda: ms.hear(np.ones(50_000) * 0.1, 16_000, "cnn"),
    "tiny/ears.safetensors": lambda: ms.hear(np.ones(50_000) * 0.1, 16_000, "features"),
    "orchestra.parquet": lambda: ms.clips("orchestra"),
    "orchestra_codes.npz": lambda: ms.clips("orchestra"),
    "orchestra_notes.parquet": orchestra.notes,
    "orchestra_chords.parquet": orchestra.chords,
}


@pytest.mark.parametrize("fault", ["cut", "empty", "garbage"])
@pytest.mark.parametrize("name", SHIPPED)
def test_a_truncated_shipped_file_is_one_sentence_that_says_how_to_get_it(name, fault, tmp_path, monkeypatch):
    for file in SHIPPED:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).symlink_to(paths.data() / file)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "garbage": b"x" * 99}[fault]
    )
    monkeypatch.setattr(paths, "data", lambda: tmp_path)
    with pytest.raises(errors.Unusable, match="is damaged.*fetch it again.*git checkout -- data") as error:
        SHIPPED[name]()
    assert name.split("/")[-1] in str(error.value) and "\n" not in str(error.value)


def test_what_ships_is_small_and_is_what_the_card_measured():
    files = list(loading.folder().glob("*.safetensors"))
    assert {f.stem for f in files} >= {"codec", "lm"}
    assert sum(f.stat().st_size for f in loading.folder().iterdir()) < 25e6
    card = json.loads((loading.folder() / "card.json").read_text())
    assert card["model_hash"] == load("tiny").hash
    for row in card["measures"]:
        assert row["n"] >= 1 and np.isfinite(row["value"]), row
        assert ("layer" in row) == ("site" in row) and row.get("layer", 0) != -1, row
        assert row.get("site") != "input" or row["layer"] is None, row


def test_shipped_orchestra_sounds_like_its_labels():
    """The codec gives back the pitches of the shipped notes: the sounding pitch classes are the strongest."""
    import pandas as pd

    from mechsteer.measures.kept import chroma

    clips = pd.read_parquet(paths.data() / "orchestra.parquet")
    codes = np.load(paths.data() / "orchestra_codes.npz")["codes"]
    notes = pd.read_parquet(paths.data() / "orchestra_notes.parquet")
    assert len(clips) == len(codes) >= 2000
    model, hits = load("tiny"), []
    for row in range(0, len(clips), len(clips) // 6):
        audio = model.decode(codes[row : row + 1].astype(np.int64))[0, 0]
        heard = chroma(audio).mean(1)
        own = notes[(notes["clip"] == clips["clip"][row]) & (notes["part"] != "drums")]
        weight = np.bincount(own["pitch"] % 12, weights=own["offset"] - own["onset"], minlength=12)
        hits.append(np.corrcoef(heard, weight)[0, 1])
    assert np.mean(hits) > 0.6
