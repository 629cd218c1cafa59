"""The page works in a real browser and uses no network."""

import re
import time

import pytest
from browser import (
    count,
    drag,
    errors,
    open_browser,
    open_page,
    ranges,
    requests,
    text,
    unfold,
    wait,
    wait_until_ready,
)
from campaign_report import many_rows
from event_rows import (
    autopsy,
    bad_input,
    dump,
    halt,
    remedy,
    start,
    update,
    write_events,
    write_scalars,
)

pytest.importorskip('plotly')
pytest.importorskip('selenium')

from selenium.webdriver import ActionChains

from mmnanguard.report import load_run, write_page
from mmnanguard.report.summarize import summarize

# In seconds. A page that draws every row at once takes minutes.
FROZEN = 60
EVIL = (
    '<b>b</b><img src=x onerror="window.evil=1"><script>window.evil=1</script>'
)
ROWS = [
    start(),
    *(update(5, 'loss_nonfinite', samples=('a.jpg', 'b.jpg')), autopsy(5)),
    *(dump(5), remedy(5)),
    *(update(i, name='neck.bias', samples=('b.jpg',)) for i in (20, 21, 22)),
    update(60, 'norm_overflow', name=EVIL),
    *(update(80, 'input_nonfinite'), bad_input(80, EVIL)),
    *(update(i, name='head.weight') for i in range(90, 120)),
    *(update(120, action='halt', name='head.weight'), halt(120)),
]


def write_run(folder, rows=ROWS, num=120, factor=1):
    write_events(folder / '1', rows)
    scalars = [
        dict(iter=i, loss=factor / i, grad_norm=factor * i, lr=0.1)
        for i in range(1, num)
    ]
    write_scalars(folder / '1', scalars)
    return load_run(str(folder))


@pytest.fixture(scope='module')
def driver():
    driver = open_browser()
    yield driver
    driver.quit()


