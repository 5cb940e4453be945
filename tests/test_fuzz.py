"""Files that were changed at random: refused with the documented errors, or read; never executed.

Every kind of file is changed a thousand times, from fixed seeds.  Meanwhile the process
may not take more than a gigabyte of memory beyond what it has.
"""

import copy
import io
import json
import os
import pickle
import random
import re
import struct
import sys
import warnings
import zlib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from safetensors.torch import save_file

from diffusion_lib import compare, config, data, evaluation, schedules
from diffusion_lib.config import Experiment
from diffusion_lib.denoiser import Denoiser
from diffusion_lib.networks.unet import UNet, UNetConfig
from diffusion_lib.system import files
from diffusion_lib.training import TrainConfig, Trainer
from tests.helpers import STATE_FORMAT, is_own

pytestmark = pytest.mark.slow
N = 1000
ROOM = 2**30  # bytes
SMALL = UNetConfig((1, 8, 8), 4, (1,), num_blocks=1, attention=(), dropout=0.1)
STUDY = Path(__file__).parent.parent / "other_tests" / "mnist" / "small_backbone.json"
WEIRD = [
    *(None, True, -1, 0, 3, 1.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**30, 10**400),
    *("", "x" * 10_000, "\ud800", "🙂\u202e\x00", "__import__('os')", "../../../etc/passwd"),
    *([], {}, [[]], [1] * 50, {"a": {}}, [10**9] * 3),
]


@pytest.fixture(autouse=True)
def bounded(tmp_path, monkeypatch):
    """A folder of one's own, in which nothing new may appear, and a bound on the memory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # these need not survive a power cut
    if sys.platform != "linux":
        yield
    else:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        before = resource.getrlimit(resource.RLIMIT_AS)
        most = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert list(folder.iterdir()) == []  # where a payload would write


class Bomb:
    def __reduce__(self):
        return open, ("executed", "w")


def changed(content: bytes, draw: random.Random) -> bytes:
    """Bytes with one to three changes."""
    for _ in range(draw.randint(1, 3)):
        at, length = draw.randrange(len(content) + 1), draw.choice([1, 2, 8, 100])
        one = bytearray(content)
        kind = draw.randrange(7)
        if kind == 0 and content:
            one[at % len(one)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del one[at : at + length]
        elif kind == 2:
            one[at:at] = draw.randbytes(length)
        elif kind == 3:
            one[at:at] = one[at : at + length]
        elif kind == 4:
            del one[at:]
        elif kind == 5:
            one[at : at + length] = draw.choice([b"\x00", b"\xff", b"9", b"["]) * length
        else:
            other = draw.randrange(len(content) + 1)
            one[at : at + length] = one[other : other + length]
        content = bytes(one)
    return content


def changed_json(value, draw: random.Random):
    """A JSON value with one to three parts replaced, dropped, doubled or renamed."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        places = [
            (node, key)
            for node in nodes(value)
            for key in (node if isinstance(node, dict) else range(len(node)))
        ]
        if not places:
            break
        node, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[draw.choice(["", "format", str(key).upper(), key + "\u0301"])] = node.pop(key)
        elif kind == 2:
            node[key] = [copy.deepcopy(node[key]) for _ in range(3)]
        else:
            node[key] = copy.deepcopy(draw.choice(WEIRD))
    return value


def nodes(value):
    """All lists and dicts in a JSON value."""
    if isinstance(value, dict | list):
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from nodes(part)


def changed_text(text: str, draw: random.Random) -> str:
    """A JSON text changed as text, as a value, or nested without end."""
    kind = draw.randrange(10)
    if kind == 0:
        at = draw.randrange(len(text))
        return text[:at] + draw.choice(["[" * 20_000, '{"a":' * 20_000, "9" * 5000]) + text[at:]
    if kind < 4:
        return changed(text.encode(), draw).decode(errors="replace")
    return json.dumps(changed_json(json.loads(text), draw))


def refused(call, *kinds, names="") -> bool:
    """Whether a call raises one of the documented errors; any other error fails the test."""
    try:
        call()
    except kinds as error:
        told = error
    else:
        return False
    assert is_own(told), repr(told)
    assert names in str(told)
    return True


def small(**others) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(UNet(replace(SMALL, **others)), schedules.linear(100))


