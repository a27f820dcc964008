"""From checkpoints to statistics, figures and pages: right numbers, clear errors, nothing run twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from se_lab.cli import main
from se_lab.data import DataError, create_data
from se_lab.excitations import collect as excitation_collect
from se_lab.excitations import comparisons as excitation_comparisons
from se_lab.excitations import figures as excitation_figures
from se_lab.excitations import inspection, measures
from se_lab.excitations.capture import ExcitationError, GateSite, capture_excitations
from se_lab.excitations.collect import CaptureOptions, collect, open_data, open_net
from se_lab.excitations.inspection import Inspection, inspect_nets, inspect_sweep
from se_lab.excitations.statistics import ExcitationStatistics
from se_lab.report.figures.image import draw
from se_lab.report.figures.look import SMALLEST, Look
from se_lab.spec import SpecError
from se_lab.store import read_record, read_records, write_record
from se_lab.trained.load import load_trained
from tests.excitations.excitation_nets import CLASSES, driven_images, driven_net, write_trial
from tests.report.figures.reading import overlaps, texts


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the figures of single nets, where a test is about something else: they take seconds."""

    def one(*parts):
        path = parts[4] / "figure_6.png"
        Image.new("L", (8, 8)).save(path)
        return [path]

    monkeypatch.setattr(inspection, "_figures_of_one", one)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trial(tmp_path_factory.mktemp("store"), reduction=2)


