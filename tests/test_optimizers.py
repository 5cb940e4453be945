"""Muon against the singular value decomposition, AdamW, and a training that is resumed."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from diffusion_lib import config, optimizers
from diffusion_lib.training import TrainConfig
from tests.helpers import random_images, tiny

SETTINGS = TrainConfig(num_steps=10, learning_rate=0.1, warmup_steps=1)


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (16, 4, 3, 3), (9, 9)])
def test_muon_steps_equally_far_in_every_direction_of_a_matrix(shape):
    """U V^T of the gradient U S V^T, but for the iteration's 0.7 to 1.2 and bfloat16."""
    torch.manual_seed(0)
    p = torch.zeros(shape, requires_grad=True)
    p.grad = torch.randn(shape)
    u, _, v = torch.linalg.svd(p.grad.reshape(len(p), -1), full_matrices=False)
    optimizers.muon([p], SETTINGS).step()
    step = -p.detach().reshape(len(p), -1) / (0.1 * 0.2 * max(u.shape[0], v.shape[1]) ** 0.5)
    sizes = torch.linalg.svdvals(step)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.3
    along = (u.mT @ step @ v.mT).diagonal()
    torch.testing.assert_close(along, sizes.mean().expand_as(along), atol=0.4, rtol=0)


def test_muon_has_nesterovs_momentum():
    torch.manual_seed(0)
    p = torch.zeros(8, 8, requires_grad=True)
    optimizer = optimizers.muon([p], SETTINGS, momentum=0.5)
    average = torch.zeros(8, 8)
    for _ in range(3):
        before, gradient = p.detach().clone(), torch.randn(8, 8)
        p.grad = gradient.clone()
        optimizer.step()
        average = 0.5 * average + 0.5 * gradient
        u, _, v = torch.linalg.svd(0.5 * gradient + 0.5 * average)
        assert ((before - p.detach()) * (u @ v)).sum() > 0.95 * (before - p).norm() * 8**0.5


def test_muon_leaves_vectors_and_narrow_matrices_to_adamw():
    def updated(make):
        torch.manual_seed(0)
        weights = [torch.ones(n, requires_grad=True) for n in ((5,), (4, 30), (30, 1, 1, 2))]
        optimizer = make(weights)
        for _ in range(3):
            for p in weights:
                p.grad = torch.randn(p.shape)
            optimizer.step()
        return weights

    expected = updated(lambda w: optimizers.adamw(w, SETTINGS, beta_2=0.98))
    torch.testing.assert_close(updated(lambda w: optimizers.muon(w, SETTINGS)), expected)


def test_weight_decay_shrinks_all_weights_alike():
    weights = [torch.ones(n, requires_grad=True) for n in ((5,), (16, 30))]
    optimizer = optimizers.muon(weights, replace(SETTINGS, weight_decay=0.5))
    for p in weights:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p in weights:
        torch.testing.assert_close(p.detach(), torch.full_like(p, 1 - 0.1 * 0.5))


def test_a_training_with_muon_is_resumed_bit_for_bit(tmp_path):
    experiment = replace(config.smoke(tiny(config.MNIST)), optimizer=optimizers.muon)
    images = random_images(12, 1, 28, 28)
    whole, first, second = (experiment.trainer() for _ in range(3))
    losses = [step.loss for step in whole.run(images)]
    start = [step.loss for step in islice(first.run(images), 2)]
    first.save(tmp_path / "state.safetensors")
    second.load(tmp_path / "state.safetensors")
    assert start + [step.loss for step in second.run(images)] == losses
    for a, b in zip(whole.ema.parameters(), second.ema.parameters(), strict=True):
        assert torch.equal(a, b)
