"""Streaming statistics against NumPy over stored gates, whatever the batches, their order, and the interruptions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from se_lab.excitations.capture import ExcitationError, GateSite
from se_lab.excitations.statistics import BINS, ExcitationStatistics, bin_edges
from se_lab.sweep.server import forking

SITES = [GateSite("SE_2_1", 2, 1, 6, "a"), GateSite("SE_3_1", 3, 1, 10, "b")]
CLASSES = ["cat", "dog", "pug", "none of it"]  # the last one has no image


def stored(kind: str, n: int = 500) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Gates of n images, whole: spread out, saturated at 0.9999, or as tanh and ReLU make them."""
    stream = torch.Generator().manual_seed(3)
    labels = torch.randint(3, (n,), generator=stream)
    gates = {}
    for site in SITES:
        noise = torch.randn(n, site.channels, generator=stream) + labels[:, None]
        gates[site.name] = {
            "spread": torch.sigmoid(noise),
            "saturated": 0.9999 + 1e-5 * torch.tanh(noise),
            "tanh": torch.tanh(noise),
            "relu": 5 * torch.relu(noise),
        }[kind]
    return gates, labels


def streamed(gates, labels, batch: int, order: torch.Tensor | None = None, **options) -> ExcitationStatistics:
    statistics = ExcitationStatistics(SITES, CLASSES, **options)
    order = torch.arange(len(labels)) if order is None else order
    for index in order.split(batch):
        statistics.update({name: gate[index] for name, gate in gates.items()}, labels[index], index)
    return statistics


@pytest.mark.parametrize("kind", ["spread", "saturated", "tanh", "relu"])
@pytest.mark.parametrize("batch", [1, 32, 77, 500])
def test_moments_and_ranges_are_numpys_over_stored_gates(kind: str, batch: int) -> None:
    gates, labels = stored(kind)
    statistics = streamed(gates, labels, batch)
    for name, gate in gates.items():
        unit = statistics.unit(name)
        for label in range(3):
            values = gate[labels == label].double().numpy()
            assert unit.count[label] == len(values)
            np.testing.assert_allclose(unit.mean[label], values.mean(0), rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(unit.std[label], values.std(0), rtol=1e-3)
            np.testing.assert_array_equal(unit.minimum[label], values.min(0))
            np.testing.assert_array_equal(unit.maximum[label], values.max(0))


@pytest.mark.parametrize("kind", ["spread", "saturated", "tanh", "relu"])
def test_histograms_are_numpys_over_stored_gates(kind: str) -> None:
    gates, labels = stored(kind)
    statistics = streamed(gates, labels, 64)
    edges = bin_edges()
    assert edges.shape == (BINS + 1,)
    assert {0.05, 0.95} <= set(edges.round(9))  # where saturation begins
    for name, gate in gates.items():
        unit = statistics.unit(name)
        for label in range(3):
            expected, _ = np.histogram(gate[labels == label].double().numpy(), edges)
            # a gate on an edge may be rounded to either side
            assert np.abs(np.cumsum(unit.by_class[label] - expected)).max() <= 2
            assert unit.by_class[label].sum() == expected.sum()
        for channel in range(gate.shape[1]):
            expected, _ = np.histogram(gate[:, channel].double().numpy(), edges)
            assert np.abs(np.cumsum(unit.by_channel[channel] - expected)).max() <= 2


@pytest.mark.parametrize("kind", ["spread", "saturated"])
def test_batch_size_and_order_do_not_matter(kind: str) -> None:
    gates, labels = stored(kind)
    one = streamed(gates, labels, 500)
    for batch, order in ((1, None), (13, torch.randperm(500)), (128, labels.argsort())):
        other = streamed(gates, labels, batch, order)
        for site in SITES:
            a, b = one.unit(site.name), other.unit(site.name)
            np.testing.assert_allclose(a.mean, b.mean, atol=1e-5 * 1e-2)
            np.testing.assert_allclose(a.std, b.std, atol=1e-5, rtol=1e-3)
            np.testing.assert_array_equal(a.by_channel, b.by_channel)


def test_parts_merge_to_the_whole() -> None:
    gates, labels = stored("saturated")
    whole = streamed(gates, labels, 50, extremes=3)
    for cut in (0, 1, 333):
        parts = [streamed(gates, labels, 50, index, extremes=3) for index in torch.arange(500).split([cut, 500 - cut])]
        parts[0].merge(parts[1])
        assert parts[0].images == 500
        for site in SITES:
            a, b = parts[0].unit(site.name), whole.unit(site.name)
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9)
            np.testing.assert_allclose(a.std, b.std, rtol=1e-4)
            np.testing.assert_array_equal(a.maximum, b.maximum)
            np.testing.assert_array_equal(a.by_class, b.by_class)
        assert torch.equal(parts[0].top_value, whole.top_value)


