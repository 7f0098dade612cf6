"""The package's shape: one-way imports, one door to audiocraft and nnsight, torch where tensors flow, no pickle."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mechsteer"
FILES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}
WITHOUT_TORCH = {"checks", "datasets", "directions", "distances", "geometry", "measures", "notebooks", "paths", "plots"}
WITHOUT_TORCH |= {"probes", "saving", "scores", "solvers", "store", "targets", "truth"}
WITHOUT_TORCH |= {"listening.__init__", "listening.export", "listening.plots", "listening.power", "listening.test"}
WITHOUT_TORCH |= {"listening.widget", "loudness"}


def imports(name: str, deep: bool) -> set[str]:
    """Full dotted names that a module imports; `deep` counts those inside functions too."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    nodes, found = list(tree.body), set()
    while nodes:
        node = nodes.pop()
        if not deep and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = ["mechsteer", *name.removesuffix("__init__").rstrip(".").split(".")]
            home = [part for part in home if part]
            if not name.endswith("__init__"):
                home = home[:-1]
            base = ".".join(home[: len(home) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def siblings(name: str, deep: bool) -> set[str]:
    """The modules of this package that a module imports."""
    known = set()
    for full in imports(name, deep):
        if full.split(".")[0] != "mechsteer":
            continue
        rest = full.split(".")[1:]
        fits = [".".join(rest[:k]) for k in range(len(rest), 0, -1)]
        fits = [f for fit in fits for f in (fit, f"{fit}.__init__") if f in FILES]
        known |= {fits[0]} if fits else set()
    return known - {name}


def test_the_import_reader_sees_relative_absolute_and_nested_imports():
    assert "mechsteer.paths" in imports("notebooks", deep=False)
    assert "papermill" in imports("notebooks", deep=True) - imports("notebooks", deep=False)
    assert {"paths", "notebook_text"} <= siblings("notebooks", deep=False)
    assert "saving" in siblings("notebooks", deep=True) - siblings("notebooks", deep=False)


def test_only_the_backend_imports_audiocraft_and_nnsight():
    doors = {n for n in FILES if {i.split(".")[0] for i in imports(n, deep=True)} & {"audiocraft", "nnsight", "flashy"}}
    assert doors == {"backend"}


def test_imports_go_one_way():
    try:
        tuple(TopologicalSorter({name: siblings(name, deep=False) for name in FILES}).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_only_the_model_and_the_datasets_know_the_embedded_model():
    knowing = {n for n in FILES if any(s.split(".")[0] == "tiny" for s in siblings(n, deep=True))}
    assert {n for n in knowing if not n.startswith("tiny.")} <= {"model", "datasets"}


@pytest.mark.parametrize("name", sorted(WITHOUT_TORCH))
def test_torch_stays_out_of_what_reads_saved_data(name):
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        seen.add(module)
        todo += siblings(module, deep=False) - seen
    heavy = {m for m in seen if {i.split(".")[0] for i in imports(m, deep=False)} & {"torch", "torchaudio", "librosa"}}
    assert not heavy, f"{name} imports torch or librosa through {sorted(heavy)}"


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, mechsteer; print(*sorted({'torch', 'pandas', 'numpy', 'plotly', 'xarray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "\n"


def test_every_public_name_has_an_owner_that_defines_it():
    import mechsteer

    for name, owner in mechsteer._OWNERS.items():
        assert owner in FILES, f"mechsteer.{name} is said to live in {owner}.py, which does not exist"
        tree = ast.parse(FILES[owner].read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        defined |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
        defined |= {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        assert name in defined, f"{owner}.py does not define {name}"
    assert set(mechsteer._MODULES) <= {n.removesuffix(".__init__") for n in FILES}


def test_nothing_unpickles():
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        roots = {i.split(".")[0] for i in imports(name, deep=True)}
        assert not roots & {"cloudpickle", "dill", "joblib", "shelve", "marshal"}, name
        used = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "pickle"}
        used |= {i.split(".")[1] for i in imports(name, deep=True) if i.startswith("pickle.")}
        assert used <= {"UnpicklingError"}, f"{name} may catch what a refused pickle raises, nothing else: {used}"
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            assert not given.get("allow_pickle"), f"{name}:{call.lineno}"
            if ast.unparse(call.func) == "torch.load":
                assert given.get("weights_only") is True, f"{name}:{call.lineno}: torch.load needs weights_only=True"
            assert ast.unparse(call.func) not in {"pd.read_pickle", "pandas.read_pickle"}, f"{name}:{call.lineno}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_modules_stay_small_and_say_what_they_are(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 400, "split it: a module has at most 400 lines"
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is for"
    assert not re.search(r"^\s*from \S+ import \*", text, re.MULTILINE)


def test_no_tracked_text_names_a_path_of_some_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    machine = re.compile(r"(?<![\w.:+/~$}-])/(?:" + "|".join(["work", "root", "home", "Users"]) + r")/\w")
    named = []
    for path in (ROOT / name for name in listed.split("\0") if name):
        if (
            path.suffix in {".png", ".mp3", ".flac", ".wav", ".safetensors", ".parquet", ".npz", ".js"}
            or not path.is_file()
        ):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        named += [f"{path.relative_to(ROOT)}: {found[0]}" for found in [machine.search(text)] if found]
    assert not named
