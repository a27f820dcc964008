"""Measures of gates: against NumPy, published formulas and chance."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from se_lab.excitations import comparisons as excitation_comparisons
from se_lab.excitations import figures as excitation_figures
from se_lab.excitations import measures
from se_lab.excitations.capture import ExcitationError, GateSite, gate_sites
from se_lab.excitations.statistics import ExcitationStatistics
from se_lab.report.figures.image import draw
from se_lab.spec import ModelSpec, SESpec
from se_lab.units.model import create_model
from tests.excitations.excitation_nets import of_gates


def with_means(mean: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(mean=mean, count=np.ones(len(mean)))


def test_similarity_of_units_is_debiased_linear_cka() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(10, 6)), rng.normal(size=(10, 4))

    def hsic(x: np.ndarray, y: np.ndarray) -> float:  # Song et al. 2012, equation 5
        k, el = (z @ z.T for z in (x, y))
        np.fill_diagonal(k, 0)
        np.fill_diagonal(el, 0)
        n, one = len(k), np.ones(len(k))
        middle = (one @ k @ one) * (one @ el @ one) / ((n - 1) * (n - 2))
        return float((np.trace(k @ el) + middle - 2 / (n - 2) * (one @ k @ el @ one)) / (n * (n - 3)))

    turned = a @ np.linalg.qr(rng.normal(size=(6, 6)))[0]
    found = measures.unit_similarity([with_means(a)], [with_means(x) for x in (b, turned, np.ones((10, 3)))])
    expected = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    np.testing.assert_allclose(found, [[expected, 1, np.nan]], atol=1e-9)


def test_unrelated_units_are_not_alike_however_few_the_classes() -> None:
    rng = np.random.default_rng(1)
    pairs = [[with_means(rng.normal(size=(4, 64))) for _ in range(2)] for _ in range(400)]
    found = np.array([measures.unit_similarity([a], [b])[0, 0] for a, b in pairs])
    assert abs(found.mean()) < 4 * found.std() / 20  # the plain CKA of such units is 0.88 to 0.97
    few = [with_means(rng.normal(size=(3, 8)))]
    assert np.isnan(measures.unit_similarity(few, few)).all()  # three classes leave no degree of freedom


def test_chance_reaches_its_quantile_once_in_twenty() -> None:
    rng = np.random.default_rng(2)
    rows, columns = ([with_means(rng.normal(size=(12, 5))) for _ in range(10)] for _ in range(2))
    chance = measures.similarity_by_chance(rows, columns)
    fresh = [measures.unit_similarity([with_means(rng.normal(size=(12, 5)))], columns).ravel() for _ in range(100)]
    assert 0.02 < (np.concatenate(fresh) > chance).mean() < 0.09
    assert np.isnan(measures.similarity_by_chance([with_means(np.ones((5, 2)))], [with_means(np.ones((5, 2)))]))


def test_classes_that_do_not_matter_explain_no_variance_and_select_as_chance_does() -> None:
    gates = torch.rand(40, 2000, generator=torch.Generator().manual_seed(0))
    unit = of_gates(gates, classes=10).unit("SE_2_1")  # four images a class: the plain share would be 9/39
    assert abs(measures.unit_variance_explained(unit)) < 0.01
    index = measures.selectivity_index(unit).mean()
    np.testing.assert_allclose(index, measures.selectivity_without_classes(unit), rtol=0.05)
    assert "10 of 10 classes have fewer than 10 images" in measures.few_images(unit.count)


def test_one_image_a_class_leaves_nothing_to_judge_by() -> None:
    unit = of_gates(torch.rand(5, 8), classes=5).unit("SE_2_1")
    assert np.isnan(measures.unit_variance_explained(unit))
    assert np.isnan(measures.selectivity_without_classes(unit))


@pytest.mark.parametrize(("excitation", "limits"), [("sigmoid", (0, 1)), ("tanh", (-1, 1)), ("relu", (0, None))])
def test_saturation_is_nearness_to_the_excitations_own_bounds(excitation: str, limits: tuple) -> None:
    model = create_model(ModelSpec("cifar_resnet20", SESpec(excitation=excitation)), 10, 1)
    site = gate_sites(model)[0]
    assert (site.low, site.high) == limits
    gates = {
        "sigmoid": torch.sigmoid(6 * torch.randn(50, 16)),
        "tanh": torch.tanh(2 * torch.randn(50, 16)),
        "relu": torch.relu(torch.randn(50, 16)),
    }[excitation]
    statistics = ExcitationStatistics([site], ["a", "b"])
    statistics.update({site.name: gates}, torch.arange(50) % 2)
    low, high = limits
    expected = (
        ((gates == 0).float().mean(), float("nan"))
        if high is None
        else ((gates < low + 0.05).float().mean(), (gates > high - 0.05).float().mean())
    )
    np.testing.assert_allclose(measures.saturation(statistics.unit(site.name)), expected, atol=1e-6)


def test_a_class_that_excites_all_channels_alike_correlates_with_none() -> None:
    mean = np.array([[0.1, 0.9, 0.4], [0.5, 0.5, 0.5], [0.2, 0.8, 0.3], [0.9, 0.1, 0.2]])
    matrix, order = measures.class_similarity(SimpleNamespace(mean=mean, count=np.ones(4)))
    expected = np.full((4, 4), np.nan)  # NumPy warns of the flat row, and says NaN as well
    expected[np.ix_([0, 2, 3], [0, 2, 3])] = np.corrcoef(mean[[0, 2, 3]])
    np.testing.assert_allclose(matrix, expected[np.ix_(order, order)])


def test_gates_that_are_the_same_for_all_classes_show_one_even_colour_and_no_similarity_of_units() -> None:
    filled = ExcitationStatistics([GateSite("SE_2_1", 2, 1, 64, "a"), GateSite("SE_2_2", 2, 2, 64, "b")], list("uvwx"))
    filled.count += 5
    filled.mean.copy_(torch.rand(filled.mean.shape[-1]) + torch.tensor([[0], [1e-8], [2e-8], [3e-8]]))
    for panel in excitation_figures.class_similarity(filled).panels:
        assert panel.cells.range[0] <= 0.9  # rounding errors of a correlation of 1 are not seen
    filled.mean.copy_(filled.mean[0].expand_as(filled.mean).clone())
    chart = excitation_comparisons.unit_similarity(filled)
    assert np.isnan(chart.panels[0].cells.values).all()
    assert "Blank" in chart.note


def test_the_similarity_of_units_is_refused_for_fewer_than_four_classes() -> None:
    filled = ExcitationStatistics([GateSite("SE_2_1", 2, 1, 8, "a")], list("uvwx"))
    filled.count[:3] = 5
    with pytest.raises(ExcitationError, match="have 3 classes; the similarity of units needs at least 4"):
        excitation_comparisons.unit_similarity(filled)


def test_the_mean_of_all_classes_does_not_hide_a_class_that_is_like_it() -> None:
    filled = ExcitationStatistics([GateSite("SE_2_1", 2, 1, 8, "a")], list("uv"))
    filled.count += 5
    every, *classes = excitation_figures.activations(filled, [0, 1]).panels[0].series
    assert every.name == "all (2 classes)"
    assert every.front < min(line.front for line in classes)
    assert every.width > 2 * max(line.width for line in classes)


def test_gates_without_an_end_leave_room_for_those_below_1() -> None:
    stream = torch.Generator().manual_seed(0)
    sigmoid, relu = torch.rand(400, 4, generator=stream), 40 * torch.rand(400, 4, generator=stream)
    looks = [("sigmoid", of_gates(sigmoid)), ("relu", of_gates(relu))]
    (axes,) = draw(excitation_comparisons.overlay(looks)).axes
    zero, one, end = (axes.transAxes.inverted().transform(axes.transData.transform((x, 0)))[0] for x in (0, 1, 40))
    assert one - zero > 0.4 * (end - zero)  # sigmoid's range, a fortieth of ReLU's
    (panel,) = excitation_comparisons.overlay(looks[:1]).panels
    assert panel.x.scale == "linear"


def test_gates_below_0_have_no_selectivity_index() -> None:
    gates = torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    tanh, sigmoid = ("tanh", of_gates(2 * gates - 1)), ("sigmoid", of_gates(gates))
    left, right = excitation_comparisons.selectivity([tanh, sigmoid]).panels
    assert [line.name for line in left.series] == ["tanh", "sigmoid"]
    assert [(line.name, line.dash) for line in right.series] == [("sigmoid", "dash"), ("", "dot")]  # dotted: by chance
    assert len(excitation_comparisons.selectivity([tanh]).panels) == 1