def change_header(path: Path, draw: random.Random) -> bytes:
    """A safetensors file whose own header (names, types, shapes, places) was changed."""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(changed_json(json.loads(content[8 : 8 + size]), draw)).encode()
    size = len(header) if draw.random() < 0.9 else draw.choice([0, 2**40, 2**64 - 1])
    return struct.pack("<Q", size) + header + content[8 + size :]


def variants(path: Path, draw: random.Random, without: Path) -> bytes:
    """A safetensors file changed in one of several ways; `without` is it without a checksum."""
    kind = draw.randrange(4)
    if kind == 0:
        return pickle.dumps(Bomb()) if draw.random() < 0.1 else changed(path.read_bytes(), draw)
    if kind == 1:
        return changed(without.read_bytes(), draw)
    if kind == 2:
        return change_header(without, draw)
    tensors, metadata = files.read_tensors(without, FORMATS[path.stem])
    if "denoiser" in metadata and draw.random() < 0.7:
        metadata["denoiser"] = changed_text(metadata["denoiser"], draw)
    else:
        form = {"format": FORMATS[path.stem]}
        told = changed_json(metadata, draw).items()
        metadata = {name: str(value).encode(errors="replace").decode() for name, value in told}
        metadata |= form
    if draw.random() < 0.5:
        name = draw.choice(sorted(tensors))
        tensors[draw.choice([name, "x", "optimizer.a.b", "optimizer.999.step"])] = draw.choice(
            [tensors.pop(name).to(torch.int32), torch.zeros(3), torch.tensor(1j), torch.zeros(0, 3)]
        )
    files.write_tensors(path.with_name("changed"), tensors, metadata)  # a checksum that is right
    return path.with_name("changed").read_bytes()


FORMATS = {"denoiser": "diffusion_lib denoiser 1", "state": STATE_FORMAT}


def both(path: Path) -> Path:
    """The same file without its checksum, as older versions wrote them."""
    tensors, metadata = files.read_tensors(path, FORMATS[path.stem])
    save_file(tensors, path.with_name("without"), metadata)
    return path.with_name("without")


def test_changed_denoisers_are_refused_or_read(tmp_path):
    path, file = tmp_path / "denoiser.safetensors", tmp_path / "a.safetensors"
    small().save(path)
    without, read = both(path), 0
    for n in range(N):
        file.write_bytes(variants(path, random.Random(n), without))
        read += not refused(lambda: Denoiser.load(file), ValueError, names=str(file))
    assert 0 < read < N / 2


def test_changed_training_states_are_refused_and_leave_the_trainer_alone(tmp_path):
    path, file = tmp_path / "state.safetensors", tmp_path / "a.safetensors"
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    trainer = Trainer(small(), TrainConfig(8, 2))
    list(islice(trainer.run(images), 2))
    trainer.save(path)
    before = [p.detach().clone() for p in trainer.denoiser.parameters()]
    without, read = both(path), 0
    for n in range(N // 4):  # as many parts as the file has, they take the longest
        file.write_bytes(variants(path, random.Random(n), without))
        if not refused(lambda: trainer.load(file), ValueError, names=str(file)):
            read += 1
            if read % 20 == 1:
                list(islice(trainer.run(images), 1))  # what was read can be gone on with
            trainer.load(path)
        elif n % 10 == 0:
            assert trainer.step == 2
            assert all(map(torch.equal, before, trainer.denoiser.parameters()))
    assert 0 < read < N / 8


@pytest.mark.parametrize("preset", ["mnist", "cifar10"])
def test_changed_experiments_are_refused_or_read(preset):
    text, read = config.PRESETS[preset].to_json(), 0
    for n in range(N):
        draw, found = random.Random(n), []
        changed_one = changed_text(text, draw)
        if refused(lambda: found.append(Experiment.from_json(changed_one)), ValueError):  # noqa: B023
            continue
        read += 1
        (experiment,) = found
        if n % 3 == 0:
            refused(experiment.describe, ValueError)
            refused(experiment.to_json, ValueError)
    assert 0 < read < N / 2


def test_changed_studies_are_refused_or_read(tmp_path):
    text, path, read = STUDY.read_text(), tmp_path / "study.json", 0
    for n in range(N):
        content = changed_text(text, random.Random(n)).encode(errors="surrogatepass")
        path.write_bytes(changed(content, random.Random(n)) if n % 10 == 0 else content)
        read += not refused(lambda: compare.read_study(path), ValueError, names=str(path))
    assert 0 < read < N / 2


@pytest.mark.parametrize(
    ("load", "form"),
    [(evaluation.load, "diffusion_lib metrics 1"), (compare.load, "diffusion_lib study 1")],
)
def test_changed_records_are_refused_or_read(tmp_path, load, form):
    text, path = json.dumps({"format": form, "run": "a", "samples": [1, {"b": 2}]}), tmp_path / "r"
    read = 0
    for n in range(N):
        content = changed_text(text, random.Random(n)).encode(errors="surrogatepass")
        path.write_bytes(changed(content, random.Random(n)) if n % 10 == 0 else content)
        read += not refused(lambda: load(path), ValueError, names=str(path))
    assert 0 < read < N


def pictures() -> dict[str, bytes]:
    """Whole pictures of every kind that is read."""
    rgb = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    found = {}
    for ending in ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "tga", "jp2", "avif"):
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, Image.registered_extensions()[f".{ending}"])
        found[ending] = file.getvalue()
    for name, mode, options in (("deep", "I;16", {}), ("palette", "P", {}), ("grey", "LA", {})):
        file = io.BytesIO()
        Image.new(mode, (12, 12)).save(file, "PNG", **options)
        found[f"{name}.png"] = file.getvalue()
    return found


