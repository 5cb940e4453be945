"""Every notebook runs, and what is committed of it is one clean run that a stranger can read."""

import ast
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_data import write_idx

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return request.param


def code(path):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_there_is_one():
    assert ROOT / "ddpm.ipynb" in NOTEBOOKS


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Each notebook run in a real kernel and an empty folder, on a few stand-ins for digits.

    All at once, as a kernel spends most of its time on starting.
    """
    root = tmp_path_factory.mktemp("notebooks")
    write_idx(root / "data" / "MNIST" / "raw", n_train=80, n_test=80)

    def run(path):
        folder = root / path.stem
        folder.mkdir()
        node = nbformat.read(path, as_version=4)
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(node, timeout=300, kernel_name="python3", resources=resources).execute()
        return node, folder

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setenv(
            "OMP_NUM_THREADS", "1"
        )  # as kernels with more threads than cores wait for each other
        patch.setenv("DIFFUSION_BUDGET", "smoke")
        patch.setenv("DIFFUSION_DATA", str(root / "data"))
        patch.setenv("PYTHONPATH", str(ROOT))
        running = {path: pool.submit(run, path) for path in NOTEBOOKS}
    return running


def test_it_runs_in_the_smoke_budget(notebook, executed):
    node, folder = executed[notebook].result()
    assert any("smoke" in str(output) for output in node.cells[1].outputs)
    runs = list((folder / "runs").iterdir())
    assert runs
    assert all((run / "ema.safetensors").exists() for run in runs)


def test_what_is_committed_is_one_clean_run(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert "| budget | full |" in str(cells[0].outputs)


def test_it_is_thin(notebook):
    cells = code(notebook)
    assert len(cells) <= 12
    assert notebook.stat().st_size < 1_000_000
    heavy = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While)
    for cell in cells:
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, heavy)]


def test_it_names_no_machine(notebook):
    text = notebook.read_text()
    assert not re.search(r"/(home|root|tmp|work|Users)/|site-packages|[A-Z]:\\\\", text)
