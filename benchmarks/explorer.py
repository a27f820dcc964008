"""Response times of pages: python benchmarks/explorer.py [--tries 5], two minutes.

Opens the explorer of a net with 16 units of 2,048 channels and 1,000 classes in headless Chromium, and changes each
control a few times; then types into the filter of a report of 200 trials. Prints the time from the change to the
painted page in ms: median, maximum and limit. Needs chromium, chromedriver and selenium (extra dev).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import table

from analysis import make_store
from se_lab.excitations.capture import GateSite
from se_lab.excitations.page import write_page
from se_lab.excitations.statistics import ExcitationStatistics
from se_lab.report import write_report
from se_lab.store import read_records

UNITS, CHANNELS, CLASSES = 16, 2048, 1000
LIMIT_MS = 1000
TRIALS, FILTER_LIMIT_MS = 200, 200
FILTERS = ("r<=8", "r<=8 lr=0.001", "r=16", "finished", "")
CONTROLS = {
    "unit": ("SE_3_8", "SE_2_1"),
    "stage": ("3", "2"),
    "channels in order of selectivity": ("order", "selectivity", "number"),
    "all channels that the page has": ("count", "MOST", "50"),
    "a class added": ("class", "class 500", "class 501"),
    "another channel": ("channel", "7", "11"),
    "standard deviations": ("spread",),
}
"""For each action, the control (if it has another name) and its values in turn; without values, a checkbox."""


def artificial_statistics() -> ExcitationStatistics:
    """Return artificial statistics of ImageNet's size."""
    sites = [GateSite(f"SE_{2 + i // 8}_{i % 8 + 1}", 2 + i // 8, i % 8 + 1, CHANNELS, f"u{i}") for i in range(UNITS)]
    filled = ExcitationStatistics(sites, [f"class {k}" for k in range(CLASSES)])
    filled.count += 50
    filled.images = 50 * CLASSES
    filled.mean.copy_(torch.rand(filled.mean.shape, generator=torch.Generator().manual_seed(0)))
    filled.m2.fill_(0.5)
    filled.minimum.zero_()
    filled.maximum.fill_(1)
    filled.by_class[:, :, 40:80] = 7
    filled.by_channel[:, 40:80] = 7
    filled.about = {"backbone": "made up", "data": "nothing"}
    return filled


def browser(profile: str) -> Any:
    """Start headless Chromium with a separate profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(flag)
    options.add_argument("--window-size=1400,1800")
    options.add_argument(f"--user-data-dir={profile}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def milliseconds(page: Any, control: str, value: str | None) -> float:
    """Change a control, and return the time until the page is painted."""
    act = f'at("{control}").click();'
    if value is not None:
        given = f'at("{control}").max' if value == "MOST" else repr(value)
        act = f'at("{control}").value = {given}; at("{control}").dispatchEvent(new Event("change"));'
    script = (
        f"const done = arguments[0], began = performance.now(); {act}"
        "requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));"
    )
    return float(page.execute_async_script(script))


def filter_milliseconds(page: Any, path: Path, tries: int) -> list[float]:
    """Return the times from a change of a report's filter until table and figures are painted."""
    page.get(path.as_uri())
    while not page.execute_script("return document.body.dataset.ready"):
        time.sleep(0.1)
    page.execute_script("at('tradeoff').scrollIntoView({block: 'center'})")
    while not page.execute_script("return plots.some(plot => plot.near && !plot.dirty)"):
        time.sleep(0.1)
    script = (
        "const [text, done] = arguments, began = performance.now();"
        "at('filter').value = text; at('filter').dispatchEvent(new Event('input'));"
        "const wait = () => (address.values.get('filter') ?? '') !== text ? setTimeout(wait)"  # set before drawing
        " : requestAnimationFrame(() => setTimeout(() => done(performance.now() - began))); wait();"
    )
    return [float(page.execute_async_script(script, FILTERS[n % len(FILTERS)])) for n in range(tries)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tries", type=int, default=5, help="Number of changes of each control.")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        path = write_page(
            [("large", artificial_statistics())], Path(name, "page.html"), unit="SE_2_1", classes=[1, 254, 404, 972]
        )
        megabytes = path.stat().st_size / 1e6
        page = browser(f"{name}/profile")
        try:
            page.get(path.as_uri())
            while not page.execute_script("return document.body.dataset.ready"):
                time.sleep(0.1)
            for what, (first, *others) in CONTROLS.items():
                control, values = (what, [first, *others]) if what in ("unit", "stage") else (first, others)
                tries = range(max(options.tries, len(values)))
                times = [milliseconds(page, control, values[n % len(values)] if values else None) for n in tries]
                rows.append([what, f"{statistics.median(times):.0f}", f"{max(times):.0f}", LIMIT_MS])
            make_store(Path(name, "store"), TRIALS, 20)
            report = write_report(read_records(Path(name, "store")), Path(name, "report.html"))
            times = filter_milliseconds(page, report, max(options.tries, len(FILTERS)))
            what = f"a report's filter, {TRIALS} trials"
            rows.append([what, f"{statistics.median(times):.0f}", f"{max(times):.0f}", FILTER_LIMIT_MS])
        finally:
            page.quit()
    print(f"{UNITS} units of {CHANNELS:,} channels, {CLASSES:,} classes: a page of {megabytes:.1f} MB (limit 60).\n")
    print(table(["control", "median (ms)", "slowest (ms)", "limit (ms)"], rows))


if __name__ == "__main__":
    main()
