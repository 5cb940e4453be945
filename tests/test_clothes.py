"""Edits of clothes from where `survival.how_far` says."""

from dataclasses import replace

import torch

from diffusion_lib import data
from diffusion_lib.data import Images
from diffusion_lib.networks import UNetConfig
from other_tests.editing import clothes
from tests.helpers import random_denoiser, random_images

TEN = Images(random_images(10, 1, 28, 28), torch.arange(10))
DENOISER = random_denoiser(
    clip=1.0, network=UNetConfig((1, 28, 28), 8, (1,), num_blocks=1, attention=(), classes=10)
)


def test_each_class_becomes_another_one():
    assert clothes.ANOTHER.sort().values.equal(torch.arange(10))
    assert not clothes.ANOTHER.eq(torch.arange(10)).any()


def test_a_sketch_has_squares_of_three_shades():
    drawn = clothes.sketch(data.to_float(TEN.images // 2))
    assert {*drawn.unique().tolist()} <= {-1.0, 0.0, 1.0}
    squares = drawn.unfold(2, 4, 4).unfold(3, 4, 4).flatten(-2)
    assert squares.eq(squares[..., :1]).all()


def test_a_hole_is_filled_from_around_it():
    x_0 = torch.full((1, 1, 28, 28), 0.25)
    broken = x_0.masked_fill(~clothes.hole(x_0), 9.0)
    torch.testing.assert_close(clothes.fill(broken), x_0)
    assert (~clothes.hole(x_0)).sum() == 100


def test_every_way_edits_all_images_and_keeps_what_is_known():
    edited = {way: clothes.edit(DENOISER, way, TEN, 20) for way in clothes.WAYS}
    assert all(x.shape == TEN.images.shape for x in edited.values())
    known = clothes.hole(TEN.images).expand_as(TEN.images)
    assert edited["hole"][known].equal(TEN.images[known])
    assert not edited["hole"][~known].equal(TEN.images[~known])
    assert not edited["another class"].equal(edited["as it is"])
    assert not edited["sketch"].equal(edited["as it is"])


def test_the_network_knows_labels_and_draws_without_them():
    made = clothes.experiment(31)
    assert (made.network.classes, made.train.seed) == (10, 31)
    assert 0 < made.train.label_dropout < 1
    assert replace(made.train, seed=30) == clothes.experiment(30).train
