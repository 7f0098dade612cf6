"""Mistakes that people make: each is told in one sentence that says what to do, before any long work."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mechsteer as ms
from mechsteer import errors, paths
from mechsteer.model import _checkpoints as checkpoints


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tinny", "no model 'tinny'.*Did you mean 'tiny'"),
        ("musicgen-small", "Did you mean 'facebook/musicgen-small'"),
        ("models/my/checkpoint", "no such folder.*owner/name.*tiny"),
        ("./here", "no such folder"),
        ("facebook/musicgen-smal", "offline mode is on.*Did you mean 'facebook/musicgen-small'"),
        ("facebook/musicgen-small", "hub cache.*Load it once with a connection"),
    ],
)
def test_a_wrong_name_is_told_with_the_likely_one(name, said):
    with pytest.raises(errors.MissingWeights, match=said):
        ms.load(name)


def test_no_connection_is_noticed_at_once(monkeypatch):
    from huggingface_hub import constants

    def nobody(address, timeout):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checkpoints.urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", nobody)
    with pytest.raises(errors.MissingWeights, match=r"huggingface\.co \(no connection\)"):
        ms.load("facebook/musicgen-small")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:1"])
def test_a_device_that_is_not_there_is_told_before_loading(device):
    with pytest.raises(errors.NoSuchDevice, match="leave device out.*'cpu'"):
        ms.load("a/model/that/would/not/load", device=device)


def test_a_model_that_does_not_fit_is_told_before_loading(meta_folder, monkeypatch):
    import psutil

    few = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: few)
    with pytest.raises(errors.TooLittleMemory, match=r"takes 0\.0 GB.* 0\.0 GB are free.*musicgen-small"):
        ms.load(meta_folder)


def test_a_full_gpu_is_told_with_what_needs_less():
    with (
        pytest.raises(MemoryError, match=r"smaller batch_size \(CUDA out of memory\)"),
        errors.memory_told("give a smaller batch_size"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_a_machine_without_memory_is_told_the_same_and_other_errors_stay():
    advice = errors.memory_told("give a shorter duration")
    with pytest.raises(errors.TooLittleMemory, match=r"shorter duration \(can't allocate memory\)"), advice:
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="shapes"), errors.memory_told(""):
        raise RuntimeError("shapes differ")


def test_a_slip_of_the_pen_is_told_with_what_there_is(model, tmp_path):
    with pytest.raises(
        ValueError, match="dtype='flot16' isn't one of float32, float16, bfloat16; leave dtype out"
    ):
        ms.load("tiny", dtype="flot16")
    with pytest.raises(IndexError, match=f"no layer 99: .* has layers 0 to {model.n_layers - 1}"):
        model.resid[99]
    with pytest.raises(AttributeError, match="no attribute 'lod'. Did you mean 'load'"):
        ms.lod  # noqa: B018
    with pytest.raises(
        FileNotFoundError, match="no direction at nowhere.safetensors; ms.save_direction writes one"
    ):
        ms.load_direction("nowhere.safetensors")


def test_a_notebook_in_another_folder_finds_the_projects_data(tmp_path):
    code = "import mechsteer as ms; from mechsteer import paths; "
    code += "print(len(ms.clips('orchestra')) > 0, paths.shipped_figures())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", str(paths.project() / "figures")]


def test_no_synthesiser_is_told_before_anything_is_composed(tmp_path, monkeypatch):
    from workshop.tiny import orchestra

    monkeypatch.setenv("MECHSTEER_SOUNDFONT", str(tmp_path / "nowhere.sf2"))
    monkeypatch.setitem(sys.modules, "fluidsynth", None)
    with pytest.raises(
        SystemExit, match=r"(?s)pyfluidsynth.*uv sync.*soundfont.*apt install fluid-soundfont-gm"
    ):
        orchestra.main(["--out", str(tmp_path / "out"), "--jobs", "1"])
    assert not (tmp_path / "out").exists()


def test_a_notebook_shows_the_sentence_and_no_way_there():
    from IPython.core.interactiveshell import InteractiveShell

    code = "import mechsteer as ms\nms.load('tinny')"
    shell = InteractiveShell()
    shown = []
    shell._showtraceback = lambda kind, error, lines: shown.extend(lines)
    shell.run_cell(code)
    assert len(shown) == 1 and "Did you mean 'tiny'" in shown[0] and "Traceback" not in shown[0]


def test_a_kernel_without_the_package_shows_what_to_do():
    """The comment behind every notebook's import is what the traceback of a wrong kernel ends with."""
    import nbformat

    from workshop.suite import notebooks

    for path in notebooks.find():
        source = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
        line = next(line for line in source.splitlines() if line.startswith("import mechsteer as ms"))
        assert "make lab" in line, path.stem
    code = "import sys; sys.modules['mechsteer'] = None\nfrom IPython import get_ipython\n"
    script = f"{code}from IPython.core.interactiveshell import InteractiveShell\n"
    script += f"InteractiveShell().run_cell({line!r})"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in said.stdout + said.stderr and "make lab" in said.stdout + said.stderr


def test_a_package_without_its_repository_says_to_clone_and_nothing_else(tmp_path):
    """As `pip install` leaves it: the code alone, in a folder without data. Audiocraft stays as it was."""
    shutil.copytree(Path(ms.__file__).parent, tmp_path / "site" / "mechsteer")
    code = (
        "import mechsteer as ms\nfrom mechsteer import paths\nprint(paths.figures(), paths.runs())\n"
        "for ask in (lambda: ms.load('tiny'), lambda: ms.clips('orchestra')):\n"
        "    try: ask()\n"
        "    except FileNotFoundError as error: print(type(error).__name__, error)\n"
        "from audiocraft.modules import transformer as t\n"
        "print(t.create_sin_embedding.__module__, t.StreamingMultiheadAttention._apply_rope.__module__)"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("MECHSTEER")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    where, *told, homes = done.stdout.splitlines()
    runs = tmp_path / "data" / "runs"
    assert where == f"{runs / 'figures'} {runs}"
    assert len(told) == 2 and all("NoCheckout" in line and "clone the repository" in line for line in told)
    assert homes == "audiocraft.modules.transformer audiocraft.modules.transformer"
    assert done.stderr == ""
