"""One environment: pyproject, lock, environment.yml, Makefile and what is installed say the same."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename

from workshop.suite import colab

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
MINORS = [n for n in range(30) if SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"3.{n}.9")]
TARGETS = {
    "help",
    "notebooks",
    "figures",
    "test",
    "lab",
    "lint",
    "format",
    "bench",
    "orchestra",
    "tiny",
    "study",
    "site",
    "clean",
}


def direct() -> set[str]:
    """Names of every dependency that pyproject asks for, extras and developers' tools included."""
    asked = [
        *PROJECT["project"]["dependencies"],
        *sum(EXTRAS.values(), []),
        *PROJECT["dependency-groups"]["dev"],
    ]
    return {canonicalize_name(Requirement(text).name) for text in asked}


def uv(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    program = shutil.which("uv") or str(ROOT / ".uv/bin/uv")
    env = {**os.environ, **environment}
    env.pop("VIRTUAL_ENV", None)
    return subprocess.run([program, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


def make(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}} | environment
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True)


def conda_pins() -> dict[str, str]:
    """Package -> version specifier of environment.yml (conda's single `=` reads as `==x.*`)."""
    split = [re.fullmatch(r"([\w-]+)([=<>!].*)?", entry).groups() for entry in CONDA["dependencies"]]
    return {name: re.sub(r"^=([\d.]+)$", r"==\1.*", spec or "") for name, spec in split}


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there is one worker only")
def test_several_workers_keep_each_file_on_one(request):
    """Else fixtures are made twice: a pytest may ignore the groups that pytest-xdist writes into names."""
    assert request.node.nodeid.endswith("@test_environment")


def test_conda_brings_the_same_python_and_a_uv_that_reads_the_lock():
    python = SpecifierSet(conda_pins()["python"])
    brought = [minor for minor in range(30) if python.contains(f"3.{minor}.9")]
    assert brought and set(brought) <= set(MINORS)
    assert SpecifierSet(conda_pins()["uv"]) == SpecifierSet(PROJECT["tool"]["uv"]["required-version"])
    assert SpecifierSet(LOCK["requires-python"]) == SpecifierSet(PROJECT["project"]["requires-python"])


def test_conda_leaves_every_python_package_to_the_lock():
    """Direct dependencies cannot differ: conda names none of them, and the lock's are pyproject's."""
    assert not set(conda_pins()) & (direct() | {canonicalize_name(p["name"]) for p in LOCK["package"]})
    own = next(p for p in LOCK["package"] if p["name"] == "mechsteer")
    meta = own["metadata"]
    locked = {d["name"] for d in meta["requires-dist"]} | {d["name"] for d in meta["requires-dev"]["dev"]}
    assert locked == direct()


def test_post_build_and_makefile_install_the_same_set():
    command = "uv sync --frozen --inexact --all-extras"
    assert command in (ROOT / "postBuild").read_text(encoding="utf-8")
    assert os.access(ROOT / "postBuild", os.X_OK) and os.access(ROOT / ".ci/run", os.X_OK)
    assert "sync --frozen --all-extras" in make("-n", "-W", "uv.lock", "test").stdout
    conda = "conda env create -f environment.yml && conda activate mechsteer && ./postBuild"
    for name in ("workshop/site/guide/installing.md", "environment.yml"):
        assert conda in (ROOT / name).read_text(encoding="utf-8"), f"{name} should show: {conda}"


def test_post_build_installs_into_conda_and_nowhere_else(tmp_path):
    for name, line in (("python", f"echo {tmp_path}"), ("uv", 'echo "$UV_PROJECT_ENVIRONMENT" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    outside = subprocess.run([ROOT / "postBuild"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert outside.returncode == 1 and "conda activate mechsteer" in outside.stderr and not outside.stdout
    (tmp_path / "conda-meta").mkdir()
    inside = subprocess.run([ROOT / "postBuild"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert inside.stdout.split() == [
        *(
            str(tmp_path),
            "sync",
            "--frozen",
            "--inexact",
            "--all-extras",
            "--python",
            f"{tmp_path}/bin/python",
        )
    ]


def test_the_lock_is_that_of_pyproject():
    done = uv("lock", "--check", "--offline")
    assert done.returncode == 0, f"run `uv lock` and commit uv.lock: {done.stderr}"


def test_what_is_installed_is_the_lock():
    done = uv(
        "sync",
        "--frozen",
        "--inexact",
        "--all-extras",
        "--check",
        "--offline",
        UV_PROJECT_ENVIRONMENT=sys.prefix,
    )
    assert done.returncode == 0, done.stderr


def test_the_lock_names_no_other_registry_than_pypi():
    sources = {str(p["source"]) for p in LOCK["package"] if p["name"] != "mechsteer"}
    assert sources == {str({"registry": "https://pypi.org/simple"})}
    files = [
        f["url"] for p in LOCK["package"] for f in [*p.get("wheels", []), *filter(None, [p.get("sdist")])]
    ]
    assert {url.split("/")[2] for url in files} == {"files.pythonhosted.org"}


PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    "linux-aarch64": {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux"},
    "macos-arm64": {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
}
# Pure Python, published as source only; and nnsight's one C file, which has no aarch64 wheel (README,
# "Installing").
FROM_SOURCE = {"antlr4-python3-runtime", "audiocraft", "docopt", "flashy"}
COMPILED = {"linux-aarch64": {"nnsight"}}


def needed(platform: dict[str, str], minor: int) -> dict[str, dict]:
    """The locked packages that Python 3.`minor` installs there, by the lock's markers from the project on."""
    env = {
        **platform,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.9",
        "extra": "",
    }
    by_name: dict[str, list[dict]] = {}
    for package in LOCK["package"]:
        by_name.setdefault(package["name"], []).append(package)
    found, todo = {}, [("mechsteer", None, tuple(EXTRAS))]
    while todo:
        name, version, extras = todo.pop()
        package = next(p for p in by_name[name] if version in (None, p.get("version")))
        key = (name, extras)
        if key in found:
            continue
        found[key] = package
        links = package.get("dependencies", []) + sum(
            [package.get("optional-dependencies", {}).get(extra, []) for extra in extras], []
        )
        for link in links:
            if "marker" not in link or Marker(link["marker"]).evaluate(env):
                todo.append((link["name"], link.get("version"), tuple(link.get("extra", []))))
    return {name: package for (name, _), package in found.items()}


@pytest.mark.parametrize("minor", MINORS, ids="3.{}".format)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_and_python_finds_wheels(platform, minor):
    machine = PLATFORMS[platform]["platform_machine"]
    if platform.startswith("macos"):
        systems = list(mac_platforms((14, 0), machine))
    else:
        systems = [f"manylinux_2_{minor}_{machine}" for minor in range(5, 37)]
        systems += [f"manylinux{year}_{machine}" for year in (1, 2010, 2014)]
    python = (3, minor)
    tags = {*cpython_tags(python, platforms=systems), *compatible_tags(python, f"cp3{minor}", systems)}
    packages = needed(PLATFORMS[platform], minor)
    assert {"torch", "torchaudio", "audiocraft", "nnsight", "ray"} <= set(packages)
    without = set()
    for name, package in packages.items():
        wheels = [parse_wheel_filename(w["url"].rsplit("/", 1)[1])[3] for w in package.get("wheels", [])]
        if name != "mechsteer" and not any(tags & wheel for wheel in wheels):
            assert "sdist" in package, f"{name} cannot be installed on {platform}"
            without.add(name)
    assert without == FROM_SOURCE | COMPILED.get(platform, set())


def test_make_help_lists_every_target():
    listed = set(re.findall(r"^  make (\w+) ", make("help").stdout, re.MULTILINE))
    assert listed == TARGETS
    assert make().stdout == make("help").stdout


@pytest.mark.parametrize("target", sorted(TARGETS - {"help", "clean"}))
def test_every_target_first_installs_what_it_needs(target, tmp_path):
    for name in ("Makefile", "pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, tmp_path)
    plan = make("-n", target, "UV=.uv/bin/uv", folder=tmp_path).stdout
    steps = [plan.find(step) for step in ("-m venv .uv", ".uv/bin/uv sync --frozen", ".venv/bin/", "")]
    assert -1 not in steps[:3] and steps[:3] == sorted(steps[:3]), plan


def make_uv(folder: Path, **pythons: str) -> subprocess.CompletedProcess:
    """`make .uv/bin/uv` where the Pythons on PATH are these shell scripts."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "bin").mkdir()
    for name in ("python3.11", "python3", "python"):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{pythons.get(name, 'exit 1')}\n")
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return make("UV=.uv/bin/uv", ".uv/bin/uv", folder=folder, PATH=path)


def test_a_machine_without_venv_is_told_what_to_install(tmp_path):
    done = make_uv(tmp_path, python3='[ "$1" = -c ]')
    assert done.returncode != 0 and "apt install python3-venv" in done.stderr


def test_uv_comes_by_whichever_python_works(tmp_path):
    """A python3.11 that only says that it isn't there, as pyenv's does, is passed over."""
    venv = 'mkdir -p .uv/bin && printf "#!/bin/sh\\ntouch .uv/bin/uv" > .uv/bin/pip && chmod +x .uv/bin/pip'
    done = make_uv(tmp_path, python3=f'[ "$1" = -c ] || {{ {venv}; }}')
    assert done.returncode == 0 and (tmp_path / ".uv/bin/uv").exists(), done.stderr


def test_another_python_can_be_asked_for_when_all_is_installed():
    ready = ("-n", "-o", "uv.lock", "-o", "pyproject.toml", "test")
    assert "sync --frozen --all-extras --python 3.13\n" in make(*ready, "PYTHON=3.13").stdout
    assert "--python" not in make(*ready).stdout


def test_colab_gets_what_it_lacks_and_keeps_what_its_page_and_gpu_need():
    rest, alone = colab.requirements(PROJECT, LOCK)
    names = {canonicalize_name(Requirement(text).name) for text in rest}
    assert alone == ["audiocraft==1.3.0"] and names >= {"nnsight", "xarray", "einops", "spacy"}
    assert names | {"audiocraft"} <= {p["name"] for p in LOCK["package"]}
    assert not names & {
        "torch",
        "torchaudio",
        "ipykernel",
        "ipywidgets",
        "jupyterlab",
        "xformers",
        "torchvision",
    }
    assert set(rest) >= {
        text for text in PROJECT["project"]["dependencies"] if text.startswith(("nnsight", "zarr"))
    }


def test_colab_links_the_checkout_where_python_looks(tmp_path):
    package = tmp_path / "checkout/linked_by_colab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from pathlib import Path\nhere = Path(__file__).resolve().parent")
    for _ in range(2):  # the cell may be run again
        colab.link(package, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import linked_by_colab as c; print(c.here)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(package)


def test_nothing_happens_outside_colab(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("nothing should be installed"))
    assert colab.main() == 0
    assert "nothing was done" in capsys.readouterr().out
    cell = ("%cd /content/mechsteer", "!python -m workshop.suite.colab", "%cd notebooks")
    guide = (ROOT / "workshop/site/guide/installing.md").read_text(encoding="utf-8")
    assert all(line in guide for line in cell)
