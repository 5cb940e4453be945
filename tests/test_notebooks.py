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
OTHERS = [ROOT / "other_tests" / name for name in ("mnist/guidance.ipynb", "editing/editing.ipynb")]
NOTEBOOKS = [*sorted(ROOT.glob("*.ipynb")), *OTHERS]  # train, sample, measure
# Draw what was measured, from records.
STUDIES = sorted(set(ROOT.glob("other_tests/*/*.ipynb")) - set(OTHERS))

every = pytest.mark.parametrize("notebook", [*NOTEBOOKS, *STUDIES], ids=lambda path: path.name)
training = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)


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
        folder = path.parent
        if path in NOTEBOOKS:
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
        running = {path: pool.submit(run, path) for path in [*NOTEBOOKS, *STUDIES]}
    return running


@pytest.mark.parametrize("notebook", STUDIES, ids=lambda path: path.name)
def test_it_draws_the_committed_records_again(notebook, executed):
    node, _ = executed[notebook].result()
    committed = nbformat.read(notebook, as_version=4)
    tables = [
        [output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.data]
        for cells in (node.cells, committed.cells)
        for cell in cells
        if cell.cell_type == "code"
    ]
    assert tables[: len(tables) // 2] == tables[len(tables) // 2 :]
    assert any(tables)


@training
def test_it_runs_in_the_smoke_budget(notebook, executed):
    node, folder = executed[notebook].result()
    assert any("smoke" in str(output) for output in node.cells[1].outputs)
    runs = list((folder / "runs").iterdir())
    assert runs
    assert all((run / "ema.safetensors").exists() for run in runs)


@every
def test_what_is_committed_is_one_clean_run(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5


@training
def test_what_is_committed_is_of_the_full_budget(notebook):
    assert "| budget | full |" in str(code(notebook)[0].outputs)


@every
def test_it_is_thin(notebook):
    cells = code(notebook)
    assert len(cells) <= 12
    assert notebook.stat().st_size < 1_000_000
    heavy = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While)
    for cell in cells:
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, heavy)]


@every
def test_it_names_no_machine(notebook):
    text = notebook.read_text()
    assert not re.search(r"/(home|root|tmp|work|Users)/|site-packages|[A-Z]:\\\\", text)
