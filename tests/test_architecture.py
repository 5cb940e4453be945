"""Rules of the house: imports point up the list, and functions take few parameters."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import diffusion_lib

PACKAGE = Path(diffusion_lib.__file__).parent
ROOT = PACKAGE.parent
# Each folder of code may import from itself and from these.
FOLDERS: dict[str, set[str]] = {"diffusion_lib": set()}
FOLDERS |= {"benchmarks": {"diffusion_lib"}, "other_tests": {"diffusion_lib", "benchmarks"}}
FOLDERS |= {"tests": {*FOLDERS}}

# Each module may import only what stands before it.
ORDER = [
    "system.torchvision",
    "system.guard",
    "system.progress",
    "system.files",
    "system.parallel",
    "system.interrupts",
    "system.device",
    "system.errors",
    "rng",
    "densities",
    "schedules",
    "posterior",
    "predictions",
    "networks.base",
    "networks.unet",
    "networks.transformer",
    "networks.mlp",
    "networks.autoencoder",
    "networks",
    "checkpoints",
    "data.images",
    "data.batching",
    "data.pictures",
    "data.folders",
    "data.sets",
    "data",
    "denoiser",
    "guidance",
    "interop",
    "losses",
    "bound",
    "samplers",
    "oracles",
    "editing",
    "metrics.features",
    "metrics.intervals",
    "metrics.likelihood",
    "metrics.samples",
    "metrics",
    "survival",
    "late_start",
    "train_config",
    "optimizers",
    "training",
    "style",
    "viz",
    "config.registry",
    "config.experiment",
    "config.presets",
    "config",
    "runs.folder",
    "runs.run",
    "runs.sampling",
    "runs.driver",
    "runs",
    "evaluation.npz",
    "evaluation.record",
    "evaluation.tables",
    "evaluation.measurement",
    "evaluation",
    "compare.record",
    "compare.study",
    "compare.tables",
    "compare",
    "cli",
    "__main__",
]
# These import nothing of ours at all.
ALONE = ["train_config", "rng", "schedules", "predictions", "networks.base"]
ALONE += [
    f"system.{name}"
    for name in ("torchvision", "guard", "files", "parallel", "interrupts", "device", "errors")
]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def file(module: str) -> Path:
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def tree(module: str) -> ast.Module:
    return parse(file(module))


def named(node: ast.ImportFrom) -> set[str]:
    """The modules of ours that a line imports, or imports from."""
    inner = (node.module or "").removeprefix("diffusion_lib").removeprefix(".")
    names = {f"{inner}.{alias.name}".strip(".") for alias in node.names}
    return {name if name in ORDER or not inner else inner for name in names} - {"__version__"}


def imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion_lib"):
            found |= named(node)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("diffusion_lib") for alias in node.names)
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
    return found


def test_every_module_has_its_place():
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stat().st_size]
    parts = [path.with_suffix("").parts for path in files]
    modules = {".".join(part for part in names if part != "__init__") for names in parts}
    assert modules - {""} == {*ORDER}


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_up(module):
    above = [] if module in ALONE else ORDER[: ORDER.index(module)]
    assert imports(module) <= set(above)


@pytest.mark.parametrize("module", ORDER)
def test_at_most_six_parameters_and_no_kwargs(module):
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            arguments = [a.arg for a in node.args.args + node.args.kwonlyargs if a.arg != "self"]
            assert len(arguments) <= 6, f"{module}.{node.name} has {len(arguments)} parameters"
            passes_on = (module, node.name) == ("system.guard", "__call__")
            assert node.args.kwarg is None or passes_on, f"{module}.{node.name} takes **"


def imported(path: Path) -> set[str]:
    """The full names of all that a file imports, wherever it does."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_only_what_stands_below_them(folder):
    others = {*FOLDERS} - FOLDERS[folder] - {folder}
    for path in (ROOT / folder).rglob("*.py"):
        found = {name for name in imported(path) if name.split(".")[0] in others}
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_no_test_module_imports_another():
    """What two of them need stands in `tests.helpers` or in a fixture."""
    for path in (ROOT / "tests").glob("*.py"):
        found = {name for name in imported(path) if re.search(r"\btest_", name)}
        assert not found, f"{path.name} imports {found}"


# Read first, and each in one sitting; the mathematics of training and sampling, and what it serves.
CORE = ["schedules", "predictions", "posterior", "denoiser", "guidance", "losses", "samplers"]
FLAT = {*CORE, "rng", "bound", "oracles"}


def length(module: str) -> int:
    return len(file(module).read_text().splitlines())


@pytest.mark.parametrize("module", ORDER)
def test_a_file_is_read_in_one_sitting(module):
    assert length(module) <= (300 if module in FLAT else 450)


def test_the_core_is_small():
    assert sum(map(length, CORE)) <= 1100


def test_the_library_grows_no_further():
    assert sum(map(length, ORDER)) <= 9980


# Everyday words in the place of the field's: a value's name is a noun, a function's a verb.
DIALECT = "told untold litter suit asked found kept shown alike gone mine theirs beside strangers"
DIALECT = {*f"{DIALECT} obedience looked".split()}


def identifiers(path: Path) -> set[str]:
    """All names that a file gives: to functions, classes, arguments, values and attributes."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names - {"found_inf"}  # an attribute of PyTorch's optimizers


@pytest.mark.parametrize("folder", ["diffusion_lib", "other_tests", "benchmarks"])
def test_names_are_the_words_of_the_field(folder):
    dialect = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / folder).rglob("*.py")
        for name in identifiers(path)
        if DIALECT & {*name.lower().split("_")}
    }
    assert dialect == set()


def test_a_training_needs_no_pictures():
    """Neither matplotlib nor IPython: what is imported at the top of a module, and of those."""

    def at_the_top(module):
        names = set()
        for line in tree(module).body:
            if isinstance(line, ast.ImportFrom) and (line.module or "").startswith("diffusion_lib"):
                names |= named(line)
            elif isinstance(line, ast.Import):
                names |= {alias.name for alias in line.names}
            elif isinstance(line, ast.ImportFrom):
                names.add(line.module)
        return names

    seen, todo = set(), ["runs", "cli"]
    while todo:
        found = at_the_top(todo.pop())
        assert not {name for name in found if name.split(".")[0] in ("matplotlib", "IPython")}
        todo += [name for name in found - seen if name in ORDER]
        seen |= found
    assert "viz" not in seen