def bomb(side: int) -> bytes:
    """A whole PNG of a few kilobytes that takes side x side bytes of memory, and more in color."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def text_bomb(png: bytes) -> bytes:
    """A whole PNG with a text of a few megabytes that is unpacked to four gigabytes."""
    packer = zlib.compressobj()
    first = packer.compress(bytes(2**26)) + packer.flush(zlib.Z_FULL_FLUSH)
    more = first[2:]  # without the header of the stream
    text = b"zTXta\0\0" + first + more * 63
    packed = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return png[:33] + packed + png[33:]  # behind the first part


def test_a_file_that_describes_a_giant_network_is_refused_before_it_is_made(tmp_path):
    small().save(tmp_path / "denoiser.safetensors")
    tensors, metadata = files.read_tensors(tmp_path / "denoiser.safetensors", FORMATS["denoiser"])
    for width, message in ((40_000, "belongs to another network"), (2**64, "no memory holds")):
        told = json.loads(metadata["denoiser"])
        told["network"]["width"] = width
        files.write_tensors(tmp_path / "a", tensors, metadata | {"denoiser": json.dumps(told)})
        with pytest.raises(ValueError, match=message):
            Denoiser.load(tmp_path / "a")
    giant = replace(config.MNIST, network=replace(config.MNIST.network, width=400_000))
    with pytest.raises(ValueError, match=r"GB of memory: use a smaller width"):
        giant.build()


def test_changed_pictures_are_left_out_or_read(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: Path("executed").touch())
    place, whole = tmp_path / "pictures", pictures()
    place.mkdir()
    for n in range(N):
        draw = random.Random(n)
        name = draw.choice(sorted(whole))
        (place / f"{n}.{name}").write_bytes(changed(whole[name], draw))
    other = {
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "pickle.jpg": pickle.dumps(Bomb()),
        "bomb.png": bomb(12_000),
        "text.png": text_bomb(whole["png"]),
        "bomb.gif": whole["gif"][:6] + b"\xff\xff\xff\xff" + whole["gif"][10:],
    }
    for name, content in other.items():
        (place / name).write_bytes(content)
    for name, content in whole.items():
        (place / f"whole.{name}").write_bytes(content)
    skipped = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd pictures
        found = data.folder(place, 8, broken=skipped.extend)
    broken = [file.name for file in skipped]
    assert all(re.fullmatch(r".*[^( ].*", file.reason) for file in skipped)  # never without
    assert len(found.images) + len(broken) == N + len(other) + len(whole)
    assert set(other) <= set(broken)
    assert not [name for name in broken if name.startswith("whole")]
    assert N / 10 < len(broken) < N


def test_the_bound_on_the_memory_is_one():
    if sys.platform == "linux":
        with pytest.raises(RuntimeError, match="allocate"):
            torch.zeros(8 * ROOM, dtype=torch.uint8)
