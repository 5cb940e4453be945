"""The command that measures all on a GPU: no part takes the others with it."""

import json
import os
import signal
import sys

import pytest

from benchmarks import common, gpu
from benchmarks.gpu import Part

HANGS = "import time; time.sleep(60)"


@pytest.fixture
def folder(tmp_path):
    """A folder of records, with one from before."""
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "old.json").write_text("{}")
    os.utime(folder / "old.json", (0, 0))
    return folder


def records_a(folder):
    return ["-c", f"open({str(folder / 'new.json')!r}, 'w').write('{{}}')"]


def test_each_part_runs_whatever_the_others_do(tmp_path, folder):
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    out, missing = tmp_path / "out", tmp_path / "missing"
    parts = [
        Part("hangs", ["-c", f"import os; os.system('sleep 60 > {pipe}')"], 1),
        Part("fails", ["-c", "print('why'); raise SystemExit(3)"], 60),
        Part("has no data", ["-c", ""], 60, missing),
        Part("works", records_a(folder), 60),
    ]
    report = gpu.run(parts, 100, folder, out)

    assert json.loads((out / "gpu.json").read_text()) == report
    assert [*report] == [part.name for part in parts]
    assert report["hangs"]["stopped"] == "it took longer than 1 s"
    assert 1 <= report["hangs"]["seconds"] < 20
    assert os.read(reader, 1) == b""  # the process that it started is gone; else: BlockingIOError
    os.close(reader)
    assert report["fails"]["exit status"] == 3
    assert report["fails"]["last output"] == (out / "fails.log").read_text() == "why\n"
    assert report["has no data"] == {"left out": f"{missing} does not exist"}
    assert report["works"]["exit status"] == 0
    assert {path.name for path in out.glob("*.json")} == {"gpu.json", "new.json"}


def test_the_deadline_stops_a_part_and_leaves_out_the_rest(tmp_path, folder):
    parts = [Part("long", ["-c", HANGS], 60), Part("late", records_a(folder), 60)]
    report = gpu.run(parts, 0.5, folder, tmp_path / "out")
    assert report["long"]["exit status"] == -signal.SIGKILL
    assert report["late"] == {"left out": "no time was left"}
    assert not (folder / "new.json").exists()


def test_what_is_finished_survives_a_signal(tmp_path, folder):
    stop = f"import os; os.kill(os.getppid(), {int(signal.SIGTERM)}); {HANGS}"
    parts = [Part("works", records_a(folder), 60), Part("stops all", ["-c", stop], 60)]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    try:
        with pytest.raises(SystemExit, match="stopped"):
            gpu.run(parts, 100, folder, tmp_path / "out")
    finally:
        signal.signal(signal.SIGTERM, before)
    report = json.loads((folder / "gpu.json").read_text())
    assert report["works"]["exit status"] == 0
    assert [*report["stops all"]] == ["started"]
    assert (tmp_path / "out/new.json").exists()


def test_every_part_is_a_module_and_the_parts_have_names_of_their_own():
    names = [part.name for part in gpu.PARTS]
    assert len({*names}) == len(names)
    modules = {part.arguments[1] for part in gpu.PARTS} - {"pytest"}
    for module in modules - {"benchmarks.speedrun"}:
        assert (common.FOLDER.parent / f"{module.replace('.', '/')}.py").exists()
    assert {part.needs.name for part in gpu.PARTS if "speedrun" in part.name} == {"MNIST"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [(["forwards"], "no part is called 'forwards'"), (["forward"], "torch finds no GPU here")],
)
def test_what_cannot_be_run_is_said(arguments, error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert error in capsys.readouterr().err + str(stop.value)
