"""Fixtures that several test files share.

No test reaches a network: the hub cache is a fresh local one, offline.
"""

import asyncio
import gc
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from browser import UNSEEN

CACHE = Path(tempfile.mkdtemp(prefix="mechsteer-hub-"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(CACHE), "OMP_WAIT_POLICY": "PASSIVE"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are too small to share out
# Of glibc, in the processes that are started from here: memory that a tensor leaves is kept for the next one.
os.environ |= {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
# Of Debian's Chromium, where it draws figures, too.
os.environ["CHROMIUM_FLAGS"] = f"--disable-gpu --disable-features={UNSEEN}"
os.environ["MECHSTEER_RUNS"] = str(CACHE / "runs")  # nothing is read from, or left in, the user's own runs

ROOT = Path(__file__).resolve().parents[1]
# Begun first, or one worker would be busy with the last of them while the other has nothing left.
LONG = ("test_site", "test_start_here_browser", "test_listening_browser", "test_ray")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """For several workers (`-n 2`): a file's tests stay together, as they share what they load."""
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: ("notebook_runs" not in item.name, item.path.stem not in LONG))


def pytest_collection_finish():
    gc.freeze()  # what is imported by now stays, and needn't be looked through each time memory is collected


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


def require(found: object, package: str) -> None:
    """Go on if `found`; else skip and name the system package to install, or fail where `CI=true`."""
    if not found:
        stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        stop(f"needs a system package that isn't here: {package}")


@pytest.fixture(scope="session")
def meta_folder(tmp_path_factory) -> Path:
    """A folder of Meta's format with random weights; see meta_checkpoint.py."""
    from meta_checkpoint import write

    return write(tmp_path_factory.mktemp("checkpoints") / "musicgen-thin", CACHE)


@pytest.fixture(scope="session")
def meta(meta_folder):
    """A loaded Model in float32 on the CPU, of Meta's format. Who changes its weights loads another."""
    import mechsteer as ms

    return ms.load(meta_folder, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny():
    """The embedded Model in float32 on the CPU. Who changes its weights loads another."""
    import mechsteer as ms

    return ms.load("tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def shallow():
    """The embedded Model with half its layers, as many as `meta` has: for what isn't about its music."""
    from mechsteer.model.model import Model
    from mechsteer.tiny.loading import load_embedded

    musicgen = load_embedded()
    del musicgen.lm.transformer.layers[2:-1]
    return Model(musicgen, "tiny", device="cpu", dtype="float32")


@pytest.fixture(scope="session", params=["meta", "shallow"])
def model(request):
    """`meta` and `shallow`, one after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def chrome():
    """A browser, for tests of pages; each opens its own page in it."""
    import browser

    require(browser.CHROME, "chromium")
    with browser.browser() as started:
        yield started


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout, one for all notebooks: later ones read what earlier ones wrote."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.split("\0") if done.returncode == 0 else []
    for name in names or pytest.skip("needs a git checkout to say what changed"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for step in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "as it is"]):
        subprocess.run(["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *step], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="session")
def run_notebook(checkout, tmp_path_factory):
    """Run a notebook of the copy in one kernel for all, emptied before each: imports are paid for once.

    Called with the notebook, parameters, and `figures` and `runs` where these aren't those of a run by hand.
    Only 00 by hand has its figure pictured; else figures come without, as where there is no Chrome.
    Figures are shown as JupyterLab shows them: pictures of them go to their files only.
    Those who use it are in the group "notebooks". What `make notebooks` stores comes from fresh kernels.
    """
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.channels import HBChannel

    from workshop.suite import notebooks

    HBChannel.time_to_dead = 60.0  # s between heartbeats of each run: one a second of dozens adds up
    places = ["MECHSTEER_FIGURES", "MECHSTEER_RUNS"]
    km, empty = AsyncKernelManager(kernel_name=notebooks.KERNEL), tmp_path_factory.mktemp("empty")

    def run(path: Path, parameters: dict, **given: Path):
        here = {f"MECHSTEER_{name.upper()}": str(place) for name, place in given.items()}
        here["PLOTLY_RENDERER"] = "plotly_mimetype"
        pictured = path.stem.startswith("00") and not given
        here["BROWSER_PATH"] = os.environ.get("BROWSER_PATH", "") if pictured else "none"
        lines = ["import gc", "gc.freeze()", "get_ipython().reset(new_session=False)"]  # it collects, twice
        lines += ["import gc, os", "gc.unfreeze()", f"os.chdir({str(checkout / 'notebooks')!r})"]
        lines += [f"_ = [os.environ.pop(name, None) for name in {places}]", f"os.environ.update({here})"]
        cells = [nbformat.v4.new_code_cell("\n".join(lines))]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), empty / "00_empty.ipynb")
        with pytest.MonkeyPatch.context() as patch:  # what the kernel starts with
            patch.setenv("PYTHONPATH", str(checkout))
            notebooks.execute(empty / "00_empty.ipynb", km=km)
        return notebooks.execute(checkout / "notebooks" / path.name, parameters, limit=590, km=km)

    yield run
    asyncio.run(km.shutdown_kernel(now=True))
