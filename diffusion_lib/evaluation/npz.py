"""Images from an .npz file, as the command `sample` writes it."""

from collections.abc import Sequence
from pathlib import Path
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor


def read_samples(path: str | Path, image_shape: Sequence[int]) -> Tensor:
    """Read images from an .npz file such as `sample --out` writes, uint8 [N, C, H, W].

    Args:
        path: file with an array arr_0, uint8 [N, H, W, C].
        image_shape: (C, H, W) that its images must have.

    Raises:
        FileNotFoundError, ValueError: no such file; not an .npz; an array of another name, dtype
            or shape.  Pickled arrays are never loaded.
    """
    c, h, w = image_shape
    expected = f"an array arr_0 of uint8 [N, {h}, {w}, {c}], as `sample --out x.npz` writes it"
    if not Path(path).is_file():
        missing = "is a folder" if Path(path).is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {missing}: give an .npz file that holds {expected}")
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file["arr_0"]
    except Exception as error:  # a damaged file can lead to any of them
        is_npy = Path(path).suffix.lower() == ".npy"
        hint = f". np.savez('x.npz', np.load({str(path)!r})) makes one" if is_npy else ""
        # numpy takes any other file for a pickle, and says how to load that.
        reason = error if is_npy or is_zipfile(path) else "it is not an .npz file"
        raise ValueError(f"{path} does not hold {expected} ({reason}){hint}") from error
    if not isinstance(images, np.ndarray):
        raise ValueError(f"{path} does not hold {expected}, but raw bytes of that name")
    if images.dtype != np.uint8 or images.shape[1:] != (h, w, c) or len(images) == 0:
        form = f"{images.dtype} {list(images.shape)}"
        if images.dtype.kind == "f" and images.size:
            finite = np.isfinite(images).all()
            values = f"values {images.min():g} to {images.max():g}" if finite else "NaN or infinity"
            form += f" with {values}"
        raise ValueError(f"{path} holds {form}; expected {expected}")
    if images.max() <= 1:
        raise ValueError(
            f"{path} holds values 0 to {images.max()}; expected {expected}, pixels being 0..255"
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
