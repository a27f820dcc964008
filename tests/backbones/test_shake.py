"""Shake-shake: the random mix of two branches and the shifted shortcut."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

import se_lab.backbones  # noqa: F401
from se_lab.backbones.shake import ShakeShake, ShiftShortcut

torch.set_num_threads(1)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


def coefficients(forward_alpha: str, backward_alpha: str, images: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each image's α in the forward and in the backward pass, read off branches x and 0."""
    torch.manual_seed(0)
    x = torch.ones(images, 2, 3, 3, requires_grad=True)
    y = ShakeShake(nn.Identity(), Scale(0), forward_alpha, backward_alpha)(x)
    y.sum().backward()
    assert x.grad is not None
    for per_image in (y.detach(), x.grad):  # one number per image, whatever the channel and the pixel
        torch.testing.assert_close(per_image, per_image[:, :1, :1, :1].expand_as(x))
    return y[:, 0, 0, 0].detach(), x.grad[:, 0, 0, 0]


def test_forward_and_backward_alpha_are_independent_and_uniform() -> None:
    alpha, beta = coefficients("shake", "shake")
    torch.manual_seed(0)
    torch.testing.assert_close(alpha, torch.rand(4000))
    torch.testing.assert_close(beta, torch.rand(4000))
    for drawn in (alpha, beta):
        assert drawn.min() >= 0
        assert drawn.max() <= 1
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
        assert drawn.var().item() == pytest.approx(1 / 12, abs=0.005)
    # Four standard errors of a correlation of 4000 independent pairs.
    assert abs(np.corrcoef(alpha, beta)[0, 1]) < 4 / 4000**0.5


def test_even_is_a_half_and_keep_is_the_same() -> None:
    alpha, beta = coefficients("shake", "even")
    assert alpha.std() > 0.2
    assert beta.eq(0.5).all()
    alpha, beta = coefficients("even", "shake")
    torch.testing.assert_close(alpha, torch.full_like(alpha, 0.5))
    assert beta.std() > 0.2
    alpha, beta = coefficients("shake", "keep")
    torch.testing.assert_close(alpha, beta)


def test_coefficients_sum_to_one_in_both_passes() -> None:
    x = torch.randn(8, 2, 3, 3, requires_grad=True)
    y = ShakeShake(Scale(3), Scale(3), "shake", "shake")(x)
    y.sum().backward()
    torch.testing.assert_close(y, 3 * x)
    torch.testing.assert_close(x.grad, torch.full_like(x, 3))


def test_evaluation_takes_the_mean_and_draws_nothing() -> None:
    x = torch.randn(4, 2, 3, 3)
    state = torch.get_rng_state()
    y = ShakeShake(Scale(1), Scale(3), "shake", "shake").eval()(x)
    torch.testing.assert_close(y, 2 * x)
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_are_arguments_of_the_nets() -> None:
    def modes(name: str, **kwargs: str) -> set[tuple[str, str]]:
        net = timm.create_model(name, device="meta", units=1, **kwargs)
        return {(m.forward_alpha, m.backward_alpha) for m in net.modules() if isinstance(m, ShakeShake)}

    assert modes("cifar_shake_shake26_2x96d") == {("shake", "shake")}
    assert modes("cifar_shake_shake29_2x4x64d") == {("shake", "even")}
    assert modes("cifar_shake_shake29_2x4x64d", backward_alpha="keep") == {("shake", "keep")}
    with pytest.raises(ValueError, match="forward_alpha must be one of shake, even, got 'keep'"):
        modes("cifar_shake_shake26_2x96d", forward_alpha="keep")
    with pytest.raises(ValueError, match="backward_alpha must be one of shake, even, keep, got 'sheke'"):
        modes("cifar_shake_shake26_2x96d", backward_alpha="sheke")


@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 6), (2, 7)])
def test_shift_shortcut_sees_other_pixels_in_its_second_flow(stride: int, size: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, size, size)).astype(np.float32)
    shortcut = ShiftShortcut(3, 8, stride, norm_layer=nn.BatchNorm2d).eval()
    weights = [conv.weight.detach().numpy()[:, :, 0, 0] for conv in (shortcut.conv1, shortcut.conv2)]
    shifted = np.zeros_like(x)
    shifted[:, :, 1:, 1:] = x[:, :, :-1, :-1]
    flows = [
        np.einsum("oc,nchw->nohw", w, s[:, :, ::stride, ::stride]) for w, s in zip(weights, (x, shifted), strict=True)
    ]
    expected = np.concatenate(flows, axis=1) / np.sqrt(1 + 1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(shortcut(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-6)
