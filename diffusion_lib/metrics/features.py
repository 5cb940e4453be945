"""A small classifier for each family of data sets; distances are measured in its features.

Those of `metrics.fidelity` need a download and describe photographs; these need nothing and
describe the data at hand.  `other_tests.features` trains those in `assets`; `RELEASED` lists them.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lib import data
from diffusion_lib.system import files

ASSETS = Path(__file__).parents[1] / "assets"
_FORMAT = "diffusion_lib features 1"
_BATCH = 500

_DIGESTS = {
    "mnist": "21514453b4fbe2b9afc696d367b19a08eef874cd33b6a96e5fc1642fb0782506",
    "fashion_mnist": "f25602b6adcad365131a823e73b4f6df3301e07160af761e2ff791fdea7270d9",
    "cifar10_jpeg": "543529e78bd3a22d6af8b23a9d499c763412491ddc843dcf7c5571ce93a17fe4",
    # The first of this family, right on 81 %: records made before 2026-11-28 have its hash.
    "cifar10_jpeg_1": "f9ae6cbce9098b777e08081e46153fd87ca8cca4b06cc9558f7b17af235b6237",
}
# Data set, or another name -> file in assets and its SHA-256; both of CIFAR-10 share features.
RELEASED = {name: (f"features-{name}.safetensors", digest) for name, digest in _DIGESTS.items()}
RELEASED["cifar10"] = RELEASED["cifar10_jpeg"]


class ClassifierOutput(NamedTuple):
    """Features and class probabilities of N images."""

    features: Tensor  # [N, D], float64
    probabilities: Tensor  # of the classes, [N, K], float64


class Classifier(nn.Module):
    """Levels of convolutions and a pooling, a layer of `features` numbers, the classes.

    The pooling of level k follows conv{k}; conv{k}_2 and so on add to their input, and where there
    are any, the maps of the last level are pooled to their maxima.  Once it is trained, set
    `averages_mirrors` if features are to be the mean over an image and its mirror; `normalize` it.

    Args:
        image_shape: (C, H, W).
        classes: number of classes.
        features: number of features; they are taken before the non-linearity.
        widths: channels of each level.
        depth: convolutions of each level.
        stem: channels of a convolution in front, conv0; 0 for none.
    """

    scale: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int = 10,
        features: int = 64,
        widths: Sequence[int] = (32, 64),
        depth: int = 1,
        stem: int = 0,
    ) -> None:
        super().__init__()
        channels, height, width = self.image_shape = image_shape
        self.levels, self.depth = len(widths), depth
        self.conv0 = nn.Conv2d(channels, stem, 3, padding=1) if stem else None
        for k, (c_in, c_out) in enumerate(pairwise((stem or channels, *widths)), start=1):
            self.add_module(f"conv{k}", nn.Conv2d(c_in, c_out, 3, padding=1))
            for j in range(2, depth + 1):
                self.add_module(f"conv{k}_{j}", nn.Conv2d(c_out, c_out, 3, padding=1))
            height, width = height // 2, width // 2
        positions = height * width if depth == 1 else 1
        self.describe = nn.Linear(widths[-1] * positions, features)
        self.classify = nn.Linear(features, classes)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("scale", torch.ones(()))
        self.averages_mirrors = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D] and logits [B, classes] of images [B, C, H, W] in [-1, 1]."""
        h = torch.cat([x, x.flip(-1)]) if self.averages_mirrors else x
        h = F.relu(self.conv0(h)) if self.conv0 else h
        for k in range(1, self.levels + 1):
            h = F.relu(F.max_pool2d(self.get_submodule(f"conv{k}")(h), 2))
            for j in range(2, self.depth + 1):
                h = F.relu(h + self.get_submodule(f"conv{k}_{j}")(h))
        if self.depth > 1:
            h = h.amax((2, 3))
        features = self.describe(self.dropout(h.flatten(1)))
        if self.averages_mirrors:
            features = features.unflatten(0, (2, -1)).mean(0)
        return features, self.classify(self.dropout(F.relu(features)))

    @torch.no_grad()
    def extract_features(self, images: Tensor) -> ClassifierOutput:
        """Return features and class probabilities of uint8 images [N, C, H, W]."""
        images = data.check(images, self.image_shape)
        device = self.classify.weight.device
        self.eval()
        parts = [self(data.to_float(batch).to(device)) for batch in images.split(_BATCH)]
        features, logits = (torch.cat(part).double().cpu() for part in zip(*parts, strict=True))
        return ClassifierOutput(features / self.scale.double().cpu(), logits.softmax(1))

    def normalize(self, images: Tensor) -> None:
        """Scale the features so that their variances over these images are 1 on average.

        Distances then do not depend on how large a classifier happens to make its numbers.
        """
        features = self.extract_features(images).features
        self.scale *= features.var(0).mean().sqrt().float()

    def save(self, path: str | Path, about: dict[str, str]) -> str:
        """Write the weights with a description; return the file's SHA-256."""
        shape = "x".join(map(str, self.image_shape))
        about = about | ({"averages_mirrors": "True"} if self.averages_mirrors else {})
        files.write_tensors(path, self.state_dict(), {"format": _FORMAT, "shape": shape, **about})
        return _sha256(path)


def released(dataset: str) -> tuple[str, str]:
    """Return the file and SHA-256 of the released classifier for a data set, or refuse it."""
    if dataset not in RELEASED:
        raise ValueError(
            f"no feature network is released for {dataset!r}, only for {', '.join(RELEASED)}. "
            'Measure no samples ("n": 0 of the conditions), or train one as other_tests/features.py'
        )
    return RELEASED[dataset]


def add(dataset: str, path: str | Path) -> None:
    """Use a classifier of your own for a data set, given by its name, in this process."""
    RELEASED[dataset] = str(Path(path).resolve()), _sha256(path)


def load(dataset: str) -> Classifier:
    """Load the released classifier for a data set, on the CPU."""
    name, sha256 = released(dataset)
    return read(ASSETS / name, sha256)


def read(path: str | Path, sha256: str) -> Classifier:
    """Read a classifier from a file; another SHA-256 is refused."""
    tensors, metadata = files.read_tensors(path, _FORMAT)
    if (digest := _sha256(path)) != sha256:
        raise ValueError(
            f"{path} has the sha256 {digest[:16]}..., expected {sha256[:16]}...: distances in "
            "other features cannot be compared. Restore the file (git checkout), or list your own "
            "in features.RELEASED."
        )
    channels, height, width = map(int, metadata["shape"].split("x"))
    classes, features = tensors["classify.weight"].shape
    widths = [len(tensors[name]) for k in range(1, 10) if (name := f"conv{k}.bias") in tensors]
    depth = 1 + sum(f"conv1_{j}.bias" in tensors for j in range(2, 10))
    stem = len(tensors.get("conv0.bias", ()))
    classifier = Classifier((channels, height, width), classes, features, widths, depth, stem)
    classifier.load_state_dict(tensors)
    classifier.averages_mirrors = metadata.get("averages_mirrors") == "True"
    return classifier.eval()


def _sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
