"""What is installed is all that is needed: every module, feature network, release, dependency."""

import ast
import hashlib
import re
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest
from setuptools import build_meta

from diffusion_lib.metrics import features

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "diffusion_lib"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What a package is imported as -> what it is installed as.
DISTRIBUTIONS = {"PIL": "pillow", "IPython": "ipython", "huggingface_hub": "diffusers"}
DISTRIBUTIONS |= {"torch_fidelity": "torch-fidelity"}


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_feature_network(tmp_path, monkeypatch):
    copy = tmp_path / "copy"  # as building writes into the folder that it builds
    shutil.copytree(PACKAGE, copy / "diffusion_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    release = copy / "diffusion_lib" / "assets" / "released" / "tiny"
    shutil.copytree(ROOT / "tests" / "pinned" / "finished", release)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    wheel = tmp_path / build_meta.build_wheel(str(tmp_path))
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
        modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
        assert modules <= held
        for name, digest in features.RELEASED.values():
            assert hashlib.sha256(file.read(f"diffusion_lib/assets/{name}")).hexdigest() == digest
        for path in release.iterdir():
            assert file.read(str(path.relative_to(copy))) == path.read_bytes()
    # Nothing else: no tests, no benchmarks.
    assert {name.split("/")[0].split("-")[0] for name in held} == {"diffusion_lib"}


@pytest.mark.slow
def test_the_dependencies_are_what_the_package_imports():
    needed = distributions(PROJECT["dependencies"])
    optional = distributions(chain(*PROJECT["optional-dependencies"].values()))
    assert imported() - optional == needed
    assert not needed & optional


def test_what_is_pinned_installs_the_package_with_all_that_it_imports():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert "-e ." in lines
    assert distributions(PROJECT["dependencies"]) <= distributions(
        [line for line in lines if re.match(r"\w", line)]
    )


def test_nothing_touches_the_path_of_imports():
    folders = [ROOT / name for name in ("diffusion_lib", "other_tests", "benchmarks", "tests")]
    scripts = [path for folder in folders for path in folder.rglob("*.py")]
    notebooks = [*ROOT.glob("*.ipynb"), *ROOT.glob("other_tests/*/*.ipynb")]
    touches = re.compile(r"sys\.pat[h]\.|\"PYTHONPAT[H]\":")
    assert [path for path in [*scripts, *notebooks] if touches.search(path.read_text())] == []


def distributions(requirements: Iterable[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0].lower() for line in requirements}


def imported() -> set[str]:
    """Packages that the modules import, wherever they do it, by the names they are installed as."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"diffusion_lib"}
    return {DISTRIBUTIONS.get(name, name) for name in tops}
