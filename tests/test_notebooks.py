"""Every notebook runs, and what is committed of it is one clean run that a stranger can read."""

import ast
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import write_idx

ROOT = Path(__file__).parent.parent
OTHERS = [
    ROOT / "other_tests" / name
    for name in ("mnist/guidance.ipynb", "mnist/flow.ipynb", "editing/editing.ipynb")
]
NOTEBOOKS = [*sorted(ROOT.glob("*.ipynb")), *OTHERS]  # train, sample, measure
# Draw what was measured, from records.
STUDIES = sorted(set(ROOT.glob("other_tests/*/*.ipynb")) - set(OTHERS))

# What a kernel runs first: the smoke budget also makes the network small, and no preview is drawn
# for TensorBoard, which together take most of the time.
SMALL = """
from dataclasses import replace
from diffusion_lib import config, runs
def smoke(experiment, full_size=config.smoke, replace=replace):  # %reset forgets other names
    experiment = full_size(experiment)
    size = experiment.network.image_shape[-1]
    small = dict(width=8, multipliers=(1, 1), num_blocks=1, attention=(), patch=size // 4)
    return replace(experiment, network=replace(experiment.network, **small))
config.BUDGETS["smoke"] = smoke
runs.find_spec = lambda name: None
"""

# Between two notebooks.
ENTER = """%reset -f
import os
os.chdir({!r})
os.environ["DIFFUSION_RUNS"] = {!r}
del os
"""

every = pytest.mark.parametrize("notebook", [*NOTEBOOKS, *STUDIES], ids=lambda path: path.name)
training = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)