@pytest.fixture(scope='module')
def report(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def path(report, tmp_path_factory):
    path = tmp_path_factory.mktemp('page') / 'page.html'
    write_page([report], path)
    return path


@pytest.fixture
def page(driver, path):
    """Open the page unless it is open, and reset it.

    Whatever a test does, the page has no errors and uses no network.
    """
    if driver.current_url != path.as_uri():
        open_page(driver, path)
    driver.execute_script(
        "Object.assign(sections[0].events.filter, {cause: '', param: '',"
        " sample: '', text: ''}); return zoom(null)"
    )
    yield
    assert errors(driver) == []
    assert {url.split(':')[0] for url in requests(driver)} <= {'file', 'data'}
    assert driver.execute_script('return window.evil') is None


def type_in(driver, name, value):
    driver.execute_script(
        'const input = document.querySelector(`[name=${arguments[0]}]`);'
        "input.value = arguments[1]; input.dispatchEvent(new Event('input'));",
        name,
        value,
    )


def test_all_of_it_is_there(driver, page, report):
    assert count(driver, '.plot svg.main-svg') > 0
    assert count(driver, '.plot .yaxislayer-above') == 6
    verdict = report.verdict
    assert text(driver, '.badge') == verdict.badge == 'Sick'
    assert text(driver, '.headline span:last-child') == verdict.headline
    lines = text(driver, '.lines').split('\n')
    for label, clause in (('Cause', verdict.cause), ('Next', verdict.action)):
        assert lines[lines.index(label) + 1] == clause
    assert 'python -m mmnanguard replay' in text(driver, '.steps')
    for name in ('neck.bias', 'aten.mm', 'b.jpg'):
        assert name in text(driver, '.culprits')
    assert EVIL in text(driver, 'main')
    # Updates do not bury what followed them.
    driver.find_element('css selector', '.chip:last-child').click()
    for name in ('attempt 1 starts', 'runs in float32', 'What to try: rest.'):
        assert name in text(driver, '.events')
    assert count(driver, 'tr.update') == 0
    # plotly.js has a button that sends the chart to its makers.
    titles = driver.execute_script(
        "return [...document.querySelectorAll('.modebar-btn')]"
        '.map((button) => button.dataset.title)'
    )
    assert titles
    assert not [t for t in titles if re.search('share|cloud|edit', t, re.I)]


def test_filters(driver, page, report):
    num = len(report.summary.events)
    assert text(driver, '.status').startswith(f'{num} rows match')
    assert count(driver, 'tr.event') == 25
    for name, value, expected in (
        ('param', 'NECK', 3),
        ('sample', 'b.jpg', 4),
        ('sample', 'onerror', 1),
        ('cause', 'norm_overflow', 1),
        ('cause', 'kind dump', 1),
        ('cause', 'followed', 6),
        ('text', 'what to try', 1),
        ('text', 'nothing is called so', 0),
    ):
        type_in(driver, name, value)
        assert count(driver, 'tr.event') == expected, (name, value)
        assert text(driver, '.status').startswith(f'{expected} rows match')
        type_in(driver, name, '')
    type_in(driver, 'param', 'neck')
    type_in(driver, 'cause', 'loss_nonfinite')
    assert count(driver, 'tr.event') == 0
    type_in(driver, 'param', '')
    assert count(driver, 'tr.event') == 1
    driver.find_element('css selector', 'tr.event').click()
    assert 'samples (2): a.jpg, b.jpg' in text(driver, 'tr.detail')


def test_pages_of_the_table(driver, page):
    first = text(driver, 'tr.event')
    driver.find_element('css selector', '.pages button:last-child').click()
    assert text(driver, '.pages') == 'previous\npage 2 of 2\nnext'
    assert text(driver, 'tr.event') != first


def test_a_culprit_shows_its_events(driver, page):
    button = driver.find_element('xpath', "//button[text()='neck.bias']")
    button.click()
    assert count(driver, 'tr.event') == 3


def test_zoom(driver, page):
    ((low, high),) = ranges(driver)
    drag(driver, 0.1, 0.3)
    wait(driver, "return !!document.querySelector('.status button')")
    ((begin, end),) = ranges(driver)
    width = high - low
    assert begin == pytest.approx(low + 0.1 * width, abs=0.02 * width)
    assert end == pytest.approx(low + 0.3 * width, abs=0.02 * width)
    assert count(driver, 'tr.event') == 3  # iterations 20 to 22
    driver.find_element('css selector', '.status button').click()
    wait(driver, "return !document.querySelector('.status button')")
    assert ranges(driver) == [[low, high]]
    assert count(driver, 'tr.event') == 25


def test_hover(driver, page):
    """The event's parameter has a name that contains markup."""
    script = (
        "document.querySelector('.plot').scrollIntoView();"
        "return [...document.querySelectorAll('.plot .points path')]"
        '.map((point) => [point.__data__.x, point.getBoundingClientRect()])'
    )
    actions = ActionChains(driver, duration=50)
    pointer = actions.w3c_actions.pointer_action
    boxes = driver.execute_script(script)
    box = next(box for iter_, box in boxes if iter_ == 60)
    for shift in (3, 0):
        pointer.move_to_location(
            int(box['left'] + box['width'] / 2 + shift),
            int(box['top'] + box['height'] / 2),
        )
    actions.perform()
    wait(driver, "return !!document.querySelector('.hoverlayer .hovertext')")
    hover_text = driver.execute_script(
        "return document.querySelector('.hoverlayer').textContent"
    )
    assert 'iteration 60: skip, norm_overflow' in hover_text
    assert EVIL.split()[0] in hover_text


def test_dark(driver, page):
    script = (
        'return [getComputedStyle(document.body).backgroundColor,'
        "document.querySelector('.plot').layout.font.color]"
    )
    colors = set()
    for scheme in ('light', 'dark'):
        feature = dict(name='prefers-color-scheme', value=scheme)
        driver.execute_cdp_cmd(
            'Emulation.setEmulatedMedia', dict(features=[feature])
        )
        time.sleep(0.2)
        colors.update(driver.execute_script(script))
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[]))
    assert len(colors) == 4


