"""The house: folders in one order, one door to audiocraft and nnsight, few lines, no pickle."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOMES = ("mechsteer", "workshop")
PATHS = [path for home in HOMES for path in sorted((ROOT / home).rglob("*.py"))]
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PATHS}
ORDER = ["model", "activations", "directions", "measures", "show", "listening"]  # imports go back only
ALL_NEED = ["_shared", "_machine", "_ray", "errors", "paths", "sound"]
SHARED = {"mechsteer", *(f"mechsteer.{name}" for name in ALL_NEED)}
# Arrows that run forward, inside functions: the embedded model and its music, and what shows itself.
LAZY = {
    ("mechsteer.model.model", "mechsteer.tiny.loading"),
    ("mechsteer.activations.clips", "mechsteer.tiny.orchestra"),
    ("mechsteer.activations._rows", "mechsteer.tiny.orchestra"),
    ("mechsteer.activations.frames", "mechsteer.tiny.orchestra"),
    ("mechsteer.model.generation", "mechsteer.show.player"),
    ("mechsteer.measures.tradeoff", "mechsteer.show.plots"),
}
WITHOUT_TORCH = [
    "activations.clips", "activations.pairs", "activations._rows", "activations.frames", "activations._store",
    "directions.find", "directions.scores", "directions.geometry", "directions.files",
    "directions._solvers", "directions._labels",
    "measures.describe", "measures.distances", "measures.intervals", "measures.loudness",
    "show.plots", "show.saving", "show.player",
    "listening", "listening.charts", "listening.power",
    "listening.test", "listening.widget",
    "paths",
]  # fmt: skip


def imports(name: str, deep: bool) -> set[str]:
    """Full dotted names that a module imports; `deep` counts those inside functions too."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    home = name.split(".") if FILES[name].name == "__init__.py" else name.split(".")[:-1]
    nodes, found = list(tree.body), set()
    while nodes:
        node = nodes.pop()
        if not deep and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(home[: len(home) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def known(full: str) -> str | None:
    """The module of ours that an imported name belongs to."""
    parts = full.split(".")
    return next((m for k in range(len(parts), 0, -1) if (m := ".".join(parts[:k])) in FILES), None)


def siblings(name: str, deep: bool) -> set[str]:
    """The modules of ours that a module imports."""
    return {found for full in imports(name, deep) if (found := known(full))} - {name}


def room(name: str) -> str:
    """The folder of `mechsteer/` that a module lives in."""
    return name.split(".")[1]


def test_the_import_reader_sees_relative_absolute_and_nested_imports():
    runner = "workshop.suite.notebooks"
    assert "papermill" in imports(runner, deep=True) - imports(runner, deep=False)
    assert {"mechsteer.paths", "workshop.suite.notebook_text"} <= siblings(runner, deep=False)
    assert "mechsteer.tiny.loading" in siblings("mechsteer.model.model", deep=True) - siblings(
        "mechsteer.model.model", False
    )


def test_each_folder_imports_only_those_before_it():
    wrong = []
    for name in FILES:
        if not name.startswith("mechsteer.") or name in SHARED or room(name) == "tiny":
            continue
        for other in siblings(name, deep=True) - SHARED:
            ours = other.startswith("mechsteer.") and room(other) in ORDER
            back = ours and ORDER.index(room(other)) <= ORDER.index(room(name))
            if not back and (name, other) not in LAZY:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def test_what_all_share_imports_nothing_of_ours():
    for name in SHARED & set(FILES):
        assert siblings(name, deep=True) <= SHARED, name


def test_the_embedded_model_needs_the_model_only_and_is_reached_lazily():
    tiny = [name for name in FILES if name.startswith("mechsteer.tiny")]
    for name in tiny:
        others = siblings(name, deep=True) - SHARED - set(tiny)
        assert {room(other) for other in others} <= {"model"}, name
    for name, other in LAZY:
        late = siblings(name, deep=True) - siblings(name, deep=False)
        assert other in late, f"{name} should load {other} lazily"


def test_modules_don_t_import_each_other():
    graph = {n: siblings(n, deep=True) - {o for m, o in LAZY if m == n} for n in FILES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_nothing_imports_the_workshop():
    ours = [name for name in FILES if name.startswith("mechsteer")]
    assert not [n for n in ours if any(other.startswith("workshop") for other in siblings(n, deep=True))]
    for path in (ROOT / "notebooks").iterdir():
        if path.suffix in (".py", ".ipynb"):
            assert not re.search(r"(from|import) workshop", path.read_text(encoding="utf-8")), path.name


def test_one_module_imports_audiocraft_and_nnsight():
    heavy = {"audiocraft", "nnsight", "flashy"}
    doors = {n for n in FILES if {i.split(".")[0] for i in imports(n, deep=True)} & heavy}
    assert doors == {"mechsteer.model._audiocraft"}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_torch_stays_out_of_what_reads_saved_data(name):
    seen, todo = set(), [f"mechsteer.{name}"]
    while todo:
        module = todo.pop()
        seen.add(module)
        todo += siblings(module, deep=False) - seen
    heavy = {"torch", "torchaudio", "librosa"}
    heavy = {m for m in seen if {i.split(".")[0] for i in imports(m, deep=False)} & heavy}
    assert not heavy, f"{name} imports torch or librosa through {sorted(heavy)}"


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "pandas", "numpy", "plotly", "xarray"}
    code = f"import sys, mechsteer; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


def test_public_names_are_few_and_where_they_are_said_to_be():
    import mechsteer

    assert len(dir(mechsteer)) <= 40
    for name, owner in mechsteer._OWNERS.items():
        tree = ast.parse(FILES[f"mechsteer.{owner}"].read_text(encoding="utf-8"))
        made = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        assert name in made, f"{owner}.{name}"
        assert getattr(mechsteer, name).__doc__
    for folder in mechsteer._FOLDERS:
        inside = {n.split(".")[2] for n in FILES if n.startswith(f"mechsteer.{folder}.")}
        offered = set(dir(getattr(mechsteer, folder))) & inside
        assert {n for n in inside if not n.startswith("_")} == offered, f"mechsteer.{folder} offers {offered}"
        for module in offered:
            assert getattr(getattr(mechsteer, folder), module).__name__ == f"mechsteer.{folder}.{module}"


def test_nothing_unpickles():
    for name, path in FILES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        roots = {i.split(".")[0] for i in imports(name, deep=True)}
        assert not roots & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, name
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
            assert not given.get("allow_pickle"), f"{name}:{call.lineno}"
            if ast.unparse(call.func) == "torch.load":
                safe = given.get("weights_only") is True
                assert safe, f"{name}:{call.lineno}: torch.load needs weights_only=True"
            unpickles = ast.unparse(call.func) in {"pd.read_pickle", "pandas.read_pickle"}
            assert not unpickles, f"{name}:{call.lineno}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_modules_stay_small_and_say_what_they_are(name):
    text = FILES[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 350, "split it: a module has at most 350 lines"
    assert max(map(len, text.splitlines()), default=0) <= 110, "a line has at most 110 characters"
    assert ast.get_docstring(ast.parse(text)), "a module opens with what it is for"
    assert not re.search(r"^\s*from \S+ import \*", text, re.MULTILINE)


def lines(*folders: str, hidden: bool = True) -> int:
    """Lines of the modules in folders of mechsteer/; without `hidden` those named `_x.py` don't count."""
    paths = [p for folder in folders for p in (ROOT / "mechsteer" / folder).rglob("*.py")]
    paths = [p for p in paths if hidden or not p.name.startswith("_") or p.name == "__init__.py"]
    return sum(len(p.read_text(encoding="utf-8").splitlines()) for p in paths)


def test_the_helper_stays_thin():
    read = ("model", "activations", "directions")
    assert lines(*read, hidden=False) <= 3120, "what one reads to follow the notebooks"
    assert lines(*read) <= 5200 and lines("model") <= 2620
    assert lines(".") <= 11260


def test_no_tracked_text_names_a_path_of_some_machine():
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    machine = re.compile(r"(?<![\w.:+/~$}-])/(?:" + "|".join(["work", "root", "home", "Users"]) + r")/\w")
    binary = {".png", ".mp3", ".flac", ".wav", ".safetensors", ".parquet", ".npz", ".js"}
    named = []
    for path in (ROOT / name for name in listed.split("\0") if name):
        if path.suffix in binary or not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        named += [f"{path.relative_to(ROOT)}: {found[0]}" for found in [machine.search(text)] if found]
    assert not named
