"""The page of each badge can be read at any width, in light and in dark."""

import pytest
from browser import errors, open_browser, open_page, text, unfold
from event_rows import (
    autopsy,
    dump,
    halt,
    remedy,
    rollback,
    start,
    streak,
    update,
    write_events,
    write_scalars,
)

pytest.importorskip('plotly')
pytest.importorskip('selenium')

from mmnanguard.report import load_run, write_page

LONG = 'backbone.stages.3.blocks.17.attention.projection.relative_position'
TROUBLE = [
    *(update(i, name=f'{LONG}.weight') for i in (40, 42)),
    *(autopsy(42, LONG), dump(42, f'/data/{LONG}/x.pt'), remedy(42, LONG)),
]
GOING_BACK = [update(60, 'divergence', action='rollback'), rollback(60)]


def end(how='finished', **keys):
    return dict(schema=1, kind='end', how=how, iter=400, **keys)


RUNS = {
    'Healthy': [start(), end()],
    'Recovered': [start(), *TROUBLE, *GOING_BACK, end()],
    'Unclear': [
        start(),
        end(first_losses=dict(default=1.0), last_losses=dict(default=99.0)),
    ],
    'Sick': [start(), *TROUBLE, *streak(396), halt(400)],
    'Crashed': [start(), *TROUBLE, end('crashed', error=f'KeyError: {LONG}')],
    'Not guarded': [start(unguarded={'default': LONG.replace('.', '_')})],
}

# Problems of the page: texts without contrast, and parts that are cut off.
CHECK = """
const parts = (color) => color.match(/[0-9.]+/g).map(Number);
const light = (color) => {
  const [r, g, b] = parts(color).map((x) => x / 255)
    .map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (item) => {
  const color = getComputedStyle(item).backgroundColor;
  return parts(color)[3] === 0 ? ground(item.parentElement) : color;
};
const problems = [];
const note = (is, text) => { if (is) problems.push(text); };
const {clientWidth: width, scrollWidth} = document.documentElement;
note(scrollWidth > width, 'the page scrolls');
for (const item of document.querySelectorAll('main *')) {
  const box = item.getBoundingClientRect();
  if (item.closest('.plot') || !box.width) continue;
  const isText = (node) => node.nodeType === 3 && node.data.trim();
  if (item.disabled || ![...item.childNodes].some(isText)) continue;
  const shown = item.textContent.slice(0, 40);
  const [a, b] = [getComputedStyle(item).color, ground(item)].map(light);
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  note(contrast < 4.5, `contrast ${contrast.toFixed(2)}: ${shown}`);
  note(box.left < 0 || box.right > width + 1, `cut off: ${shown}`);
  const inner = item.clientWidth;
  note(inner && item.scrollWidth > inner + 1, `too wide: ${shown}`);
}
for (const plot of document.querySelectorAll('.plot')) {
  const {left, right} = plot.getBoundingClientRect();
  for (const item of plot.querySelectorAll('svg text')) {
    const box = item.getBoundingClientRect();
    const isCut = box.left < left - 1 || box.right > right + 1;
    note(box.width && isCut, `cut off in a chart: ${item.textContent}`);
  }
  for (const panel of plot.querySelectorAll('.cartesianlayer > .subplot')) {
    note(!panel.querySelector('.plot path, .plot image'), 'an empty panel');
  }
}
return problems;
"""


@pytest.fixture(scope='module')
def driver():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope='module')
def reports(tmp_path_factory):
    reports = {}
    for badge, rows in RUNS.items():
        folder = tmp_path_factory.mktemp(badge.replace(' ', '_'))
        write_events(folder / '1', rows)
        scalars = []
        for iter_ in range(10, 401, 10):
            row = dict(loss=10 / iter_, grad_norm=2.0, lr=0.1, iter=iter_)
            scalars.append(row)
            val = {'accuracy/top1': iter_ / 4, 'time': 1.0, 'step': iter_}
            scalars.append(val)
        write_scalars(folder / '1', scalars)
        reports[badge] = load_run(str(folder))
    return reports


@pytest.fixture(params=['light', 'dark'])
def scheme(request, driver):
    emulate(driver, 'Media', features=[scheme_of(request.param)])
    yield request.param
    emulate(driver, 'Media', features=[])


@pytest.fixture(params=[1400, 420])
def width(request, driver):
    size = dict(width=request.param, height=1000)
    metrics = dict(size, deviceScaleFactor=1, mobile=False)
    emulate(driver, 'DeviceMetricsOverride', **metrics)
    yield request.param
    driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def scheme_of(name):
    return dict(name='prefers-color-scheme', value=name)


def emulate(driver, what, **keys):
    prefix = 'setEmulated' if what == 'Media' else 'set'
    driver.execute_cdp_cmd(f'Emulation.{prefix}{what}', keys)


@pytest.mark.parametrize('badge', RUNS)
def test_the_page_of_a_run(driver, reports, badge, width, scheme, tmp_path):
    report = reports[badge]
    write_page([report], tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    assert text(driver, '.badge') == badge
    labels = text(driver, '.lines').split('\n')
    for label, clause in report.lines_below:
        assert clause == labels[labels.index(label.capitalize()) + 1]
    assert driver.execute_script(CHECK) == []
    assert errors(driver) == []


def test_the_page_of_all_runs(driver, reports, width, scheme, tmp_path):
    write_page(list(reports.values()), tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    rows = text(driver, '.comparison')
    for badge, report in reports.items():
        assert badge in rows
        assert report.verdict.headline in rows
    assert driver.execute_script(CHECK) == []
    # Only the chart that compares them can be seen.
    script = (
        "return [...document.querySelectorAll('.plot')]"
        '.filter((plot) => plot.checkVisibility()).length'
    )
    assert driver.execute_script(script) == 1
    unfold(driver)
    assert driver.execute_script(script) == len(reports) + 1
    assert driver.execute_script(CHECK) == []
    assert errors(driver) == []
