"""Digits without labels after 90 s: 100 clusters of the images (k-means) in the place of labels.

Most digits that nobody can read lie between two others. A network that is told a cluster need not
decide which digit it draws; the clusters need no labels [Hu 2022, arXiv 2210.06462]. Samples are of
the clusters of random training images, guided at 2 as if clusters were labels.

Times mostly noisy, Muon and the network: as in labels_20s, but more steps and a longer average.
100 clusters: with 40, and 1,200 steps, as many are sure only at guidance 3, whose recall is 0.38.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.speedrun import Recipe, Trained
from benchmarks.speedrun.recipes import labels_20s
from diffusion_lib import rng
from diffusion_lib.data import Images


@dataclass(frozen=True)
class Clusters(Recipe):
    """A recipe of a network with labels that is told clusters of the images instead."""

    def train(self, images: Images, seed: int) -> Trained:
        generator = rng.generator(seed)
        clusters = k_means(images.images, self.experiment.network.classes, generator)
        labels = clusters[torch.randperm(len(clusters), generator=generator)]
        return self._train(images._replace(labels=clusters), seed, labels)


def k_means(images: Tensor, k: int, generator: torch.Generator, num_steps: int = 10) -> Tensor:
    """Divide images into k clusters [Lloyd 1982] and return that of each, int64 [N].

    Args:
        images: uint8 [N, C, H, W].
        k: number of clusters.
        generator: draws the images at which the clusters begin.
        num_steps: number of times that clusters and their means are made from each other.
    """
    points = images.flatten(1) / 255
    means = points[torch.randperm(len(points), generator=generator)[:k]]
    clusters = torch.cdist(points, means).argmin(1)
    for _ in range(num_steps):
        sums = torch.zeros_like(means).index_add_(0, clusters, points)
        means = sums / clusters.bincount(minlength=k).clamp(min=1)[:, None]
        clusters = torch.cdist(points, means).argmin(1)
    return clusters


LABELS = labels_20s.RECIPE.experiment

RECIPE = Clusters(
    experiment=replace(
        LABELS,
        network=replace(LABELS.network, classes=100),
        train=replace(LABELS.train, num_steps=900, warmup_steps=90, ema_decay=0.99),
    ),
    guidance=2.0,
)
