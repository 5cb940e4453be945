"""How images and their clones differ: correlations, agreement, and the fields of their changes."""

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from other_tests.editing import measure


def correlation(before: Tensor, after: Tensor, labels: Tensor) -> float:
    """Correlate numbers [N, ...] before and after, over all of them, less the mean of each label.

    Those are means of each number: a 1 that is narrower than an 8 before and after says nothing.
    """
    share = F.one_hot(labels).double()
    means = share / share.sum(0).clamp(min=1)
    rows = (x.reshape(len(x), -1).double() for x in (before, after))
    a, b = (x - share @ (means.T @ x) for x in rows)
    squares = (a.square().sum() * b.square().sum()).sqrt()
    return ((a * b).sum() / squares.clamp(min=1e-12)).item()


def agreement(labels: Sequence[Tensor]) -> float:
    """Return phi: the share of images whose clones, labels [N] each, have one class."""
    return fmean((a == b).double().mean().item() for a, b in combinations(labels, 2))


def susceptibility(u: Tensor) -> float:
    """Compute chi = sum_ij C_ij / sum_i C_ii of fields u [N, H, W].

    C_ij = mean(u_i u_j) - mean(u_i) mean(u_j) over the N fields, i and j pixels: as in [Sclocchi
    2025, arXiv 2410.13770], where i and j are patches and u_i is the size of a change in CLIP's
    features, and here its square in pixels, summed over channels.  So chi is (1/D) times the sum
    over pairs of pixels of their covariance in units of the mean variance of a pixel: 1 if pixels
    change independently, D if all change by one number.  It is the variance of the sum over that
    sum, which needs no pairs.
    """
    u = u.flatten(1).double()
    spread = u.var(0, correction=0).sum()
    return (u.sum(1).var(correction=0) / spread.clamp(min=1e-12)).item()


def correlation_length(u: Tensor) -> float:
    """Return the distance in pixels at which C(r) of fields u [N, H, W] falls to C(0) / e.

    C(r) is the mean of the C_ij of `susceptibility` over the pairs of pixels whose distance rounds
    to r pixels, at the mean of their distances; it is taken as linear between those.
    """
    h, w = u.shape[1:]
    size = (2 * h, 2 * w)  # padded, as a Fourier transform goes around the edges

    def pair_sums(x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x, s=size).abs().square().mean(0), s=size)

    u = u.double()
    sums, pairs = pair_sums(u - u.mean(0)), pair_sums(torch.ones_like(u[:1]))
    down, right = (torch.fft.fftfreq(s, 1 / s).double() for s in size)
    distance = torch.hypot(down[:, None], right)
    at = distance.round().long().flatten()
    each = (sums, pairs, pairs * distance)
    c, count, far = (x.new_zeros(int(at.max()) + 1).index_add(0, at, x.flatten()) for x in each)
    inside = slice(min(h, w))
    curve, where = (c / count)[inside], (far / count)[inside]
    return measure.falls_below(curve / curve[0], 1 / torch.e, where.tolist()).item()
