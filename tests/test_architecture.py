"""Rules of the house: imports point up the list, and functions take few parameters."""

import ast
from pathlib import Path

import pytest

import diffusion_lib

PACKAGE = Path(diffusion_lib.__file__).parent

# Each module may import only what stands before it.
ORDER = [
    "_torchvision",
    "rng",
    "guard",
    "progress",
    "files",
    "parallel",
    "schedules",
    "posterior",
    "predictions",
    "unet",
    "pictures",
    "decoding",
    "data",
    "denoiser",
    "interop",
    "losses",
    "samplers",
    "editing",
    "features",
    "metrics",
    "training",
    "viz",
    "config",
    "runs",
    "evaluation",
    "compare",
    "__main__",
]
# These import nothing of ours at all.
ALONE = ["_torchvision", "rng", "guard", "files", "parallel", "schedules"]
ALONE += ["predictions", "unet"]


def imports(module: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusion_lib"):
            _, _, inner = node.module.partition(".")
            found |= {inner} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {n.split(".")[1] for n in names if n.startswith("diffusion_lib.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), "relative import"
    return found


def test_every_module_has_its_place():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_imports_point_up(module):
    above = [] if module in ALONE else ORDER[: ORDER.index(module)]
    assert imports(module) <= set(above)


@pytest.mark.parametrize("module", ORDER)
def test_at_most_six_parameters_and_no_kwargs(module):
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [a.arg for a in node.args.args + node.args.kwonlyargs if a.arg != "self"]
            assert len(arguments) <= 6, f"{module}.{node.name} has {len(arguments)} parameters"
            passes_on = (module, node.name) in {("guard", "__call__"), ("progress", "__init__")}
            assert node.args.kwarg is None or passes_on, f"{module}.{node.name} takes **"


def test_a_training_needs_no_pictures():
    """Neither matplotlib nor IPython: what is imported at the top of a module, and of those."""

    def at_the_top(module):
        names = set()
        for line in ast.parse((PACKAGE / f"{module}.py").read_text()).body:
            inner = getattr(line, "module", "diffusion_lib")
            if isinstance(line, ast.Import | ast.ImportFrom) and inner == "diffusion_lib":
                names |= {alias.name for alias in line.names}
            elif isinstance(line, ast.ImportFrom):
                names.add(inner.removeprefix("diffusion_lib."))
        return names

    seen, todo = set(), ["runs", "__main__"]
    while todo:
        found = at_the_top(todo.pop())
        assert not {name for name in found if name.split(".")[0] in ("matplotlib", "IPython")}
        todo += [name for name in found - seen if name in ORDER]
        seen |= found
    assert "viz" not in seen
