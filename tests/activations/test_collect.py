"""Activations: equal to nnsight's and to plain hooks, in a store that survives kills and bad files."""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import xarray as xr

import mechsteer as ms
from mechsteer import paths
from mechsteer.activations import _job, _store
from mechsteer.activations.clips import check, read_clip
from mechsteer.activations.read import auto_batch, mean_norms, read

LENGTHS = (13, 9, 9, 2, 12, 5, 6)
quietly = partial(ms.collect, progress=False)


@pytest.fixture
def small_model(meta):
    """The checkpoint of Meta's format alone, where the embedded model would show nothing more."""
    return meta


def coded(model, lengths=LENGTHS, seed: int = 0) -> pd.DataFrame:
    """Clips of random codes, of the given numbers of frames, with labels (one has gaps) and groups."""
    rng, n = np.random.default_rng(seed), len(lengths)
    codes = [rng.integers(0, model.lm.card, (model.n_codebooks, k)).astype(np.uint16) for k in lengths]
    return pd.DataFrame(
        {
            "clip": [f"c{i}" for i in range(n)],
            "codes": codes,
            "duration": [k / model.frame_rate for k in lengths],
            "group": [f"g{i // 2}" for i in range(n)],
            "style": [(None, "jazz", "rock")[i % 3] for i in range(n)],
            "drums": [i % 2 == 0 for i in range(n)],
            "tempo": rng.integers(60, 180, n),
        }
    )


def by_hand(model, codes, places) -> dict:
    """{(site, layer): (step, feature)} of one clip: hooks on audiocraft's own modules, no padding."""
    seen = {}
    with contextlib.ExitStack() as hooks:
        for site, layer in places:
            block = model.lm.transformer.layers[layer]
            where = {
                "resid": block,
                "attn": block.self_attn,
                "cross": block.cross_attention,
                "mlp": block.linear2,
            }
            if site == "heads":
                keep = lambda m, args, place=(site, layer): seen.update({place: args[0][0]})
                hooks.callback(block.self_attn.out_proj.register_forward_pre_hook(keep).remove)
            else:
                first = lambda out: out[0] if isinstance(out, tuple) else out
                keep = lambda m, args, out, place=(site, layer), first=first: seen.update(
                    {place: first(out)[0]}
                )
                hooks.callback(where[site].register_forward_hook(keep).remove)
        sequence = torch.full((1, model.n_codebooks, codes.shape[1] + 1), model.lm.special_token_id)
        for k, delay in enumerate(model.lm.pattern_provider.delays):
            kept = torch.as_tensor(codes[k].astype(np.int64))[: max(codes.shape[1] - delay, 0)]
            sequence[0, k, 1 + delay :] = kept
        with torch.no_grad():
            model.lm(sequence, [], model.conditions(None, 1))
    return seen


@pytest.mark.parametrize("pool", ["mean", "frames"])
def test_every_site_and_layer_is_what_a_plain_hook_reads(model, pool):
    table, layers = coded(model), [0, model.n_layers - 1]
    sites = ("resid", "attn", "heads", "cross", "mlp")
    acts = quietly(model, table, sites=sites, layers=layers, pool=pool, batch_size=4)
    assert list(acts["clip"].values) == list(table["clip"]) and list(acts["layer"].values) == layers
    assert acts["n_frames"].values.tolist() == list(LENGTHS)
    norms = {(site, layer): [] for site in sites for layer in layers}
    for clip, codes in zip(table["clip"], table["codes"], strict=True):
        for (site, layer), steps in by_hand(model, codes, norms).items():
            steps = steps[1:]  # step 0 holds the special token
            split = steps.unflatten(-1, (model.n_heads, -1)) if site == "heads" else steps
            norms[site, layer].append(split.norm(dim=-1))
            found = torch.tensor(acts[site].sel(clip=clip, layer=layer).values)
            if pool == "frames":
                assert found[len(steps) :].isnan().all(), "frames beyond the clip's end are NaN"
                found = found[: len(steps)]
            wanted = split.mean(0) if pool == "mean" else split
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for (site, layer), values in norms.items():
        wanted = torch.cat(values).mean(0)
        torch.testing.assert_close(
            torch.tensor(acts[f"{site}_norm"].sel(layer=layer).values), wanted, rtol=1e-4, atol=1e-4
        )


