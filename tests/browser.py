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
