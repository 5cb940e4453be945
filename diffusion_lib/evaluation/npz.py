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
            images = np.asarray(file["arr_0"])
    except Exception as error:  # a damaged file can lead to any of them
        # numpy takes any other file for a pickle, and says how to load that.
        reason = error if is_zipfile(path) else "it is not an .npz file"
        raise ValueError(f"{path} does not hold {expected} ({reason})") from error
    is_uint8 = images.dtype == np.uint8 and images.shape[1:] == (h, w, c) and len(images) > 0
    if not is_uint8 or images.max() <= 1:
        form = f"{images.dtype} {list(images.shape)}"
        if images.size and images.dtype.kind in "fiu":
            form += f" of values {images.min():g} to {images.max():g}"
        raise ValueError(f"{path} holds {form}; expected {expected}, pixels being 0..255")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