def test_reading_equals_nnsight_and_the_input_is_the_sum_of_the_embeddings(model):
    codes = torch.as_tensor(coded(model, (12,))["codes"][0].astype(np.int64))[None]
    found = read(model, codes, ("resid", "heads"), pool="frames")
    with torch.no_grad(), model.trace(codes):
        heads = model.heads[1].save()
        resid = model.resid[1].save()
    np.testing.assert_allclose(found["resid"][0, 1], resid[0, 1:], atol=1e-4)
    np.testing.assert_allclose(found["heads"][0, 1], heads[0, 1:], atol=1e-4)
    last = [codes[0, k, -1 - delay] for k, delay in enumerate(model.lm.pattern_provider.delays)]
    wanted = sum(model.lm.emb[k].weight[code] for k, code in enumerate(last))
    np.testing.assert_allclose(found["input"][0, -1], wanted, atol=1e-5)


def test_labels_arrive_as_coords_with_their_gaps_and_probes_read_them(model):
    table = coded(model, LENGTHS * 2)
    acts = quietly(model, table)
    assert acts["style"].values.tolist() == table["style"].fillna("").tolist()
    assert acts["drums"].dtype == bool and acts["group"].values.tolist() == list(table["group"])
    assert {"model", "model_hash", "site", "pool", "prompt", "data", "seed", "frame_rate", "versions"} <= set(
        acts.attrs
    )
    assert acts.attrs["prompt"] == "unconditional" and acts.attrs["model_hash"] == model.hash
    found = ms.find_directions(acts, "style", methods=["diff_of_means"], layers=[1], folds=2)
    assert found.sel(layer=1)["norm"] == pytest.approx(float(acts["resid_norm"].sel(layer=1)), rel=1e-5)


def test_results_do_not_depend_on_batches_or_on_which_layers_are_asked_for(model):
    table = coded(model)
    one = quietly(model, table, batch_size=1)
    for options in (
        {"batch_size": 5},
        {"batch_size": "auto"},
        {"layers": [1]},
        {"layers": 1, "sites": ("attn", "resid")},
    ):
        some = quietly(model, table, **options)
        np.testing.assert_allclose(
            some["resid"].sel(layer=1), one["resid"].sel(layer=1), rtol=1e-4, atol=1e-4
        )
    assert auto_batch(model, 1) == 64 and auto_batch(model, 10**9) == 1