def committed(path):
    """The text of a notebook as it was committed: whoever has run it since has other outputs."""
    command = ["git", "show", f"HEAD:{path.relative_to(ROOT).as_posix()}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True)
    return shown.stdout.decode() if shown.returncode == 0 else path.read_text()


def code(path):
    return [c for c in nbformat.reads(committed(path), as_version=4).cells if c.cell_type == "code"]


def test_there_is_one():
    assert ROOT / "ddpm.ipynb" in NOTEBOOKS


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Each notebook run in its own folder, on a few stand-ins for digits.

    In two real kernels at once, one notebook after the other, as a kernel spends much of its time
    on starting; what one has defined is forgotten before the next.
    """
    root = tmp_path_factory.mktemp("notebooks")
    write_idx(root / "data" / "MNIST" / "raw", n_train=80, n_test=80)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "OMP_NUM_THREADS": "1",  # kernels with more threads than cores wait for each other
        "DIFFUSION_BUDGET": "smoke",
        "DIFFUSION_DATA": str(root / "data"),
        "IPYTHONDIR": str(root / "ipython"),
    }
    (root / "ipython" / "profile_default" / "startup").mkdir(parents=True)
    (root / "ipython" / "profile_default" / "startup" / "small.py").write_text(SMALL)

    def run(paths):
        nodes, cells = [nbformat.read(path, as_version=4) for path in paths], []
        for path, node in zip(paths, nodes, strict=True):
            enter = ENTER.format(str(path.parent), str(root / path.stem))
            cells += [nbformat.v4.new_code_cell(enter), *node.cells]
        for number, cell in enumerate(cells):  # the notebooks number theirs alike
            cell["id"] = str(number)
        whole = nbformat.v4.new_notebook(cells=cells)
        client = NotebookClient(whole, timeout=300, kernel_name="python3")
        client.execute(env=environment)
        for node in nodes:
            _, *node.cells = whole.cells[: 1 + len(node.cells)]
            del whole.cells[: 1 + len(node.cells)]
        return dict(zip(paths, nodes, strict=True))

    before, every_one = beside_notebooks(), [*NOTEBOOKS, *STUDIES]
    with ThreadPoolExecutor(2) as pool:
        nodes = {}
        for done in pool.map(run, (every_one[::2], every_one[1::2])):
            nodes |= done
    return {p: (n, root / p.stem) for p, n in nodes.items()}, beside_notebooks() - before


def beside_notebooks():
    folders = {path.parent for path in [*NOTEBOOKS, *STUDIES]}
    return {path for folder in folders for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", STUDIES, ids=lambda path: path.name)
def test_it_draws_the_committed_records_again(notebook, executed):
    node, _ = executed[0][notebook]
    committed = nbformat.read(notebook, as_version=4)
    tables = [
        [output.data["text/markdown"] for output in cell.outputs if "text/markdown" in output.data]
        for cells in (node.cells, committed.cells)
        for cell in cells
        if cell.cell_type == "code"
    ]
    assert tables[: len(tables) // 2] == tables[len(tables) // 2 :]
    assert any(tables)


@pytest.mark.slow
@training
def test_it_runs_in_the_smoke_budget(notebook, executed):
    node, folder = executed[0][notebook]
    assert any("smoke" in str(output) for output in node.cells[1].outputs)
    runs = list(folder.iterdir())
    assert runs
    assert all((run / "ema.safetensors").exists() for run in runs)


@pytest.mark.slow
def test_they_write_nothing_beside_themselves(executed):
    _, new = executed
    assert not {path for path in new if path.name != "__pycache__"}


@pytest.mark.slow
@every
def test_an_executed_notebook_holds_no_bars(notebook, executed):
    node, _ = executed[0][notebook]
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if is_bar(output)]


def is_bar(output):
    shown = output.get("data", {}).keys()
    return output.output_type == "display_data" and shown in ({"text/html"}, {"text/plain"})


@every
def test_what_is_committed_is_one_clean_run(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr" or is_bar(output)]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5


@training
def test_what_is_committed_is_of_the_full_budget_as_the_readme_says(notebook):
    budget = "quick" if notebook.stem == "flow" else "full"
    assert f"| budget | {budget} |" in str(code(notebook)[0].outputs)


@pytest.mark.slow
@every
def test_it_is_thin(notebook):
    cells = code(notebook)
    assert len(cells) <= 12
    assert len(committed(notebook).encode()) < 900_000
    definitions, loops = (ast.FunctionDef, ast.ClassDef), (ast.For, ast.While)
    parts = [[*ast.walk(ast.parse(cell.source))] for cell in cells]
    assert not [node for nodes in parts for node in nodes if isinstance(node, definitions)]
    written_out = [nodes for nodes in parts if any(isinstance(node, loops) for node in nodes)]
    # The first notebook walks from noise to digits by hand, in one cell.
    assert len(written_out) == (notebook.name == "ddpm.ipynb")


@every
def test_it_names_no_machine(notebook):
    text = committed(notebook)
    assert not re.search(r"/(home|root|tmp|work|Users)/|site-packages|[A-Z]:\\\\", text)


@every
def test_links_lead_to_files_and_the_last_cell_names_the_next_notebook(notebook):
    cells = [c.source for c in nbformat.reads(committed(notebook), as_version=4).cells]
    links = re.findall(r"\]\((?!http)([^)#]+)", "\n".join(cells))
    assert not [link for link in links if not (notebook.parent / link).exists()]
    last = cells[-1].split("\n")[-1]
    assert last.startswith("**Next:** ")
    assert re.search(r"\]\([^)]*(\.ipynb|README\.md#)", last)


def test_no_text_holds_a_control_character():
    """A writer of JSON that is given \\bar or \\alpha leaves a backspace or a bell in a formula."""
    folders = [ROOT / name for name in ("benchmarks", "diffusion_lib", "other_tests", "tests")]
    files = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*"))]
    texts = {path: path.read_text() for path in files if path.suffix in (".md", ".py")}
    for notebook in [*NOTEBOOKS, *STUDIES]:
        for n, cell in enumerate(nbformat.read(notebook, as_version=4).cells):
            said = [output.get("text", "") for output in cell.get("outputs", [])]
            data = [output.get("data", {}) for output in cell.get("outputs", [])]
            said += [str(text) for kinds in data for kind, text in kinds.items() if "text/" in kind]
            texts[f"{notebook.name}, cell {n}"] = "\n".join([cell.source, *said])
    assert not {where for where, text in texts.items() if re.search(r"[\x00-\x08\x0b-\x1f]", text)}
