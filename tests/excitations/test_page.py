"""The explorer, driven in headless Chromium: every control does what it says, without an error."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from se_lab.excitations.capture import GateSite
from se_lab.excitations.collect import CaptureOptions, collect
from se_lab.excitations.page import write_page
from se_lab.excitations.statistics import ExcitationStatistics
from tests.excitations.excitation_nets import driven_images, driven_net


def made_up(channels: list[int], classes: int, seed: int = 0) -> ExcitationStatistics:
    """Statistics of units of that many channels in two stages, filled in without running any image."""
    stream = torch.Generator().manual_seed(seed)
    half = (len(channels) + 1) // 2
    sites = [
        GateSite(f"SE_{2 + i // half}_{i % half + 1}", 2 + i // half, i % half + 1, c, f"u{i}")
        for i, c in enumerate(channels)
    ]
    statistics = ExcitationStatistics(sites, [f"class {k}" for k in range(classes)])
    statistics.count += 50
    statistics.images = 50 * classes
    statistics.mean.copy_(torch.rand(statistics.mean.shape, generator=stream))
    statistics.m2.fill_(50 * 0.01)
    statistics.minimum.zero_()
    statistics.maximum.fill_(1)
    statistics.by_class[:, :, 40:80] = 7
    statistics.by_channel[:, 40:80] = 7
    statistics.about = {"backbone": "made up", "data": "nothing"}
    return statistics


class Page:
    """One page in the browser."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.get_log("browser")
        browser.get(path.as_uri())

    def do(self, script: str) -> Any:
        """Run JavaScript, and wait until the browser has painted what came of it."""
        wait = "const done = arguments[0]; let r; {} requestAnimationFrame(() => setTimeout(() => done(r)));"
        return self.browser.execute_async_script(wait.format(script))

    def set(self, id: str, value: object) -> None:
        """Set a control as a user does, and let it tell the page."""
        self.do(f'at("{id}").value = {str(value)!r}; at("{id}").dispatchEvent(new Event("change"));')

    def click(self, id: str) -> None:
        self.do(f'at("{id}").click();')

    def traces(self, plot: str, net: int = 0) -> list[dict[str, Any]]:
        return self.do(
            f'r = document.querySelector("#net-{net} .{plot}").data'
            ".map(t => ({x: t.x, y: t.y, name: t.name, customdata: t.customdata, fill: t.fill}));"
        )

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]

    def shot(self) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.browser.get_screenshot_as_png())).convert("RGB"))


@pytest.fixture
def page(browser: Any, tmp_path: Path) -> Callable[..., Page]:
    def open_page(looks: list[tuple[str, ExcitationStatistics]], **options: Any) -> Page:
        options = {"unit": looks[0][1].sites[0].name, "classes": [0, 1]} | options
        return Page(browser, write_page(looks, tmp_path / "explorer.html", **options))

    return open_page


def test_units_stages_and_classes_are_chosen(page: Callable[..., Page]) -> None:
    statistics = made_up([8, 60, 70, 90], 12)
    view = page([("one", statistics)])
    first = statistics.unit("SE_2_1")
    lines = view.traces("profile")
    assert [line["name"] for line in lines] == ["class 0", "class 1", "all classes"]
    np.testing.assert_allclose(lines[1]["y"], first.mean[1], atol=1e-4)
    np.testing.assert_allclose(lines[2]["y"], first.mean.mean(0), atol=1e-3)
    view.set("unit", "SE_3_2")
    assert len(view.traces("profile")[0]["y"]) == 8  # as many channels as are shown
    view.set("count", 50)
    lines = view.traces("profile")
    channels = lines[0]["customdata"]
    assert len(channels) == 50
    np.testing.assert_allclose(lines[0]["y"], statistics.unit("SE_3_2").mean[0][channels], atol=1e-4)
    view.set("stage", 2)
    assert view.do('r = [...at("unit").options].map(o => o.value);') == ["SE_2_1", "SE_2_2"]
    assert [trace["x"] for trace in view.traces("overview")] == [["SE_2_1", "SE_2_2"]] * 2
    view.set("class", "CLASS 7")
    assert [line["name"] for line in view.traces("profile")] == ["class 0", "class 1", "class 7", "all classes"]
    view.do('at("chosen").querySelector("button").click();')
    assert [line["name"] for line in view.traces("profile")] == ["class 1", "class 7", "all classes"]
    assert view.errors() == []