@pytest.fixture(scope="module")
def stored(trial: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All gates of the trial's net on its test images, kept whole, and the labels."""
    model, spec = load_trained(trial)
    gates: dict[str, list[np.ndarray]] = {}
    labels = []
    with torch.no_grad(), capture_excitations(model) as capture:
        for images, label, _ in create_data(spec.data, 0).batches("test"):
            model(images)
            labels.append(label.numpy())
            for name, gate in capture.excitations.items():
                gates.setdefault(name, []).append(gate.double().numpy())
    return {name: np.concatenate(parts) for name, parts in gates.items()}, np.concatenate(labels)


@pytest.fixture(scope="module")
def statistics(trial: Path, tmp_path_factory: pytest.TempPathFactory) -> ExcitationStatistics:
    net = open_net(trial)
    return collect(net, open_data(net), tmp_path_factory.mktemp("x") / "x.safetensors", CaptureOptions())


def test_a_trials_statistics_are_numpys_over_its_stored_gates(statistics, stored) -> None:
    gates, labels = stored
    assert list(gates) == [site.name for site in statistics.sites]
    for name, gate in gates.items():
        unit = statistics.unit(name)
        for label in range(10):
            own = gate[labels == label]
            np.testing.assert_allclose(unit.mean[label], own.mean(0), atol=1e-5)
            np.testing.assert_allclose(unit.std[label], own.std(0), rtol=1e-3, atol=1e-7)


def test_measures_are_numpys_over_stored_gates(statistics, stored) -> None:
    gates, labels = stored
    for name, gate in gates.items():
        unit = statistics.unit(name)
        means = np.stack([gate[labels == label].mean(0) for label in range(10)])
        between = ((means[labels] - gate.mean(0)) ** 2).mean(0)
        n, k = gate.shape[0], 10
        total, ss = n * gate.var(0), n * between
        square = (total - ss) / (n - k)
        np.testing.assert_allclose(
            measures.variance_explained(unit), (ss - (k - 1) * square) / (total + square), rtol=1e-3, atol=1e-4
        )
        whole = (ss.sum() - (k - 1) * square.sum()) / (total.sum() + square.sum())
        np.testing.assert_allclose(measures.unit_variance_explained(unit), whole, rtol=1e-3)
        best = means.max(0)
        others = (means.sum(0) - best) / 9
        np.testing.assert_allclose(measures.selectivity_index(unit), (best - others) / (best + others), rtol=1e-4)
        np.testing.assert_allclose(measures.mean_of_classes(unit), means.mean(0), rtol=1e-5)
        expected = (gate < 0.05).mean(), (gate > 0.95).mean()
        np.testing.assert_allclose(measures.saturation(unit), expected, atol=1e-4)
        matrix, order = measures.class_similarity(unit)
        np.testing.assert_allclose(matrix, np.corrcoef(means)[np.ix_(order, order)], atol=1e-3)
        assert sorted(order) == list(range(10))


def test_the_one_class_that_drives_one_channel_is_found(tmp_path: Path) -> None:
    statistics = collect(driven_net(), driven_images(), tmp_path / "x.safetensors", CaptureOptions(extremes=True))
    unit = statistics.unit(statistics.sites[0].name)
    assert measures.variance_explained(unit).argmax() == 3
    assert measures.variance_explained(unit)[3] > 0.99
    assert unit.mean[:, 3].argmax() == CLASSES.index("pug")
    assert measures.selectivity_index(unit).argmax() == 3
    assert (statistics.top_image[0, :, 3] % 3 == 2).all()  # images 2, 5, 8 … are of class 2
    assert (statistics.top_image[1, :, 3] % 3 != 2).all()


def test_a_constant_gate_shows_no_selectivity(tmp_path: Path) -> None:
    statistics = collect(driven_net(), driven_images(), tmp_path / "x.safetensors", CaptureOptions())
    unit = statistics.unit(statistics.sites[0].name)
    np.testing.assert_array_equal(unit.mean[:, :3], 0.5)
    np.testing.assert_array_equal(unit.std[:, :3], 0)
    np.testing.assert_array_equal(measures.variance_explained(unit)[:3], 0)
    np.testing.assert_allclose(measures.selectivity_index(unit)[:3], 0, atol=1e-12)


def test_redundancy_is_the_error_with_a_gate_held_at_its_mean(tmp_path: Path) -> None:
    net, images = driven_net(), driven_images()
    statistics = collect(net, images, tmp_path / "x.safetensors", CaptureOptions(redundancy=True))
    # class 1 is never guessed and classes 0 and 2 always right; at its mean, the gate is below 0.8 for all
    assert statistics.about["redundancy"][""] == pytest.approx(100 / 3)
    assert statistics.about["redundancy"][statistics.sites[0].name] == pytest.approx(200 / 3)
    bars = excitation_comparisons.redundancy(statistics).panels[0].series[0]
    assert bars.bars and bars.x == pytest.approx([100 / 3])


def test_an_interrupted_run_goes_on_and_a_finished_one_is_not_repeated(tmp_path: Path) -> None:
    net, images = driven_net(), driven_images()
    whole = collect(net, images, tmp_path / "whole.safetensors", CaptureOptions(extremes=True))
    asked: list[torch.Tensor] = []

    def interrupted(numbers: torch.Tensor):
        asked.append(numbers)
        for done, batch in enumerate(images.batches(numbers)):
            if len(asked) == 1 and done == 2:
                raise KeyboardInterrupt
            yield batch

    path = tmp_path / "x.safetensors"
    torn = dataclasses.replace(images, batches=interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(net, torn, path, CaptureOptions(extremes=True))
    assert not path.exists()
    resumed = collect(net, torn, path, CaptureOptions(extremes=True))
    assert [len(numbers) for numbers in asked] == [90, 90 - 32]
    for name, tensor in whole._tensors().items():
        torch.testing.assert_close(getattr(resumed, name), tensor, msg=name)
    collect(net, torn, path, CaptureOptions(extremes=True))
    assert len(asked) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["whole.safetensors", "x.safetensors"]
    with torch.no_grad():
        net.model.blocks[0][0].expand.bias += 1  # other weights, other statistics
    collect(net, torn, path, CaptureOptions(extremes=True))
    assert len(asked) == 3


def test_images_of_each_class_are_as_many_as_asked_for_and_the_same_each_time() -> None:
    images = driven_images()
    chosen = images.choose(5)
    assert torch.bincount(images.labels[chosen]).tolist() == [5, 5, 5]
    assert torch.equal(chosen, images.choose(5))
    assert len(images.choose(None)) == 90
    with pytest.raises(ExcitationError, match="at least 1"):
        images.choose(0)


def test_figure_6_shows_the_means_of_the_classes_and_of_all(statistics, stored) -> None:
    gates, labels = stored
    panels = excitation_figures.activations(statistics, [2, 7]).panels
    assert [panel.title for panel in panels] == ["SE_2_3", "SE_3_3", "SE_4_1", "SE_4_2", "SE_4_3"]
    assert len({panel.y.limits for panel in panels}) == 1  # one range, to compare them
    channels = excitation_figures.sampled_channels(statistics.sites[-1])
    assert len(channels) == len(set(channels)) == 50
    every, *classes = panels[-1].series
    for line, label in zip(classes, (2, 7), strict=True):
        assert line.name == str(label)
        np.testing.assert_array_equal(line.x, channels)  # the axis has channel numbers, not places in the sample
        np.testing.assert_allclose(line.y, gates["SE_4_3"][labels == label].mean(0)[channels], atol=1e-5)
    means = np.stack([gates["SE_4_3"][labels == label].mean(0) for label in range(10)])
    np.testing.assert_allclose(every.y, means.mean(0)[channels], atol=1e-5)


def test_the_papers_units_are_its_six_for_se_resnet50() -> None:
    with torch.device("meta"):
        sites = excitation_collect.gate_sites(timm.create_model("seresnet50"))
    assert excitation_figures.paper_units(sites) == ["SE_2_3", "SE_3_4", "SE_4_6", "SE_5_1", "SE_5_2", "SE_5_3"]


def test_figure_7_shows_one_standard_deviation_around_the_mean(statistics, stored) -> None:
    gates, labels = stored
    line = excitation_figures.deviations(statistics, [1, 5]).panels[0].series[0]
    own = gates["SE_2_3"][labels == 1]
    np.testing.assert_allclose(line.low, own.mean(0) - own.std(0), atol=1e-5)
    np.testing.assert_allclose(line.high, own.mean(0) + own.std(0), atol=1e-5)


def test_a_unit_the_net_has_not_got_names_the_nearest(statistics) -> None:
    with pytest.raises(SpecError, match="did you mean 'SE_4_3'"):
        excitation_figures.activations(statistics, [1], ["SE_4_33"])


def test_the_command_writes_statistics_figures_and_page(trial: Path, tmp_path: Path, capsys) -> None:
    assert main(["excitations", str(trial), "--classes", "1,7", "--images_per_class", "4", "-o", str(tmp_path)]) == 0
    listed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert all(path.exists() for path in listed)
    names = {path.name for path in listed}
    assert {"excitations.safetensors", "figure_6.png", "figure_6.svg", "figure_7.png", "explorer.html"} <= names
    assert ExcitationStatistics.load(tmp_path / "excitations.safetensors").images == 40
    assert {path.stem for path in listed} <= {"excitations", "explorer", *inspection.FIGURES}


@pytest.mark.parametrize("name", ["figure_6.png", "explorer.html", "excitations.safetensors", "excitations.part"])
def test_files_of_others_are_replaced_only_when_asked(name: str, trial: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(excitation_collect, "_run", lambda *_: pytest.fail("an image was run"))
    (tmp_path / name).write_text("mine")
    with pytest.raises(SpecError, match=rf"{name} already exists and was not written by SE-Lab.*--overwrite"):
        inspect_nets([trial], Inspection(output=tmp_path))
    with pytest.raises(SpecError, match=f"{name} already exists"):
        inspect_sweep(read_records(trial.parent), Inspection(output=tmp_path))
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.usefixtures("quick")
def test_its_own_files_are_replaced_and_those_of_others_with_overwrite(
    trial: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    few = Inspection(output=tmp_path / "out", capture=CaptureOptions(images_per_class=1))
    inspect_nets([trial], few)
    inspect_nets([trial], few)  # its own page and statistics
    (tmp_path / "out" / "explorer.html").write_text("mine")
    (tmp_path / "out" / "maps.png").write_text("mine")
    inspect_nets([trial], dataclasses.replace(few, overwrite=True))
    assert (tmp_path / "out" / "explorer.html").read_text() != "mine"
    with pytest.raises(SpecError, match=r"maps\.png already exists"):  # not written before, so it stays another's
        inspect_nets([trial], few)


@pytest.mark.usefixtures("quick")
def test_several_checkpoints_of_a_trial_show_how_its_units_moved(trial: Path, tmp_path: Path) -> None:
    state = torch.load(trial / "best.ckpt", weights_only=True)
    torch.save(state | {"epoch": 5}, trial / "best.ckpt")
    write_record(trial, read_record(trial))  # with the digest of this file
    written = inspect_nets([trial / "last.ckpt", trial / "best.ckpt"], Inspection(output=tmp_path))
    names = [str(path.relative_to(tmp_path)) for path in written]
    assert "training.png" in names
    assert "unit_similarity.png" in names
    figures = [f"{trial.name}_{name}/figure_6.png" for name in ("last", "best")]
    assert [name for name in names if name.endswith("figure_6.png")] == figures


@pytest.mark.usefixtures("quick", "wandb_offline")
def test_across_a_sweep_variants_are_overlaid_and_baselines_left_out(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for se in ({"excitation": "sigmoid"}, {"excitation": "tanh"}, {"insertion": "none"}):
        write_trial(store, **se)
    written = inspect_sweep(read_records(store), Inspection(output=tmp_path / "out", wandb="p"))
    assert len([path for path in written if path.name == "figure_6.png"]) == 2
    assert (tmp_path / "out" / "explorer.html").exists()
    runs = list(store.glob("*/excitations/wandb/offline-run-*/*.wandb"))
    assert len(runs) == 2
    for run in runs:  # a trial's run has its id
        assert run.stem == f"run-{run.parents[3].name}"
        assert b"excitations/SE_2_1" in run.read_bytes() and b"excitations/SE_4_3" in run.read_bytes()
    looks = [
        (path.parent.parent.name, ExcitationStatistics.load(path)) for path in written if path.suffix == ".safetensors"
    ]
    panels = excitation_comparisons.overlay(looks).panels
    assert [panel.title for panel in panels] == ["stage 2", "stage 3", "stage 4"]
    low = [line.x[line.y > 0][0] for line in panels[0].series]
    assert sorted(np.sign(low).tolist()) == [-1, 1]  # tanh's gates go below 0


@pytest.mark.usefixtures("quick")
def test_the_explorer_of_a_sweep_shows_two_variants_in_any_order_of_trials(tmp_path: Path, monkeypatch) -> None:
    pages = []
    monkeypatch.setattr(
        inspection, "write_page", lambda nets, path, **_: pages.append([name for name, _ in nets]) or path
    )
    for se in ({"excitation": "sigmoid"}, {"excitation": "tanh"}, {"excitation": "sigmoid", "seed": 1}):
        write_trial(tmp_path / "store", **se)
    records = read_records(tmp_path / "store").sort_values(["seed", "model.se.excitation"])
    inspect_sweep(records, Inspection(output=tmp_path / "out"))
    assert pages[-1] == ["sigmoid", "tanh"]


def test_fifty_units_and_long_labels_are_legible_in_one_column() -> None:
    sites = [GateSite(f"SE_{2 + i // 13}_{i % 13 + 1}", 2 + i // 13, i % 13 + 1, 4, str(i)) for i in range(50)]
    filled = ExcitationStatistics(sites, list("uvwxyz"))
    gates = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
    filled.update({site.name: gates for site in sites}, torch.arange(6).repeat(10))
    looks = [(f"resnet50_v1.a1_in1k, standard, r={r}, sigmoid", filled) for r in (2, 4, 8)]
    for chart in (
        excitation_comparisons.selectivity(looks),
        excitation_comparisons.unit_similarity(filled),
        excitation_comparisons.saturation(filled),
        excitation_figures.distribution(filled),
    ):
        figure = draw(chart, Look("paper"))
        assert list(overlaps(figure)) == []
        assert min(text.get_fontsize() for text in texts(figure)) >= SMALLEST


def test_a_sweep_without_units_says_so(tmp_path: Path) -> None:
    write_trial(tmp_path, insertion="none")
    with pytest.raises(ExcitationError, match="none of 1 trials has finished and has SE units"):
        inspect_sweep(read_records(tmp_path), Inspection())


def test_wrong_input_costs_nothing_and_says_what_to_do(trial: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(excitation_collect, "_run", lambda *_: pytest.fail("an image was run"))
    plain = write_trial(tmp_path, insertion="none")
    for arguments, message in (
        ([str(plain)], "cifar_resnet20 has no unit with a gate"),
        ([str(trial), "--classes", "ten"], "unknown class 'ten'"),
        ([str(trial / "lst.ckpt")], "did you mean 'last.ckpt'"),
        (["timm:seresnet5"], "did you mean 'seresnet50'"),
        (["timm:resnet18"], "resnet18 has no unit with a gate"),
        ([str(trial), "--data", f"folder:{tmp_path / 'none'}"], "is not a folder of images"),
        ([], "give either checkpoints or timm:NAME"),
    ):
        assert main(["excitations", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_checkpoint_of_another_net_is_refused(tmp_path: Path) -> None:
    a, b = write_trial(tmp_path, reduction=2), write_trial(tmp_path, reduction=4)
    (a / "last.ckpt").write_bytes((b / "last.ckpt").read_bytes())
    write_record(a, read_record(a))  # with the digest of this file
    with pytest.raises(SpecError, match=r"does not match the cifar_resnet20 of its record.*reduce\.weight"):
        open_net(a / "last.ckpt")


def test_a_gate_that_is_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    net = driven_net()
    with torch.no_grad():
        net.model.blocks[0][0].expand.bias[1] = float("nan")
    with pytest.raises(ExcitationError, match=r"gates of SE_2_1 are NaN.*diverged"):
        collect(net, driven_images(), tmp_path / "x.safetensors", CaptureOptions())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, count in (("n01443537", 3), ("n02110958", 2), ("n09246464", 0)):
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{number}.png")
    return tmp_path


@pytest.mark.usefixtures("quick")
def test_a_pretrained_net_of_timms_sees_a_folder_as_timm_would_show_it(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: make("seresnet18" if pretrained else name))
    net = open_net("timm:seresnet50.ra2_in1k")
    images = open_data(net, f"folder:{folder}", workers=0)
    (batch, labels, numbers), *rest = images.batches(torch.tensor([4, 0]))
    assert not rest
    assert batch.shape == (2, *timm.data.resolve_model_data_config(net.model)["input_size"])
    assert (labels.tolist(), numbers.tolist()) == ([1, 0], [4, 0])
    written = inspect_nets(
        ["timm:seresnet50.ra2_in1k"], Inspection(data=f"folder:{folder}", output=tmp_path / "o", workers=0)
    )
    assert ExcitationStatistics.load(written[0]).count.tolist() == [3, 2, 0]
    with pytest.raises(ExcitationError, match="no image of class n09246464"):
        inspect_nets(["timm:seresnet50"], Inspection(data=f"folder:{folder}", classes=["cliff"]))
    with pytest.raises(ExcitationError, match="has no images; give --data"):
        open_data(net)
    assert excitation_collect.output_of_class(net.model, ["n02110958"]).tolist() == [254]  # ImageNet's pug


def test_an_unreadable_image_is_named(folder: Path, trial: Path) -> None:
    (folder / "val" / "n01443537" / "1.png").write_bytes(b"torn")
    net = driven_net()
    images = open_data(
        dataclasses.replace(open_net(trial), model=timm.create_model("seresnet18")), f"folder:{folder}", workers=0
    )
    assert net.label
    with pytest.raises(DataError, match=r"1\.png cannot be read"):
        list(images.batches(torch.arange(5)))
