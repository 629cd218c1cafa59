"""A headless Chromium of the system; nothing is downloaded."""

import json
import shutil
import time

import pytest

DEADLINE = 300


def open_browser(width=1280, height=1000):
    """Start the browser, or skip the test where there is none."""
    webdriver = pytest.importorskip('selenium.webdriver')
    paths = {
        name: shutil.which(name) or shutil.which(f'{name}-browser')
        for name in ('chromium', 'chromedriver')
    }
    for name, path in paths.items():
        if path is None:
            pytest.skip(f'{name} is not installed (Debian: chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = paths['chromium']
    for option in (
        'headless=new',
        'no-sandbox',  # root has none
        'disable-dev-shm-usage',
        f'window-size={width},{height}',
    ):
        options.add_argument(f'--{option}')
    logs = {'browser': 'ALL', 'performance': 'ALL'}
    options.set_capability('goog:loggingPrefs', logs)
    # With the path told, Selenium looks for no driver to download.
    service = webdriver.ChromeService(paths['chromedriver'])
    driver = webdriver.Chrome(options, service)
    driver.set_page_load_timeout(DEADLINE)
    return driver


def open_page(driver, path):
    """Open a page and return the seconds until it can be used."""
    driver.get_log('browser')
    driver.get_log('performance')
    begin = time.monotonic()
    driver.get(path.as_uri())
    wait_until_ready(driver)
    return time.monotonic() - begin


def wait_until_ready(driver):
    wait(driver, 'return document.body?.dataset.ready === "yes"')


def wait(driver, script, *arguments):
    """Wait until the script returns something true."""
    deadline = time.monotonic() + DEADLINE
    while not driver.execute_script(script, *arguments):
        assert time.monotonic() < deadline, script
        time.sleep(0.05)


def errors(driver):
    return [
        entry['message']
        for entry in driver.get_log('browser')
        if entry['level'] in ('WARNING', 'SEVERE')
    ]


def requests(driver):
    """Return the addresses that the page requested."""
    messages = [
        json.loads(entry['message'])['message']
        for entry in driver.get_log('performance')
    ]
    return [
        message['params']['request']['url']
        for message in messages
        if message['method'] == 'Network.requestWillBeSent'
    ]


def text(driver, selector):
    return driver.execute_script(
        'return document.querySelector(arguments[0]).innerText', selector
    )


def count(driver, selector):
    script = 'return document.querySelectorAll(arguments[0]).length'
    return driver.execute_script(script, selector)


def unfold(driver):
    """Open the details of all runs."""
    driver.execute_script(
        "document.querySelectorAll('details').forEach((x) => x.open = true)"
    )


def ranges(driver, axis='xaxis'):
    """Return the range of each chart."""
    return driver.execute_script(
        "return [...document.querySelectorAll('.plot')]"
        '.map((plot) => plot.layout[arguments[0]].range.map(Number))',
        axis,
    )


def drag(driver, begin, end, plot=0):
    """Drag over the chart of the loss, between two shares of its width."""
    (area,) = driver.execute_script(
        "const plot = document.querySelectorAll('.plot')[arguments[0]];"
        'plot.scrollIntoView();'
        "return [plot.querySelector('.nsewdrag').getBoundingClientRect()]",
        plot,
    )
    from selenium.webdriver import ActionChains

    x, y, width = area['left'], area['top'] + 60, area['width']
    actions = ActionChains(driver, duration=50)
    actions.w3c_actions.pointer_action.move_to_location(
        int(x + begin * width), int(y)
    )
    actions.w3c_actions.pointer_action.pointer_down()
    for share in (0.5, 1):
        actions.w3c_actions.pointer_action.move_to_location(
            int(x + (begin + share * (end - begin)) * width), int(y + 2)
        )
    actions.w3c_actions.pointer_action.pointer_up()
    actions.perform()
