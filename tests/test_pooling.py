"""Max-pool and ReLU on the bits of bfloat16, compared with the two layers of torch."""

import pytest
import torch
from torch.nn import functional

from ikebana.learning.fast import pooling
from ikebana.learning.models.layers import MaxPoolReLU

SHAPES = [(3, 8, 6, 6), (5, 16, 7, 9), (2, 4, 2, 3), (1, 1, 5, 2)]  # an odd last row or column is dropped


def compute_with_torch(features):
    return functional.relu(functional.max_pool2d(features, 2))


def draw_distinct(shape, seed=0):
    """Draw distinct bfloat16 values, so that every window has one maximum."""
    count = torch.Size(shape).numel()
    magnitudes = torch.randperm(0x7F80 - 1, generator=torch.Generator().manual_seed(seed))[:count] + 1  # below infinity
    signs = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed)) * -0x8000
    values = (magnitudes + signs).to(torch.int16).view(torch.bfloat16).reshape(shape)
    return values.contiguous(memory_format=torch.channels_last)


def compute_both(features, gradient):
    results = []
    for layer in (compute_with_torch, MaxPoolReLU()):
        leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
        pooled = layer(leaf)
        pooled.backward(gradient)
        results.append((pooled.detach(), leaf.grad))
    return results


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cached", [1, 100, pooling.CHUNK_ELEMENTS])
def test_it_equals_max_pool_and_relu_of_torch_to_the_bit(shape, cached, monkeypatch):
    monkeypatch.setattr(pooling, "CHUNK_ELEMENTS", cached)  # chunks of one photo, of some, of all
    features = draw_distinct(shape)
    gradient = torch.randn((*shape[:2], shape[2] // 2, shape[3] // 2)).bfloat16()
    (theirs, their_gradient), (ours, our_gradient) = compute_both(features, gradient)
    assert torch.equal(ours, theirs)
    assert torch.equal(our_gradient, their_gradient)
    assert our_gradient.is_contiguous(memory_format=torch.channels_last)


def test_one_of_several_equal_values_gets_the_full_gradient():
    features = torch.randint(-1, 3, (4, 8, 6, 6)).bfloat16().contiguous(memory_format=torch.channels_last)
    leaf = features.clone(memory_format=torch.preserve_format).requires_grad_()
    pooled = MaxPoolReLU()(leaf)
    pooled.backward(torch.full_like(pooled, 3))
    assert leaf.grad is not None
    windows = functional.unfold(leaf.grad.float().flatten(0, 1)[:, None], 2, stride=2)
    values = functional.unfold(features.float().flatten(0, 1)[:, None], 2, stride=2)
    largest = values.amax(1)
    assert torch.equal(windows.sum(1), torch.where(largest > 0, 3.0, 0.0))
    assert torch.equal((windows != 0).sum(1), (largest > 0).long())
    assert (values.gather(1, windows.argmax(1, keepdim=True))[:, 0] == largest)[largest > 0].all()


def test_other_types_and_layouts_use_the_layers_of_torch():
    for features in (torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5).bfloat16()):  # float32; channels first
        assert torch.equal(MaxPoolReLU()(features), compute_with_torch(features))


def test_nan_is_propagated():
    features = draw_distinct((2, 4, 4, 4))
    features[0, 0, 0, 0] = float("nan")
    assert MaxPoolReLU()(features)[0, 0, 0, 0].isnan()
