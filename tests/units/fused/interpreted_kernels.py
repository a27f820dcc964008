"""What the kernels compute, in Triton's interpreter: tests/test_kernels.py runs this file in a process of its own.

The expected values are NumPy's in float64, from the inputs as they were rounded.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from se_lab.units.fused import kernels, passes, triton_kernels, triton_pointwise, triton_reductions

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
TILES = ["_reduction_tiles", "_row_tiles", "_pointwise_tiles"]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# the interpreter cuts bfloat16 off where a GPU rounds: hence twice the unit
UNIT = {torch.float64: 2**-52, torch.float32: 2**-23, torch.float16: 2**-11, torch.bfloat16: 2**-7}

# odd H·W, one pixel, one channel, more channels than a tile, more pixels than a part of an image (64)
CORNERS = [
    (2, 5, 7, 7),
    (3, 11, 14, 14),
    (3, 1, 4, 5),
    (1, 3, 1, 1),
    (1, 70, 13, 13),
    (2, 130, 3, 5),
    (4, 24, 2, 8),
    (1, 9, 23, 11),
]
shapes = st.one_of(
    st.sampled_from(CORNERS), st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
)
seeds = st.integers(0, 2**31)
checked = settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])


def draw(shape: tuple[int, ...], seed: int, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape)).to(dtype).contiguous(memory_format=layout)


def coefficients(x: Tensor, seed: int, number: int) -> list[Tensor]:
    values = torch.tensor(np.random.default_rng(seed).normal(size=(number, *x.shape[:2])))
    return list(values.to(torch.float64 if x.dtype == torch.float64 else torch.float32))


def exact(x: Tensor) -> np.ndarray:
    values: np.ndarray = x.double().numpy()
    return values if x.dim() == 4 else values[:, :, None, None]


@checked
@given(shapes, seeds, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.sampled_from([0, 1, 30, 1000]))
def test_moments_lose_no_digits_even_where_the_mean_is_far_above_the_deviation(shape, seed, dtype, layout, ratio):
    x = (draw(shape, seed, torch.float64, layout) + ratio).to(dtype)
    mean, variance = kernels.moments(x)
    unit = UNIT[torch.float64 if dtype == torch.float64 else torch.float32]
    expected = exact(x).mean((2, 3)), exact(x).var((2, 3))
    assert mean.dtype == variance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=2 * unit, atol=8 * unit)
    np.testing.assert_allclose(variance.numpy(), expected[1], rtol=32 * unit, atol=unit * 1e-3)


@checked
@given(
    shapes,
    seeds,
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["relu", "identity"]),
    st.one_of(st.none(), st.tuples(st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))),
)
def test_apply_scales_shifts_adds_and_rounds_once(shape, seed, dtype, layout, activation, shortcut):
    x = draw(shape, seed, dtype, layout)
    scale, shift = coefficients(x, seed + 1, 2)
    added = None if shortcut is None else draw(shape, seed + 2, *shortcut)
    out = kernels.apply(x, scale, shift, added, activation)
    terms = [exact(x) * exact(scale), exact(shift), 0 if added is None else exact(added)]
    expected = sum(terms) if activation == "identity" else np.maximum(sum(terms), 0)
    assert out.dtype == dtype and out.stride() == x.stride()
    inside = 4 * UNIT[torch.float64 if dtype == torch.float64 else torch.float32] * sum(np.abs(term) for term in terms)
    assert (np.abs(exact(out) - expected) <= inside + UNIT[dtype] * np.abs(expected)).all()


@checked
@given(shapes, seeds, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.sampled_from(["relu", "identity"]), seeds)
def test_backward_moments_masks_and_sums(shape, seed, dtype, layout, activation, out_seed):
    x, grad, out = (draw(shape, key, dtype, layout) for key in (seed, seed + 1, out_seed))
    out = out.relu()
    (mean,) = coefficients(x, seed + 2, 1)
    g, first, second = kernels.backward_moments(grad, out, x, mean, activation)
    expected = exact(grad) * (exact(out) > 0) if activation == "relu" else exact(grad)
    assert g.dtype == dtype and g.stride() == x.stride() and np.array_equal(exact(g), expected)
    apart = exact(x) - exact(mean)
    unit = UNIT[torch.float64 if dtype == torch.float64 else torch.float32]
    for got, terms in ((first, expected), (second, expected * apart)):
        bound = 32 * unit * np.abs(expected * np.maximum(np.abs(apart), 1)).sum((2, 3))
        assert (np.abs(got.numpy() - terms.sum((2, 3))) <= bound).all()


@checked
@given(shapes, seeds, st.sampled_from(DTYPES), st.sampled_from(LAYOUTS))
def test_backward_input_is_the_sum_of_its_terms(shape, seed, dtype, layout):
    x, g = (draw(shape, key, dtype, layout) for key in (seed, seed + 1))
    p, q, r = coefficients(x, seed + 2, 3)
    dx = kernels.backward_input(g, x, p, q, r)
    terms = [exact(p) * exact(g), exact(q) * exact(x), exact(r)]
    assert dx.dtype == dtype and dx.stride() == x.stride()
    inside = 4 * UNIT[torch.float64 if dtype == torch.float64 else torch.float32] * sum(np.abs(term) for term in terms)
    assert (np.abs(exact(dx) - sum(terms)) <= inside + UNIT[dtype] * np.abs(sum(terms))).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_centre_keeps_the_digits_that_a_mean_far_above_the_deviation_would_cost(layout):
    x = draw((2, 70, 7, 5), 0, torch.float32, layout) + 1000
    g = draw((2, 70, 7, 5), 1, torch.float32, layout)
    mean, _ = kernels.moments(x)
    p, q, r = coefficients(x, 2, 3)
    apart = exact(q) * (exact(x) - exact(mean)) + exact(r)
    out = kernels.apply(x, q, r, None, "identity", mean)
    dx = kernels.backward_input(g, x, p, q, r, mean)
    np.testing.assert_allclose(exact(out), apart, rtol=0, atol=2**-20)
    np.testing.assert_allclose(exact(dx), exact(p) * exact(g) + apart, rtol=0, atol=2**-20)


def test_one_image_of_many_pixels_is_merged_from_parts_as_a_batch_is_summed_whole():
    assert triton_kernels._split(1, 9, 253, True)[1] > 1
    assert triton_kernels._split(4096, 9, 253, True)[1] == 1
    x = draw((1, 9, 23, 11), 0, torch.float32, torch.channels_last) + 1000
    mean, variance = kernels.moments(x)
    np.testing.assert_allclose(variance.numpy(), exact(x).var((2, 3)), rtol=2e-6)
    np.testing.assert_allclose(mean.numpy(), exact(x).mean((2, 3)), rtol=2**-22)


def test_the_identitys_gradient_is_handed_on_and_not_written_anew():
    x = draw((2, 5, 7, 7), 0, torch.float32, torch.channels_last)
    grad = torch.randn_like(x)
    g, *_ = kernels.backward_moments(grad, None, x, torch.zeros(2, 5), "identity")
    assert g.data_ptr() == grad.data_ptr()


def test_what_is_no_number_stays_visible():
    x = torch.full((1, 2, 3, 3), float("nan"))
    ones = torch.ones(1, 2)
    out = kernels.apply(x, ones, ones, None, "relu")
    assert out.isnan().all()
    g, *_ = kernels.backward_moments(torch.ones_like(x), out, torch.ones_like(x), ones, "relu")
    assert torch.equal(g, torch.ones_like(x))  # as PyTorch's ReLU hands a gradient on
    assert torch.stack(kernels.moments(x)).isnan().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "cut", [np.s_[:, 1::2], np.s_[:, 2:9], np.s_[:, :, 1:], np.s_[..., ::2], np.s_[::2], np.s_[:, :, :, 3:4]]
)
def test_slices_and_expanded_gradients_give_what_their_copies_give(layout, cut):
    x = draw((3, 12, 6, 7), 0, torch.float32, layout)[cut]
    grad = torch.tensor(1.5).expand(x.shape)
    scale, shift, mean, p, q, r = coefficients(x, 1, 6)
    copy = x.clone(memory_format=torch.contiguous_format).contiguous(memory_format=kernels._layout(x))

    def passes(x: Tensor, grad: Tensor) -> list[Tensor]:
        out = kernels.apply(x, scale, shift, x, "relu")
        g, *sums = kernels.backward_moments(grad, out, x, mean, "relu")
        plain = kernels.backward_moments(grad, None, x, mean, "identity")
        return [*kernels.moments(x), out, g, *sums, *plain, kernels.backward_input(grad, x, p, q, r)]

    for sliced, whole in zip(passes(x, grad), passes(copy, grad.clone()), strict=True):
        assert torch.equal(sliced, whole)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (2, 4, 0, 5), (2, 0, 5, 5)])
def test_empty_tensors_go_through(shape):
    x = torch.ones(shape)
    pairs = torch.ones(shape[:2])
    mean, variance = kernels.moments(x)
    assert torch.equal(mean.isnan(), x.mean((2, 3)).isnan()) and variance.shape == shape[:2]
    assert kernels.apply(x, pairs, pairs, x, "relu").shape == shape
    g, *sums = kernels.backward_moments(x, x, x, pairs, "relu")
    assert g.shape == shape and all(torch.equal(s, torch.zeros(shape[:2])) for s in sums)
    assert kernels.backward_input(x, x, pairs, pairs, pairs).shape == shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coefficients_may_be_broadcast_and_of_another_dtype(layout):
    x = draw((3, 4, 5, 5), 0, torch.float32, layout)
    row = torch.arange(4, dtype=torch.float64).expand(3, 4)
    out = kernels.apply(x, row, row, None, "identity")
    np.testing.assert_allclose(exact(out), exact(row) * exact(x) + exact(row), rtol=1e-6, atol=1e-6)


def test_wrong_shapes_and_activations_are_refused():
    x, pairs = torch.ones(2, 3, 4, 4), torch.ones(2, 3)
    with pytest.raises(ValueError, match="activation is 'gelu'; allowed are relu, identity"):
        kernels.apply(x, pairs, pairs, None, "gelu")
    with pytest.raises(ValueError, match=r"\(3, 4, 4\) of torch.float32; it must be \(N, C, H, W\)"):
        kernels.moments(x[0])
    with pytest.raises(ValueError, match=r"a tensor is \(2, 3, 1, 1\) on cpu; expected \(2, 3, 4, 4\)"):
        kernels.apply(x, pairs, pairs, torch.ones(2, 3, 1, 1), "relu")
    with pytest.raises(ValueError, match=r"a tensor is \(3,\) on cpu; expected \(2, 3\)"):
        kernels.backward_input(x, x, pairs, pairs, pairs[0])


class Recorder:
    """Stands in for a kernel and keeps the grid it would be launched with."""

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            tile = {key: value for key, value in constants.items() if key.startswith("BLOCK")}
            self.grid = grid(tile) if tile else None

        return launch


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(70_000, 70_000, 7, 7), (1, 64, 4096, 4096), (2, 1_000_000, 64, 64)])
def test_grids_hold_more_programs_than_their_second_axis_may(layout, shape):
    x = torch.empty(shape, device="meta", memory_format=layout)
    last = layout == torch.channels_last
    recorder = Recorder()
    triton_kernels._launch_reduction(recorder, x, last, triton_kernels._split(*triton_kernels._shape(x), last)[1])
    reduction = recorder.grid
    triton_kernels._launch_pointwise(recorder, x, last)
    for grid in (reduction, recorder.grid):
        assert all(number <= 65_535 for number in grid[1:]) and grid[0] < 2**31
    assert recorder.grid[0] > 65_535


@pytest.mark.parametrize(("side", "prefix"), [(3, "row_"), (4, "")])
@pytest.mark.parametrize("deterministic", [True, False])
def test_no_clock_chooses_how_sums_are_split_where_runs_must_repeat(monkeypatch, deterministic, side, prefix):
    tuned = []
    monkeypatch.setattr(triton_kernels, "INTERPRETED", False)
    monkeypatch.setattr(triton_kernels, "_tuned", lambda kernel, *_: tuned.append(kernel) or Recorder())
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    x, pairs = torch.ones(1, 2, side, side), torch.ones(1, 2)
    kernels.moments(x)
    kernels.backward_moments(x, x, x, pairs, "relu")
    kernels.apply(x, pairs, pairs, None, "relu")
    kernels.backward_input(x, x, pairs, pairs, pairs)
    sums = [getattr(triton_reductions, prefix + name) for name in ("moments", "backward_moments")]
    assert tuned == [*([] if deterministic else sums), triton_pointwise.apply, triton_pointwise.backward_input]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [8, 7])  # of NCHW, rows that begin at a multiple of 16 bytes, and rows that do not
def test_every_tile_of_the_tuner_gives_the_same_within_rounding(monkeypatch, layout, side):
    x = draw((2, 70, 9, side), 0, torch.float32, layout)
    scale, shift, mean, p, q, r = coefficients(x, 1, 6)
    last = layout == torch.channels_last
    original = {name: getattr(triton_kernels, name) for name in TILES}
    results = []
    for number in range(max(len(tiles(70, 9 * side, last)) for tiles in original.values())):
        for name, tiles in original.items():
            monkeypatch.setattr(triton_kernels, name, lambda *a, t=tiles, k=number: [t(*a)[k % len(t(*a))]])
        out = kernels.apply(x, scale, shift, x, "relu")
        dx = kernels.backward_input(x, x, p, q, r)
        sums = [*kernels.moments(x), *kernels.backward_moments(x, out, x, mean, "relu")]
        results.append((out, dx, sums))
    for out, dx, sums in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(dx, results[0][1])
        for got, first in zip(sums, results[0][2], strict=True):
            torch.testing.assert_close(got, first, rtol=1e-5, atol=1e-4)


def operators(x: Tensor) -> dict[str, tuple]:
    scale, shift, mean, p, q, r = coefficients(x, 1, 6)
    ops = torch.ops.se_lab
    return {
        "moments": (ops.moments, (x,)),
        "apply": (ops.apply, (x, scale, shift, x.flip(0), True, mean)),
        "relu_backward_moments": (ops.relu_backward_moments, (x.flip(0), x, x, mean)),
        "backward_sums": (ops.backward_sums, (x.flip(0), x, mean)),
        "backward_input": (ops.backward_input, (x.flip(0), x, p, q, r, None)),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", list(operators(torch.zeros(1, 1, 1, 1))))
def test_each_op_keeps_what_compilers_are_told_of_it(name, layout):
    op, arguments = operators(draw((2, 5, 4, 3), 0, torch.float32, layout))[name]
    torch.library.opcheck(op.default, arguments)


class Tail(torch.autograd.Function):
    """relu(scale·(x − mean) + shortcut) with the statistics held fixed: enough to go through every pass."""

    @staticmethod
    def forward(ctx, x, scale, shortcut):
        mean, _ = kernels.moments(x)
        out = kernels.apply(x, scale, -scale * mean, shortcut, "relu")
        ctx.save_for_backward(x, out, mean, scale)
        return out

    @staticmethod
    def backward(ctx, grad):
        x, out, mean, scale = ctx.saved_tensors
        g, first, second = kernels.backward_moments(grad, out, x, mean, "relu")
        pixels = x.shape[2] * x.shape[3]
        return kernels.backward_input(g, x, scale, torch.zeros_like(scale), -scale * first / pixels), second, g


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_passes_of_fused_units_find_their_kernels(layout):
    x, grad, out, shortcut = (draw((2, 5, 7, 7), seed, torch.float32, layout) for seed in range(4))
    by = coefficients(x, 4, 4)
    calls = [
        ("moments", (x,)),
        ("mean", (x,)),
        ("apply", (x, shortcut, "relu", False, *by[:3])),
        ("apply", (x, None, "identity", True, *by[:3])),
        ("backward_moments", (x, grad, out, by[0], "relu")),
        ("backward_moments", (x, grad, None, by[0], "identity")),
        ("backward_input", (x, grad, *by)),
    ]
    for name, arguments in calls:
        found, expected = passes._kernel(name)(*arguments), passes.PASSES[name](*arguments)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torch_compile_goes_round_the_passes_without_a_break(layout):
    def tail(x, scale, shortcut):
        return Tail.apply(x * 2, scale, shortcut).square().sum()

    def plain(x, scale, shortcut):
        x = x * 2
        scaled = scale[:, :, None, None] * (x - x.mean((2, 3), keepdim=True))
        return torch.relu(scaled + shortcut).square().sum()

    x = draw((2, 5, 4, 3), 0, torch.float32, layout)
    shortcut = draw((2, 5, 4, 3), 2, torch.float32, layout)
    (scale,) = coefficients(x, 1, 1)
    grads = {}
    for name, function in {
        "eager": tail,
        "compiled": torch.compile(tail, backend="aot_eager", fullgraph=True),
        "plain": plain,
    }.items():
        leaves = [leaf.clone().requires_grad_() for leaf in (x, scale, shortcut)]
        grads[name] = torch.autograd.grad(function(*leaves), leaves)
    for eager, compiled, expected in zip(*grads.values(), strict=True):
        assert torch.equal(eager, compiled) and eager.stride() == compiled.stride()
        torch.testing.assert_close(eager, expected, rtol=1e-4, atol=1e-5)
