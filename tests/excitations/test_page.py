"""The explorer, driven in headless Chromium: every control does what it says, without an error."""

from __future__ import annotations

import io
import time
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
from tests.pages import axe_findings


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
    statistics.about = {"variant": "made up", "data": "nothing"}
    return statistics


class Page:
    """One page in the browser."""

    def __init__(self, browser: Any, path: Path, fragment: str = "") -> None:
        self.browser = browser
        browser.get("about:blank")  # another fragment of the same page would not load it again
        browser.get_log("browser")
        browser.get(path.as_uri() + fragment)
        for _ in range(3000):
            if browser.execute_script("return document.body.dataset.ready"):
                break
            time.sleep(0.1)

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
    assert "To limit the size of the page" in view.do('r = at("thinned").textContent;')

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


def test_the_address_shows_the_same_again(page: Callable[..., Page], tmp_path: Path) -> None:
    view = page([("one", made_up([8, 60, 70], 12))])
    view.set("unit", "SE_2_2")
    view.set("class", "class 7")
    view.set("channel", 59)
    view.set("order", "selectivity")
    view.set("count", 20)
    view.click("spread")
    address = view.do("r = location.hash;")

    def seen(view: Page) -> tuple[Any, ...]:
        return view.do(
            'r = [at("unit").value, state.classes, at("channel").value, at("order").value, at("spread").checked];'
        ), view.traces("profile")

    first = seen(view)
    assert first[0] == ["SE_2_2", [0, 1, 7], "59", "selectivity", True]
    again = Page(view.browser, tmp_path / "explorer.html", address)
    assert seen(again) == first
    wrong = Page(view.browser, tmp_path / "explorer.html", "#?unit=SE_9_9&classes=3,77&channel=400")
    assert wrong.do('r = [at("unit").value, state.classes];') == ["SE_2_1", [3]]
    said = wrong.do('r = at("message").textContent;')
    assert "There is no unit SE_9_9" in said and "no class 77" in said and "no channel 400" in said
    assert wrong.errors() == []


def test_a_wrong_choice_is_said(page: Callable[..., Page]) -> None:
    view = page([("one", made_up([8, 60], 20))], classes=[4])

    def said(control: str, value: object) -> str:
        view.set(control, value)
        return str(view.do('r = at("message").textContent;'))

    assert said("class", "clas 5") == "Unknown class “clas 5”."
    assert "similar: class 5" in said("class", "s 5")
    assert "name of a class" in said("class", " ")
    assert "already selected" in said("class", "class 4")
    assert said("count", 900) == "SE_2_1 has 8 channels on this page; choose 1 to 8."
    assert view.do('r = at("count").value;') == "8"
    assert "the channels go from 0 to 7" in said("channel", 8)
    assert "number of a channel" in said("channel", "") and view.do("r = state.channel;") == 8
    for label in (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15):
        assert said("class", f"class {label}").startswith("SE_2_1 has no channel 8")  # and nothing of the class
    assert "At most 12" in said("class", "class 16")


def test_twelve_classes_look_different_and_keep_their_look(page: Callable[..., Page]) -> None:
    view = page([("one", made_up([8], 14))], classes=list(range(12)))
    looks = (
        'r = document.querySelector("#net-0 .profile").data.slice(0, -1).map(t => [t.name, t.line.color, t.line.dash]);'
    )
    before = {name: (color, dash) for name, color, dash in view.do(looks)}
    assert len(set(before.values())) == 12
    for dash in ("solid", "dash"):  # by CIE76, of which 2.3 is a just noticeable difference
        shown = [lab(color) for color, kind in before.values() if kind == dash]
        assert min(np.linalg.norm(a - b) for i, a in enumerate(shown) for b in shown[:i]) > 20
    view.do('at("chosen").children[3].click();')
    view.set("class", "class 13")
    after = {name: (color, dash) for name, color, dash in view.do(looks)}
    assert after == {name: look for name, look in before.items() if name != "class 3"} | {"class 13": before["class 3"]}