def test_a_prompt_changes_what_is_read_and_is_kept(model):
    table = coded(model, (8, 9, 8))
    alone = quietly(model, table)
    shared, own = (
        quietly(model, table, prompt="slow jazz"),
        quietly(model, table, prompt=["slow jazz", None, "rock"]),
    )
    assert shared.attrs["prompt"] == "slow jazz" and own["prompt"].values.tolist() == [
        "slow jazz",
        "",
        "rock",
    ]
    np.testing.assert_allclose(own["resid"][0], shared["resid"][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(own["resid"][1], alone["resid"][1], rtol=1e-4, atol=1e-4)
    assert not np.allclose(own["resid"][2], shared["resid"][2], atol=1e-4)


def test_a_column_prompt_is_a_label_like_others_and_told_to_nobody(model, tmp_path):
    table = coded(model, (8, 9, 8))
    captioned = table.assign(prompt=["slow jazz", None, "rock"])
    alone = quietly(model, table, out=tmp_path / "acts")
    kept = quietly(model, captioned, out=tmp_path / "acts")
    assert (
        kept["prompt"].values.tolist() == ["slow jazz", "", "rock"]
        and kept.attrs["prompt"] == "unconditional"
    )
    np.testing.assert_array_equal(kept["resid"], alone["resid"])
    shared = quietly(model, captioned, prompt="slow jazz")
    assert shared["prompt"].values.tolist() == ["slow jazz", "", "rock"]
    np.testing.assert_array_equal(shared["resid"], quietly(model, table, prompt="slow jazz")["resid"])
    with pytest.raises(ValueError, match="the clips have a column 'prompt'.*rename or drop the column"):
        quietly(model, captioned, prompt=["a", "b", "c"])


def test_mean_norms_are_those_of_a_trace_and_of_a_collection_in_batches_of_any_size(model, monkeypatch):
    table = coded(model, (12,) * 5)
    codes = ms.codes(model, table)
    acts = quietly(model, table, sites=("resid", "heads"))
    for site, prompts in (
        ("resid", None),
        ("heads", None),
        ("resid", "jazz"),
        ("resid", ["jazz", "rock", "slow", "fast", "piano"]),
    ):
        seen = []
        with torch.no_grad(), model.trace(codes, prompts):
            for layer in range(model.n_layers):
                h = getattr(model, site)[layer][:, model.valid_steps(12)]
                seen.append(h.norm(dim=-1).mean((0, 1)).save())
        monkeypatch.setattr("mechsteer.activations.read.auto_batch", lambda model, n_frames: 2)
        found = mean_norms(model, codes, site, prompts)
        np.testing.assert_allclose(found, torch.stack(seen), rtol=1e-4)
        if prompts is None:
            np.testing.assert_allclose(found, acts[f"{site}_norm"], rtol=1e-4)
    with pytest.raises(ValueError, match="site='head' isn't one of"):
        mean_norms(model, codes, "head")


def test_negative_layers_are_refused_by_every_reader(model):
    codes = ms.codes(model, coded(model, (4,)))
    with pytest.raises(ValueError, match="has layers 0 to"):
        quietly(model, coded(model, (4,)), layers=[-1])
    with pytest.raises(IndexError, match="no layer -1"):
        read(model, codes, layers=[-1])
    with pytest.raises(IndexError, match="no layer -1"):
        read(model, codes, layers=[0, -1])
    assert not model.lm.transformer.layers[0]._forward_hooks, "a refusal leaves no hook behind"


def test_collecting_while_generating_reads_the_conditional_half_after_steering(model):
    prompts = ["jazz piano", "rock guitar", "slow violin"]
    options = {"duration": 12 / model.frame_rate, "seed": 5, "guidance": 2.0}
    sites = ("resid", "heads", "attn")
    made = quietly(model, prompts, sites=sites, generate=options, batch_size=2)
    wanted = model.generate(prompts, progress=False, **options)
    np.testing.assert_array_equal(made["codes"], wanted.codes)
    assert made["prompt"].values.tolist() == prompts and made["seed"].values.tolist() == [5, 6, 7]
    table = coded(model, (12, 12, 12)).assign(codes=list(wanted.codes.numpy()))
    forced = quietly(model, table, sites=sites, prompt=prompts)
    for name in (*sites, "input", "resid_norm"):
        np.testing.assert_allclose(made[name], forced[name], rtol=1e-3, atol=1e-3)

    push = np.zeros(model.d_model, "float32")
    push[3] = 1
    steering = ms.Steering(push, layers=[1], norm=1.0, strength=50.0)
    steered = quietly(
        model, prompts[:1], layers=[1], generate=options | {"steering": steering}, pool="frames"
    )
    plain = quietly(model, prompts[:1], layers=[1], generate=options, pool="frames")
    at_first = (steered["resid"] - plain["resid"])[0, 0, 0]  # later frames follow other tokens
    assert at_first[3] > 25, "what the steering adds is read too"


def tones(folder, seconds, rate: int = 16_000) -> pd.DataFrame:
    """A manifest of tones of the given lengths, one octave higher each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, s in enumerate(seconds):
        wave = 0.3 * np.sin(2 * np.pi * 110 * 2**i * np.arange(round(s * rate)) / rate)
        soundfile.write(folder / f"{i}.wav", wave.astype("float32"), rate)
    return pd.DataFrame({"path": [f"{i}.wav" for i in range(len(seconds))]})


def test_audio_is_encoded_as_the_model_encodes_it(model, tmp_path):
    tones(tmp_path, [0.4, 0.4, 0.6]).to_csv(tmp_path / "m.csv", index=False)
    table = ms.clips(tmp_path / "m.csv")
    encode, called = model.encode, []
    spy = lambda audio, rate, n: called.append((audio.shape, rate)) or encode(audio, rate, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "encode", spy)
        acts = quietly(model, table, layers=[0], pool="frames", out=tmp_path / "acts")
    seconds = lambda s: round(s * model.sample_rate)
    expected = [((2, 1, seconds(0.4)), model.sample_rate), ((1, 1, seconds(0.6)), model.sample_rate)]
    assert called[:2] == expected, "as the codec takes it, clips of one shape together"
    assert not called[2:] or model.name != "tiny", "the codes of random weights are looked at once more"
    for row in table.to_dict("records"):
        audio, rate = read_clip(row)
        codes = model.encode(audio, rate)[0].numpy()
        found = acts["resid"].sel(clip=row["clip"], layer=0)[: acts["n_frames"].sel(clip=row["clip"]).item()]
        assert len(found) == codes.shape[1]
        np.testing.assert_allclose(
            found, by_hand(model, codes, [("resid", 0)])["resid", 0][1:], rtol=1e-4, atol=1e-4
        )


def test_bad_files_are_skipped_and_told_in_one_table(model, tmp_path, capsys):
    rate = 16_000
    names = tones(tmp_path, [0.5, 0.5]).assign(style=["a", None])
    soundfile.write(tmp_path / "silent.wav", np.zeros(rate // 2), rate)
    soundfile.write(tmp_path / "nan.wav", np.full(rate // 2, np.nan), rate, subtype="FLOAT")
    soundfile.write(tmp_path / "one.wav", np.ones(1), rate)
    soundfile.write(
        tmp_path / "surround.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 2, 6)), rate
    )
    (tmp_path / "text.wav").write_text("this is no music")
    with soundfile.SoundFile(tmp_path / "three hours.wav", "w", 1000, 1, subtype="PCM_U8") as file:
        for _ in range(180):
            file.write(np.full(60_000, 0.25))
    rest = ["gone", "text", "silent", "nan", "one", "three hours", "surround"]
    names = pd.concat([names, pd.DataFrame({"path": [f"{name}.wav" for name in rest], "style": "b"})])
    names.to_csv(tmp_path / "m.csv", index=False)
    table = ms.clips(tmp_path / "m.csv")
    acts = quietly(model, table, out=tmp_path / "acts")
    assert acts["clip"].values.tolist() == ["0.wav", "1.wav", "surround.wav"]
    assert np.isfinite(acts["resid"]).all()
    told = {row["clip"]: row["problem"] for row in json.loads(acts.attrs["skipped"])}
    says = {"gone": "missing", "text": "not audio", "silent": "silent", "nan": "NaN", "one": "one frame"}
    says["three hours"] = "longer than"
    assert set(told) == {f"{name}.wav" for name in says}
    printed = capsys.readouterr().out
    for name, word in says.items():
        assert word in told[f"{name}.wav"] and f"{name}.wav" in printed
    assert "label 'style'" in printed and "1 of 9 clips" in printed
    with pytest.raises(ValueError, match=r"(?s)clips can't be used \(strict=True\).*silent.wav"):
        quietly(model, table, out=tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists(), "strict raises before any work"
    assert quietly(model, table.iloc[:2], strict=True).sizes["clip"] == 2


def test_another_model_option_or_clip_is_refused_by_name_and_labels_may_change(model, tmp_path):
    table, out = coded(model), tmp_path / "acts"
    first = quietly(model, table, out=out).load()
    for options, says in (
        ({"pool": "frames", "layers": [0, 1]}, "pool: 'mean' there, 'frames' here"),
        ({"layers": [0]}, "layers"),
        ({"sites": ("attn",)}, "site: 'resid' there, 'attn' here"),
        ({"prompt": "jazz"}, "prompt: 'unconditional' there, 'jazz' here"),
        ({"dtype": "float16"}, "dtype"),
    ):
        with pytest.raises(ValueError, match=says):
            quietly(model, table, out=out, **options)
    with pytest.raises(ValueError, match="data: '7 clips"):
        quietly(model, table[:-1], out=out)
    weights, model.hash = model.hash, "another"
    try:
        with pytest.raises(ValueError, match=f"model_hash: '{weights}' there, 'another' here"):
            quietly(model, table, out=out)
    finally:
        model.hash = weights
    assert ms.open_activations(out).identical(first), "refusals change nothing"
    again = quietly(model, table.drop(columns="tempo").assign(style="pop", year=1999), out=out)
    assert "tempo" not in again.coords and set(again["style"].values) == {"pop"} and again["year"][0] == 1999
    xr.testing.assert_equal(again["resid"].reset_coords(drop=True), first["resid"].reset_coords(drop=True))
    (tmp_path / "else").mkdir()
    with pytest.raises(ValueError, match="not a store of activations"):
        quietly(model, table, out=tmp_path / "else")


def test_labels_have_the_same_types_in_memory_and_on_disk(model, tmp_path):
    given = {
        "text": ["a", None, "c"],
        "mixed": ["a", 1, None],
        "empty": [None] * 3,
        "flag": [True, False, True],
        "flag with a gap": [True, None, False],
        "number": np.array([1, 2, 3], np.int16),
        "number with a gap": pd.array([1, None, 3], "Int64"),
        "float": [0.5, np.nan, 1.5],
        "kind": pd.Categorical(["x", "y", "x"]),
        "seed": [3, 1, 2],
    }
    kinds = {"text": "U", "mixed": "U", "empty": "U", "flag": "b", "flag with a gap": "f", "number": "i"}
    kinds |= {"number with a gap": "f", "float": "f", "kind": "U", "seed": "i"}
    table = coded(model, (3, 4, 3)).assign(**given)
    memory, disk = quietly(model, table), quietly(model, table, out=tmp_path / "acts")
    assert memory.load().identical(disk.load()) and ms.open_activations(tmp_path / "acts").load().identical(
        disk
    )
    assert {name: disk[name].dtype.kind for name in kinds} == kinds and disk["number"].dtype == np.int16
    assert disk["mixed"].values.tolist() == ["a", "1", ""] and disk["empty"].values.tolist() == [""] * 3
    np.testing.assert_array_equal(disk["flag with a gap"], [1, np.nan, 0])
    np.testing.assert_array_equal(disk["number with a gap"], [1, np.nan, 3])
    labels = (tmp_path / "acts" / "labels.parquet").stat()
    again = quietly(model, table, out=tmp_path / "acts")
    assert (tmp_path / "acts" / "labels.parquet").stat() == labels, "the same labels are left alone"
    assert again.load().identical(disk)
    assert quietly(model, table.assign(seed=0), out=tmp_path / "acts")["seed"].values.tolist() == [0, 0, 0]


def test_a_kill_at_any_step_of_relabelling_leaves_the_old_labels_or_the_new(small_model, tmp_path):
    table = coded(small_model)
    old = quietly(small_model, table, out=tmp_path / "acts").load()
    table = table.drop(columns="tempo").assign(style="pop", year=1999)
    torch.set_num_threads(1)  # a forked child can't use its parent's other threads
    seen = []
    for step in range(200):
        shutil.copytree(tmp_path / "acts", out := tmp_path / f"killed-{step}")
        if (child := os.fork()) == 0:
            steps = itertools.count()

            def die(event, args, out=str(out), step=step, steps=steps):
                """Kill this process before the `step`-th time that it may change something in the store."""
                opens = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                changes = opens or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
                if changes and out in str(args[0]) and next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(die)
            quietly(small_model, table, out=out)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        found = ms.open_activations(out).load()
        np.testing.assert_array_equal(found["resid"], old["resid"])
        seen.append("tempo" not in found.coords)
        assert found.identical(old) or (set(found["style"].values) == {"pop"} and found["year"][0] == 1999)
        if status == 0:
            break
        assert quietly(small_model, table, out=out)["year"][0] == 1999, (
            "the same call finishes what was begun"
        )
    assert status == 0 and seen == sorted(seen) and set(seen) == {False, True}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sites": ("residual",)}, "isn't one of resid, attn, heads, cross, mlp"),
        ({"layers": [99]}, "has layers 0 to"),
        ({"layers": [-1]}, "has layers 0 to"),
        ({"pool": "max"}, "choose from mean, frames"),
        ({"pool": "frames"}, "name the layers"),
        ({"prompt": ["a", "b"]}, "2 prompts for 7 clips"),
        ({"engine": "spark"}, "choose 'local', or 'ray'"),
        ({"engine": "ray"}, "with a folder that workers share"),
        ({"dtype": "int8"}, "float32 or float16"),
    ],
)
def test_one_clear_error_for_an_option_that_does_not_exist(model, options, says):
    with pytest.raises(ValueError, match=says):
        quietly(model, coded(model), **options)


def test_one_clear_error_for_clips_that_do_not_fit(model):
    table = coded(model)
    for clips, says in (
        (table.drop(columns="clip"), "ms.clips makes one"),
        (pd.DataFrame({"clip": ["a"], "path": ["a.wav"]}), "`path`, `start` and `duration`"),
        (table.assign(clip="same"), "stand for several rows"),
        (table.assign(layer=1), "label layer: that name is taken"),
        (["a prompt"], "ms.clips makes one"),
    ):
        with pytest.raises(ValueError, match=says):
            quietly(model, clips)
    with pytest.raises(ValueError, match="column `prompt`"):
        quietly(model, table, generate={"duration": 0.1})
    with pytest.raises(ValueError, match="generate has no length"):
        quietly(model, ["x"], generate={"length": 3})
    codes = [c[:2] if i else c[:, :0] for i, c in enumerate(table["codes"])]
    codes[1] = table["codes"][1].astype(int) - model.lm.card
    told = json.loads(quietly(model, table.assign(codes=codes)).attrs["skipped"])
    assert len(told) == len(table) and all("not of this model's codec" in row["problem"] for row in told)


def test_a_call_that_fails_at_once_leaves_no_store_in_the_way(model, tmp_path):
    options = {"duration": 4 / model.frame_rate}
    for out in (tmp_path / "new", tmp_path / "begun"):
        if out.name == "begun":
            quietly(model, ["jazz"], generate=options, out=out)
        with pytest.raises(ValueError, match="at most"):
            quietly(model, ["jazz"], generate={"duration": 1000.0}, out=out)
        assert quietly(model, ["jazz"], generate=options, out=out).sizes["clip"] == 1


def test_two_processes_may_begin_one_store(model, tmp_path, monkeypatch):
    table, out, rename = coded(model), tmp_path / "acts", os.rename

    def overtaken(partial, path):
        """The other process makes its store while this one is at it."""
        if not out.exists():
            shutil.copytree(partial, out)
        rename(partial, path)

    monkeypatch.setattr(os, "rename", overtaken)
    assert (
        quietly(model, table, out=out).load().identical(quietly(model, table, out=tmp_path / "alone").load())
    )
    assert {p.name for p in tmp_path.iterdir()} == {"acts", "alone"}


def test_clips_with_codes_and_files_go_in_one_table(model, tmp_path):
    tones(tmp_path, [0.4]).to_csv(tmp_path / "m.csv", index=False)
    table = pd.concat([coded(model, (9,)), ms.clips(tmp_path / "m.csv")], ignore_index=True)
    acts = quietly(model, table)
    assert acts["clip"].values.tolist() == ["c0", "0.wav"] and check(table.iloc[1:]).empty
    assert acts["n_frames"].values.tolist() == [9, _job.codes_for(model, table)[0][1].shape[-1]]


def test_frames_say_their_size_and_refuse_a_full_disk(model, tmp_path, capsys, monkeypatch):
    table = coded(model)
    acts = quietly(model, table, pool="frames", layers=[1], dtype="float16", out=tmp_path / "acts")
    assert "every frame: 0.00 GB" in capsys.readouterr().out and acts["resid"].dtype == np.float16
    full = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    with pytest.raises(ValueError, match="don't fit into the 0.0 GB that are free"):
        quietly(model, table, pool="frames", layers=[1], out=tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_an_unfinished_store_opens_with_a_warning(model, tmp_path, monkeypatch):
    monkeypatch.setattr(_job, "BLOCK", 4)
    written, write = [], _store.Store.write

    def stop_after_one(store, block, *args):
        if written:
            raise KeyboardInterrupt
        written.append(block)
        write(store, block, *args)

    monkeypatch.setattr(_store.Store, "write", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        quietly(model, coded(model), out=tmp_path / "acts")
    with pytest.warns(UserWarning, match="4 of 7 clips so far"):
        assert ms.open_activations(tmp_path / "acts").sizes["clip"] == 4
    with pytest.raises(ValueError, match="nowhere is not a store of activations"):
        ms.open_activations(tmp_path / "nowhere")
    (tmp_path / "acts/arrays/zarr.json").rename(tmp_path / "acts/arrays/.zgroup")  # format 2 may hold pickles
    with pytest.raises(ValueError, match="acts is not a store of activations"):
        ms.open_activations(tmp_path / "acts")


def test_killed_at_any_moment_the_same_call_finishes_the_rest(small_model, tmp_path, monkeypatch):
    model = small_model
    monkeypatch.setattr(_job, "BLOCK", 3)
    table = coded(model, [2 + i % 5 for i in range(15)])
    collect = partial(quietly, model, table, sites=("resid", "heads"), batch_size=2)
    torch.set_num_threads(1)  # a forked child can't use its parent's other threads

    def start(out) -> int:
        if (child := os.fork()) == 0:
            collect(out=out)
            os._exit(0)
        return child

    began = time.monotonic()
    os.waitpid(start(tmp_path / "whole"), 0)
    took = time.monotonic() - began
    whole = ms.open_activations(tmp_path / "whole").load()
    chance, cut_short = random.Random(0), 0
    blocks = _store.Store.at(tmp_path / "whole").group["done"].size
    left = lambda out: len(_store.Store.at(out).todo()) if out.exists() else blocks
    for k in range(4):
        out, enough = tmp_path / f"killed-{k}", chance.randint(1, blocks)
        child = start(out)
        while left(out) > enough:  # how far it gets is drawn, not how long it takes: the machine may be busy
            time.sleep(0.02)
        time.sleep(chance.uniform(0, took / blocks))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        cut_short += left(out) > 0
        assert collect(out=out).load().identical(whole)
    assert cut_short >= 2, "most kills should come before the end"


if (paths.data() / "orchestra.parquet").exists() and (paths.data() / "tiny" / "card.json").exists():

    def test_the_orchestra_is_read_by_tiny_from_its_codes_and_by_others_from_its_sound(tiny, meta):
        table = ms.clips("orchestra").iloc[:3]
        codes, _ = _job.codes_for(tiny, table)
        assert all(np.array_equal(a, b) for a, b in zip(codes, table["codes"], strict=True))
        acts = quietly(meta, table)
        assert acts["n_frames"].values.tolist() == [round(8 * meta.frame_rate)] * 3
        assert np.isfinite(acts["resid"]).all() and {"lead", "style", "tempo", "group"} <= set(acts.coords)

    def test_a_model_that_hears_hardly_any_difference_is_told_and_one_that_does_is_not(meta, tmp_path):
        songs = ms.clips("orchestra").drop_duplicates("group")
        songs = songs.assign(codes=[codes[:, :100] for codes in songs["codes"]], duration=4.0)
        several = songs.sample(10, random_state=0)
        alike = songs[(songs["lead"] == "piano") & (songs["style"] == "classical") & ~songs["drums"]].head(3)
        tiny = ms.load("tiny", device="cpu")  # whose weights are changed below
        frames = {"pool": "frames", "layers": [0]}
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "the (codes|activations)")
            for table in (several, alike, several[:2]):
                quietly(tiny, table)
            quietly(tiny, alike, **frames)
            quietly(tiny, ["jazz piano"] * 2, generate={"duration": 1.0})
            quietly(meta, several[:1])
            quietly(
                meta, several[:1].loc[lambda t: t.index.repeat(2)].assign(clip=["a", "b"]), prompt=["a", "b"]
            )
        says = "codes of 8 clips that were compared agree at 9.% of all places.*is musicgen-thin trained"
        with pytest.warns(UserWarning, match=says):
            quietly(meta, several, out=tmp_path / "acts")
        with pytest.warns(UserWarning, match="codes of 2 clips that were compared agree at"):
            quietly(meta, several[:2], **frames)
        torch.manual_seed(0)
        for weight in tiny.lm.parameters():
            weight.data.normal_(0, 0.02) if weight.ndim > 1 else None
        with pytest.warns(
            UserWarning, match="activations at resid of 8 clips .* differ by 1[.].% of their norm"
        ):
            quietly(tiny, several)
