"""RMS-norm with a gain as this house computes it on a CPU, against torch's own in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dittool.models.fast_rms_norm import rms_norm_with_gain


def given(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    # rows of very different size, one of them nearly zero
    x = torch.randn(shape, generator=g) * torch.logspace(-4, 2, shape[-2])[:, None]
    return x, torch.randn(shape[-1], generator=g), torch.randn(shape, generator=g)


def with_gradients(norm, x, gain, gradient):
    x, gain = (tensor.detach().clone().requires_grad_(True) for tensor in (x, gain))
    y = norm(x, gain)
    y.backward(gradient)
    return y.detach(), x.grad, gain.grad


def torchs_own(x, gain):
    return F.rms_norm(x, gain.shape, gain, eps=1e-6)


def furthest(x, gain, gradient) -> float:
    """Largest difference of value and gradients to torch's in double precision, of each row's largest entry."""
    found = with_gradients(rms_norm_with_gain, x, gain, gradient)
    exact = with_gradients(torchs_own, x.double(), gain.double(), gradient.double())
    pairs = zip(found, exact, strict=True)
    return max(float(((ours - wanted).abs() / wanted.abs().amax(-1, keepdim=True)).max()) for ours, wanted in pairs)


@pytest.mark.parametrize("shape", [(7, 32), (2, 3, 5, 8), (1, 2, 9, 64)])
def test_value_and_gradients_are_those_of_torch_in_double_precision(shape):
    x, gain, gradient = given(shape)
    assert furthest(x, gain, gradient) < 1e-6


def test_views_of_one_matrix_and_rows_of_another_order_are_as_good():
    """As attention has them: heads before tokens, three matrices in one."""
    x, gain, gradient = given((2, 6, 3, 4, 8))
    q = x.unbind(2)[1].transpose(1, 2)  # (2, 4, 6, 8), not contiguous
    assert not q.is_contiguous() and furthest(q, gain, gradient[:, :, 0].transpose(1, 2)) < 1e-6


def test_half_precision_and_compiled_code_take_torchs_own():
    x, gain, _ = given((5, 8))
    half = rms_norm_with_gain(x.bfloat16(), gain.bfloat16())
    assert torch.equal(half, torchs_own(x.bfloat16(), gain.bfloat16()))
    graphs = []
    torch._dynamo.reset()
    compiled = torch.compile(rms_norm_with_gain, backend=lambda graph, _: graphs.append(str(graph.graph)) or graph)
    torch.testing.assert_close(compiled(x, gain), torchs_own(x, gain))
    torch._dynamo.reset()
    assert len(graphs) == 1 and "rms_norm" in graphs[0]


def test_the_input_is_kept_and_the_gradient_that_came_in_is_not_written_to():
    x, gain, gradient = given((5, 8))
    before = x.clone(), gain.clone(), gradient.clone()
    with_gradients(rms_norm_with_gain, x, gain, gradient)
    assert all(torch.equal(old, new) for old, new in zip(before, (x, gain, gradient), strict=True))