def lab(color: str) -> np.ndarray:
    """Return the CIELAB coordinates of #rrggbb (IEC 61966-2-1, white D65)."""
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_long_names_keep_the_end_that_tells_them_apart(page: Callable[..., Page]) -> None:
    statistics = made_up([8], 3)
    start = "a domestic animal of the family of "
    statistics.classes = [f"{start}felines, grown in {place}" for place in ("Manchester", "Newcastle")] + [
        f"x{start}{start}x"
    ]
    view = page([("one", statistics)], classes=[0, 1, 2])
    names = [line["name"] for line in view.traces("profile")[:3]]
    assert [name[-10:] for name in names[:2]] == ["Manchester", " Newcastle"] and all(len(name) <= 30 for name in names)
    ticks = view.do('r = document.querySelector("#net-0 .one").layout.yaxis.ticktext;')
    assert set(ticks) == set(names)


def test_figures_are_named_and_have_their_numbers(page: Callable[..., Page]) -> None:
    statistics = made_up([8, 9], 4)
    statistics.about |= {"variant": "cifar_resnet20 standard r=4, seed 1", "trial_id": "0123456789ab", "data": "digits"}
    view = page([("r=4", statistics)], classes=[2])
    about = view.do('r = document.querySelector("header").textContent;')
    assert all(
        part in about for part in ("r=4", "cifar_resnet20", "seed 1", "trial 0123456789ab", "digits", "4 classes")
    )
    for plot in ("overview", "profile", "one", "gates"):
        named = view.do(f'r = document.querySelector("#net-0 .{plot}").getAttribute("aria-label");')
        assert "r=4" in named
        view.do(
            f'document.querySelector("#net-0 .{plot}").closest("div:not(.plot)").querySelector("details").open = true;'
        )
    view.set("order", "number")
    rows = view.do("r = profileRows(0, 0);")
    assert rows[0] == ["channel", "all classes", "class 2", "class 2, standard deviation"]
    np.testing.assert_allclose([row[2] for row in rows[1:]], statistics.unit("SE_2_1").mean[2], atol=1e-4)
    buttons = view.do('r = [...document.querySelectorAll("#net-0 .controls button")].map(b => b.textContent);')
    assert buttons == ["Download SVG", "Download data (CSV)"] * 4


def test_without_javascript_the_units_and_figures_stand_there(browser: Any, tmp_path: Path) -> None:
    image = tmp_path / "figure_6.png"
    Image.new("RGB", (300, 200)).save(image)
    statistics = made_up([8, 60], 3)
    path = write_page([("r=4", statistics)], tmp_path / "x.html", unit="SE_2_1", classes=[0], figures=[image])
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(path.as_uri())
        rows = [row.text.split()[:3] for row in browser.find_elements("css selector", "main tr")]
        assert rows[1:] == [["SE_2_1", "2", "8"], ["SE_3_1", "3", "60"]]
        assert browser.find_element("css selector", "main h1").text == "Excitations of r=4"
        assert browser.find_element("css selector", "main img").size["height"] == 200
        assert not browser.find_element("id", "unit").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_on_paper_nothing_is_wider_than_the_sheet(page: Callable[..., Page]) -> None:
    view = page([("a", made_up([60], 5)), ("b", made_up([60], 5, seed=1))])
    size = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    view.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    view.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        view.do("dispatchEvent(new Event('beforeprint'));")
        rights = view.do("r = [...document.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().right);")
        assert rights and max(rights) <= 720
        assert not view.browser.find_element("id", "bar").is_displayed()
        view.do("dispatchEvent(new Event('afterprint'));")
    finally:
        view.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        view.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Callable[..., Page], scheme: str) -> None:
    view = page([("a", made_up([8, 60], 5)), ("b", made_up([8, 9], 5, seed=1))])
    assert axe_findings(view.browser, scheme) == []
