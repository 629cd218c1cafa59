"""Axes have ticks that fit the range that is shown, in a real browser."""

import math

import pytest
from browser import open_browser, open_page, ranges, unfold
from event_rows import start, update, write_events, write_scalars

pytest.importorskip('plotly')
pytest.importorskip('selenium')

from mmnanguard.report import load_run, write_page


@pytest.fixture(scope='module')
def driver():
    driver = open_browser()
    yield driver
    driver.quit()


TICKS = (
    "return [...document.querySelectorAll('.plot')].map((plot) => {"
    '  const key = Object.keys(plot.layout).find((name) => /^yaxis/.test(name)'
    '    && plot.layout[name].title.text === arguments[0]);'
    '  if (!key) return null;'
    "  const name = `${key.replace('axis', '')}tick`;"
    '  return [...plot.querySelectorAll(`.${name}`)].map((tick) => {'
    '    const {top, bottom} = tick.getBoundingClientRect();'
    '    return [tick.textContent, top, bottom];'
    '  });'
    '}).filter((chart) => chart !== null)'
)


def ticks(driver, title):
    """Return the tick labels of each chart, bottom up; none covers another."""
    charts = driver.execute_script(TICKS, title)
    for chart in charts:
        for (_, top, _), (name, _, bottom) in zip(chart, chart[1:]):
            assert bottom <= top + 1, (title, name, chart)
    return [[name for name, _, _ in chart] for chart in charts]


def write_scales(folder, *scales, num_rejected=0):
    write_events(
        folder / '1',
        [start(), *(update(2, loss_scale=None) for _ in range(num_rejected))],
    )
    scalars = [
        {'iter': i, 'loss': 1.0, 'lr': 0.1, 'guard/amp_scale': scale}
        for i, scale in enumerate(scales, 1)
    ]
    write_scalars(folder / '1', scalars)
    return load_run(str(folder))


def test_ticks_fit_the_range_that_is_shown(driver, tmp_path):
    """The range of several runs covers all runs."""
    runs = [
        write_scales(tmp_path / 'a', 2.0**14, 2.0**16, num_rejected=1),
        write_scales(tmp_path / 'b', 1.0, 2.0**20, num_rejected=50),
    ]
    write_page(runs[:1], tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    assert ticks(driver, 'loss scale') == [['16,384', '32,768', '65,536']]
    assert ticks(driver, 'rejected') == [['0', '1']]
    write_page(runs, tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    unfold(driver)
    assert len(ticks(driver, 'loss scale')) == len(runs)
    for chart in ticks(driver, 'loss scale'):
        assert 3 <= len(chart) <= 6
        powers = [math.log2(float(name.replace(',', ''))) for name in chart]
        assert all(power.is_integer() for power in powers)
    for chart in ticks(driver, 'rejected'):
        assert 3 <= len(chart) <= 8


def test_an_axis_that_one_run_needs_logarithmic(driver, tmp_path):
    """The range of a logarithmic axis is in exponents."""
    runs = []
    for name, largest in (('a', 20), ('b', 1e4)):
        write_events(tmp_path / name / '1', [start()])
        rows = [dict(iter=1, grad_norm=10), dict(iter=2, grad_norm=largest)]
        write_scalars(tmp_path / name / '1', rows)
        runs.append(load_run(str(tmp_path / name)))
    write_page(runs, tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    unfold(driver)
    first, second = ranges(driver, 'yaxis')
    assert first == second
    assert 0 < first[0] < 1 < 4 < first[1] < 5
    for chart in ticks(driver, 'gradient norm'):
        assert len(chart) == 4


def test_a_constant_is_drawn_above_0(driver, tmp_path):
    write_page([write_scales(tmp_path, 8, 8)], tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    for title, value in (('loss', 1), ('learning rate', 0.1)):
        (names,) = ticks(driver, title)
        assert float(names[0]) == 0
        assert value / 2 <= float(names[-1]) <= 2 * value