def test_channels_are_sorted_looked_at_and_shown_with_their_spread(page: Callable[..., Page], tmp_path: Path) -> None:
    net, images = driven_net(), driven_images()
    statistics = collect(net, images, tmp_path / "x.safetensors", CaptureOptions(extremes=True))
    view = page([("driven", statistics)], picture=images.picture, classes=[2])
    assert view.traces("profile")[0]["customdata"] == [0, 1, 2, 3]
    for order in ("selectivity", "explained", "all"):
        view.set("order", order)
        assert view.traces("profile")[0]["customdata"][0] == 3  # the one channel that a class drives
    view.click("spread")
    assert [line["fill"] for line in view.traces("profile")] == ["toself", None, None]
    view.set("channel", 3)
    (bars,) = view.traces("one")
    assert bars["y"][-1] == "pug"
    np.testing.assert_allclose(bars["x"][-1], statistics.unit("SE_2_1").mean[2, 3], atol=1e-4)
    titles = view.do(
        'r = [...document.querySelectorAll(".pictures img")].map(i => [i.title, i.complete, i.naturalWidth]);'
    )
    assert len(titles) == 8
    assert all(int(title.split()[1]) % 3 == 2 for title, _, _ in titles[:4])
    assert all(complete and width for _, complete, width in titles)
    view.do('document.querySelector(".profile").emit("plotly_click", {points: [{customdata: 1}]});')
    assert view.do('r = at("channel").value;') == "1"
    view.set("channel", 9)
    assert view.traces("one") == []
    assert view.errors() == []


def test_two_nets_stand_side_by_side(page: Callable[..., Page]) -> None:
    a, b = made_up([8, 6, 7], 5), made_up([8, 9], 5, seed=1)
    view = page([("a", a), ("b", b)])
    np.testing.assert_allclose(view.traces("profile", 1)[0]["y"], b.unit("SE_2_1").mean[0], atol=1e-4)
    view.do('document.querySelector("#net-0 .overview").emit("plotly_click", {points: [{x: "SE_2_2"}]});')
    assert "no SE_2_2" in view.do('r = document.querySelector("#net-1 .unit").textContent;')
    view.click("compare")
    assert view.do('r = document.querySelectorAll(".net").length;') == 1
    view.click("compare")
    assert view.do('r = document.querySelectorAll(".net").length;') == 2
    assert view.errors() == []


def test_a_page_of_one_net_offers_no_comparison(page: Callable[..., Page]) -> None:
    view = page([("a", made_up([8], 5))])
    assert view.do('r = getComputedStyle(at("compare-field")).display;') == "none"
    assert view.do('r = at("thinned").textContent;') == ""
    assert (view.shot() < 128).any()  # something is drawn


def test_at_imagenets_size_the_page_stays_below_60_mb_says_it_is_thinned_and_its_controls_work(
    page: Callable[..., Page], tmp_path: Path
) -> None:
    statistics = made_up([2048] * 16, 1000)
    view = page([("large", statistics)], classes=[1, 254, 404, 972])
    assert (tmp_path / "explorer.html").stat().st_size < 60e6
    assert "Thinned" in view.do('r = at("thinned").textContent;')

    def check(unit: str, classes: list[int]) -> None:
        for line, k in zip(view.traces("profile"), classes, strict=False):
            np.testing.assert_allclose(line["y"], statistics.unit(unit).mean[k][line["customdata"]], atol=1 / 255)

    check("SE_2_1", [1, 254, 404, 972])
    view.set("unit", "SE_3_8")
    view.set("count", view.do('r = Number(at("count").max);'))
    view.set("class", "class 500")
    check("SE_3_8", [1, 254, 404, 972, 500])
    unordered = view.traces("profile")[0]["customdata"]
    view.set("order", "selectivity")
    check("SE_3_8", [1, 254, 404, 972, 500])
    ordered = view.traces("profile")[0]["customdata"]
    assert len(ordered) > 50 and ordered != unordered and sorted(ordered) == sorted(unordered)
    view.click("spread")
    assert any(trace["fill"] for trace in view.traces("profile"))
    view.set("stage", 2)
    assert view.do('r = at("unit").value;').startswith("SE_2_")
    assert view.errors() == []
