"""Heatmap and countdown in a real browser."""

import pytest
from browser import (
    drag,
    errors,
    open_browser,
    open_page,
    ranges,
    text,
    unfold,
    wait,
)
from event_rows import (
    alert,
    halt,
    header,
    sample,
    start,
    streak,
    write_events,
    write_samples,
    write_scalars,
)

pytest.importorskip('plotly')
pytest.importorskip('selenium')

from mmnanguard.report import load_run, write_page

# Boxes of what is drawn in the card of the samples: left, right, top, bottom.
DRAWN = """
const plot = document.querySelectorAll('.plot')[1];
const all = (selector) => [...plot.querySelectorAll(selector)];
const boxes = (items) => items.map((item) => item.getBoundingClientRect())
  .map(({left, right, top, bottom}) => [left, right, top, bottom]);
const texts = (selector) => all(selector).map((item) => item.textContent);
return {
  cells: boxes(all('.heatmaplayer image')),
  hatched: boxes(all('.bars path')),
  dashed: boxes(all('.scatterlayer .js-line')
    .filter((item) => item.style.strokeDasharray.includes(','))),
  lines: boxes(all('.shapelayer path')),
  names: texts('.ytick'),
  words: texts('.annotation'),
  label: plot.getAttribute('aria-label'),
};
"""


@pytest.fixture(scope='module')
def driver():
    driver = open_browser()
    yield driver
    driver.quit()


def write_monitored(folder, name='head', first=80, num_more=0):
    """Write a run whose head overflows, and whose norm runs in float32.

    More modules of float16 are always at 2.
    """
    rows = [alert(first - 40, 'headroom', module=name), *streak(first)]
    write_events(folder / '1', [start(), *rows, halt(first + 4)])
    more = [f'more.{i}' for i in range(num_more)]
    samples = [header('stem', name, 'norm', *more)]
    for iter_ in range(1, first, 5):
        outputs = [1, 4 + iter_ / 10, 2, *[1] * num_more]
        samples.append(sample(iter_, outputs, [0, 1], update_ratio=0.01))
    write_samples(folder / '1', samples)
    scalars = [dict(iter=i, loss=1.0) for i in range(1, first)]
    write_scalars(folder / '1', scalars)
    return load_run(str(folder))


@pytest.mark.parametrize('width', [1280, 420])
def test_heatmap_and_countdown(driver, tmp_path, width):
    report = write_monitored(tmp_path)
    write_page([report], tmp_path / 'page.html')
    metrics = dict(width=width, height=1000, deviceScaleFactor=1, mobile=False)
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    try:
        open_page(driver, tmp_path / 'page.html')
        drawn = driver.execute_script(DRAWN)
    finally:
        driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    assert drawn['names'][:3] == ['head', 'stem', 'norm']
    ((left, right, top, bottom),) = drawn['cells']
    assert right - left > 100
    # The hatching covers the lowest row, which is the module in float32.
    (bar,) = drawn['hatched']
    assert bar[:2] == pytest.approx([left, right], abs=2)
    assert top + (bottom - top) / 2 < bar[2] < bar[3] < bottom + 2
    # The countdown begins at the alert, and ends at 65504.
    alert_line, rejected_line, _ = sorted(drawn['lines'])
    (dashed,) = drawn['dashed']
    assert dashed[0] == pytest.approx(alert_line[0], abs=3)
    assert alert_line[0] < rejected_line[0] < right + 20
    assert {'alert', 'loss not finite'} <= set(drawn['words'])
    assert 'least headroom 4' in drawn['label']
    assert 'Warned\nat iteration 40' in text(driver, '.lines')
    assert '40 iterations before the first rejected' in text(driver, 'main')
    assert errors(driver) == []


def test_monitored_runs_zoom_together(driver, tmp_path):
    """The names of modules stay those of each run."""
    write_events(tmp_path / 'plain' / '1', [start(), *streak(60)])
    runs = [
        write_monitored(tmp_path / 'a'),
        load_run(str(tmp_path / 'plain')),
        write_monitored(tmp_path / 'b', 'neck', first=100, num_more=9),
    ]
    write_page(runs, tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    before = ranges(driver)
    assert len(before) == 6
    unfold(driver)
    drag(driver, 0.1, 0.3, plot=4)
    wait(driver, "return !!document.querySelector('.status button')")
    assert len({tuple(x) for x in ranges(driver)}) == 1
    assert ranges(driver) != before
    names = driver.execute_script(
        "return [2, 5].map((n) => document.querySelectorAll('.plot')[n]"
        ".querySelector('.ytick').textContent)"
    )
    assert names == ['head', 'neck']
    _, _, few, _, _, many = ranges(driver, 'yaxis')
    assert (few, many) == ([2.5, -0.5], [11.5, -0.5])
    assert errors(driver) == []


def test_a_healthy_monitored_run(driver, tmp_path):
    write_events(tmp_path / '1', [start()])
    samples = [header('head'), sample(1, [3], [0], update_ratio=0.01)]
    write_samples(tmp_path / '1', samples)
    write_page([load_run(str(tmp_path))], tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    assert text(driver, '.margins') == (
        "stability: least headroom 13.0 bits ('head', iteration 1), "
        'update ratio up to 1 %'
    )
    assert errors(driver) == []
