"""NaN, infinite and absurd options of everything behind the model: one sentence each, never a number."""

import numpy as np
import pytest
import xarray as xr

import mechsteer as ms
from mechsteer.listening import power
from mechsteer.measures.kept import shared
from mechsteer.measures.loudness import match_loudness
from mechsteer.model.generation import Generation
from mechsteer.sound import encode_file

NAN, INF = float("nan"), float("inf")
TONE = 0.1 * np.sin(np.arange(64_000) / 20)[None, None].astype("float32")
CLIPS = Generation(TONE, None, 16_000, [None], [0], [None])


@pytest.fixture(scope="module")
def acts():
    """Twelve clips of six groups, of two kinds, at one layer of four features."""
    rng, kind = np.random.default_rng(0), np.arange(12) % 2
    x = rng.standard_normal((12, 1, 4)) + kind[:, None, None]
    coords = {"layer": [0], "kind": ("clip", np.where(kind, "a", "b")), "group": ("clip", np.arange(12) // 2)}
    return xr.Dataset({"resid": (("clip", "layer", "d_model"), x)}, coords)


@pytest.mark.parametrize(
    "options",
    [{"alphas": [NAN]}, {"alphas": [INF]}, {"alphas": []}, {"alphas": [-1.0]}, {"max_rows": 0}, {"seed": NAN}]
    + [{"folds": value} for value in (NAN, 0, 1.5, -1)],
    ids=str,
)
def test_fits_take_numbers_only(acts, options):
    with pytest.raises(ValueError) as error:
        ms.find_directions(acts, "kind", **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("option", ["folds", "shuffles", "inner_folds"])
@pytest.mark.parametrize("value", [NAN, -1, 1.5])
def test_scores_take_numbers_only(acts, option, value):
    with pytest.raises(ValueError, match="isn't a|folds need"):
        ms.accuracy_by_layer(acts, "kind", progress=False, **{option: value})


@pytest.mark.parametrize(
    "options", [{"boots": -1}, {"boots": NAN}, {"halves": 0}, {"level": 2.0}, {"level": NAN}], ids=str
)
def test_cosines_take_numbers_only(acts, options):
    with pytest.raises(ValueError, match="isn't a"):
        ms.direction_cosines(acts, "kind", progress=False, **options)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ms.directions.geometry.null_cosine(NAN), "nan dimension"),
        (lambda: ms.describe(CLIPS, start=NAN), r"start \(s\)=nan"),
        (lambda: ms.describe(CLIPS, start=-1), r"start \(s\)=-1"),
        (lambda: ms.hear(TONE, NAN), r"sample_rate \(Hz\)=nan"),
        (lambda: shared(TONE, TONE, NAN), r"sample_rate \(Hz\)=nan"),
        (lambda: match_loudness([TONE[0]], 16_000, NAN), r"loudness \(LUFS\)=nan"),
        (lambda: power.power(0.6, [3], items=4, runs=0), "runs=0"),
        (lambda: ms.listeners_needed(NAN), "between 0 and 1"),
        (lambda: ms.clips(".", segment=INF), "segment .*=inf"),
        (lambda: encode_file(TONE[0] * NAN, 16_000), "NaN or infinite samples"),
        (lambda: encode_file(TONE[0], NAN), r"sample_rate \(Hz\)=nan"),
    ],
)  # fmt: skip
def test_measures_take_numbers_only(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    "options",
    [
        {"listen": NAN},
        {"loudness": NAN},
        {"loudness": 20},
        {"repeats": -1},
        {"headphones": 1.5},
        {"seed": NAN},
    ],
    ids=str,
)
def test_a_listening_test_takes_numbers_only_and_leaves_no_folder(tmp_path, options):
    with pytest.raises(ValueError, match="isn't a"):
        ms.ListeningTest({"a": CLIPS, "b": CLIPS}, "Which?", "odd", folder=tmp_path / "odd", **options)
    assert not (tmp_path / "odd").exists()
