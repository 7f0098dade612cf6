"""Fixtures that several test files share.

No test reaches a network: the hub cache is a fresh local one, offline.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

CACHE = Path(tempfile.mkdtemp(prefix="mechsteer-hub-"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(CACHE), "OMP_WAIT_POLICY": "PASSIVE"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are too small to share out
os.environ["MECHSTEER_RUNS"] = str(CACHE / "runs")  # nothing is read from, or left in, the user's own runs

ROOT = Path(__file__).resolve().parents[1]
MODELS = ["meta", "tiny"] if (ROOT / "data" / "tiny" / "card.json").exists() else ["meta"]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """For several workers (`-n 2`): a file's tests stay together, as they share what they load."""
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: "notebook_runs" not in item.name)


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
def cluster():
    """Ray with room for two workers, again where a busy machine doesn't get it up in the time it allows.

    Those who use it are in the group "ray": on one worker, so that Ray starts once.
    """
    import ray

    options = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    for last in (*[False] * 5, True):
        try:
            ray.init(num_cpus=2, num_gpus=0, **options)
            break
        except Exception as error:
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise
    yield
    ray.shutdown()


@pytest.fixture(scope="session", params=MODELS)
def model(request):
    """A loaded Model in float32 on the CPU: one from `meta_folder`, and the embedded one."""
    import mechsteer as ms

    name = request.getfixturevalue("meta_folder") if request.param == "meta" else "tiny"
    return ms.load(name, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def chrome():
    """A browser, for tests of pages; each opens its own page in it."""
    import browser

    require(browser.CHROME, "chromium")
    with browser.browser() as started:
        yield started