def test_statistics_of_another_net_do_not_merge() -> None:
    other = ExcitationStatistics([SITES[0], GateSite("SE_3_1", 3, 1, 12, "b")], CLASSES)
    with pytest.raises(ExcitationError, match=r"SE_3_1 \(10 channels\), SE_3_1 \(12 channels\)"):
        ExcitationStatistics(SITES, CLASSES).merge(other)
    with pytest.raises(ExcitationError, match="4 and 2 classes"):
        ExcitationStatistics(SITES, CLASSES).merge(ExcitationStatistics(SITES, CLASSES[:2]))


def test_a_class_without_images_has_no_numbers() -> None:
    gates, labels = stored("spread")
    unit = streamed(gates, labels, 64).unit("SE_2_1")
    assert unit.count[3] == 0
    assert np.isnan([unit.mean[3], unit.std[3], unit.minimum[3]]).all()


def test_the_images_that_excite_a_channel_most_and_least_are_kept() -> None:
    gates, labels = stored("spread")
    statistics = streamed(gates, labels, 37, extremes=4)
    every = torch.cat(list(gates.values()), dim=1).numpy()
    order = every.argsort(0)
    np.testing.assert_array_equal(statistics.top_image[0], order[::-1][:4])
    np.testing.assert_array_equal(statistics.top_image[1], order[:4])


def test_a_file_goes_on_where_it_stopped(tmp_path: Path) -> None:
    gates, labels = stored("saturated")
    whole = streamed(gates, labels, 50, extremes=2)
    first = streamed(gates, labels, 50, torch.arange(200), extremes=2)
    first.about = {"what": "half of it"}
    second = ExcitationStatistics.load(first.save(tmp_path / "part.safetensors"))
    assert (second.images, second.about) == (200, {"what": "half of it"})
    for index in torch.arange(200, 500).split(50):
        second.update({name: gate[index] for name, gate in gates.items()}, labels[index], index)
    for name, tensor in whole._tensors().items():
        assert torch.equal(tensor, getattr(second, name)), name


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9])
def test_a_flipped_bit_in_a_statistics_file_is_noticed(tmp_path: Path, place: float) -> None:
    gates, labels = stored("spread")
    path = streamed(gates, labels, 50).save(tmp_path / "excitations.safetensors")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExcitationError, match=r"is corrupt|is not a statistics file"):
        ExcitationStatistics.load(path)


def test_a_file_without_a_checksum_is_read(tmp_path: Path) -> None:
    gates, labels = stored("spread")
    path = streamed(gates, labels, 50).save(tmp_path / "excitations.safetensors")
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata()["header"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {"header": header})
    assert ExcitationStatistics.load(path).images == len(labels)


def test_a_file_is_read_in_three_lines(tmp_path: Path) -> None:
    gates, labels = stored("spread")
    path = streamed(gates, labels, 50).save(tmp_path / "excitations.safetensors")
    with safe_open(path, "numpy") as file:
        header, mean = json.loads(file.metadata()["header"]), file.get_tensor("mean")
    first, channels = header["sites"][1]["first"], header["sites"][1]["channels"]
    expected = gates["SE_3_1"][labels == header["classes"].index("pug")].double().numpy().mean(0)
    np.testing.assert_allclose(mean[2, first : first + channels], expected, rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["excitations.safetensors"]


def test_another_file_is_told_from_a_statistics_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no safetensors")
    with pytest.raises(ExcitationError, match="not a statistics file"):
        ExcitationStatistics.load(tmp_path / "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gate_that_is_not_finite_is_found_and_named(value: float) -> None:
    gates, labels = stored("spread")
    streamed(gates, labels, 64).check_finite()
    row = int((labels == 1).nonzero()[0])
    gates["SE_3_1"][row, 4] = value
    with pytest.raises(ExcitationError, match=r"SE_3_1 are NaN or infinite, for images of dog: .*diverged"):
        streamed(gates, labels, 64).check_finite()


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    gates, labels = stored("saturated")
    statistics = streamed(gates, labels, 50, torch.arange(rank, 500, 2))
    statistics.merge_ranks()
    statistics.save(f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_ranks_merge_to_the_whole(tmp_path: Path) -> None:
    with forking():
        torch.multiprocessing.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="forkserver")
    whole = streamed(*stored("saturated"), 500)
    for rank in range(2):
        merged = ExcitationStatistics.load(tmp_path / f"{rank}.safetensors")
        assert merged.images == 500
        for site in SITES:
            np.testing.assert_allclose(merged.unit(site.name).std, whole.unit(site.name).std, rtol=1e-3)
            np.testing.assert_allclose(merged.unit(site.name).mean, whole.unit(site.name).mean, rtol=1e-8)