@pytest.mark.parametrize('rows', [[start()], [start(), update(1)]])
def test_a_run_that_has_just_begun(driver, tmp_path, rows):
    write_events(tmp_path / '1', rows)
    write_page([load_run(str(tmp_path))], tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    assert count(driver, 'tr.event') == len(rows)
    assert errors(driver) == []


def test_runs_have_the_same_axes(driver, report, tmp_path):
    other = write_run(tmp_path / 'other', ROWS[:2], num=300, factor=10)
    write_page([report, other], tmp_path / 'page.html')
    open_page(driver, tmp_path / 'page.html')
    assert count(driver, '.comparison tbody tr') == 2
    unfold(driver)
    for axis in ('xaxis', 'yaxis'):
        _, first, second = ranges(driver, axis)
        assert first == second, axis
    for plot in (0, 2):
        assert ranges(driver)[0][1] > 299
        drag(driver, 0.1, 0.3, plot=plot)
        wait(driver, "return !!document.querySelector('.status button')")
        first, *others = ranges(driver)
        assert others == [first, first]
        assert first[1] < 120
        driver.execute_script('return zoom(null)')
    assert errors(driver) == []


def test_a_narrow_window(driver, report, tmp_path):
    """Text has room; a column that is 0 in all runs is left out."""
    other = write_run(tmp_path / 'other', ROWS[:2])
    write_page([report, other], tmp_path / 'page.html')
    size = driver.get_window_size()
    driver.set_window_size(700, size['height'])
    try:
        open_page(driver, tmp_path / 'page.html')
        widths = [
            driver.execute_script(
                'return document.querySelector(arguments[0]).offsetWidth', cell
            )
            for cell in (
                '.comparison td:nth-child(2)',
                'tr.event td:nth-child(3)',
            )
        ]
        assert min(widths) >= 260, widths
        head = text(driver, '.comparison thead').split()
        assert 'rejected' in head
        assert 'rollbacks' not in head
        assert count(driver, '.comparison th') == count(
            driver, '.comparison tbody tr:first-child td'
        )
    finally:
        driver.set_window_size(size['width'], size['height'])


def test_a_reload_keeps_zoom_and_filter(driver, report, tmp_path):
    path = tmp_path / 'page.html'
    write_page([report], path, reload_after=1.5)
    open_page(driver, path)
    type_in(driver, 'param', 'neck')
    drag(driver, 0.1, 0.3)
    wait(driver, "return !!document.querySelector('.status button')")
    before = ranges(driver)
    driver.execute_script('window.isOld = true')
    wait(driver, 'return !window.isOld')
    wait_until_ready(driver)
    assert ranges(driver) == before
    assert count(driver, 'tr.event') == 3
    assert errors(driver) == []


def test_a_million_events(driver, report, tmp_path):
    """The page is usable at once, and answers at once."""
    num = 1_000_000
    summary = summarize(many_rows(num))
    assert summary.num_kinds['update'] == num
    report = type(report)(
        report.path, summary, {}, report.verdict, report.written
    )
    path = tmp_path / 'page.html'
    write_page([report], path)
    assert path.stat().st_size < 12e6
    assert open_page(driver, path) < FROZEN
    assert f'{num + 1:,} rows' in text(driver, '.status')
    # Nothing is left behind for later that would freeze it.
    begin = time.monotonic()
    type_in(driver, 'param', 'backbone.7.weight')
    assert 3 <= count(driver, 'tr.event') <= 25
    drag(driver, 0.1, 0.3)
    wait(driver, "return !!document.querySelector('.status button')")
    assert time.monotonic() - begin < FROZEN
    assert errors(driver) == []
