"""Measure how large a run tools/report.py can report.

Writes a run of that many rejected updates, reports it, opens the page in
Chromium, and prints how long that took.

    PYTHONPATH=.:tests python tests/campaign_report.py --rows 1000000
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import errors, open_browser, open_page
from event_rows import start, update

TOOL = Path(__file__).parents[1] / 'tools' / 'report.py'
NUM_PARAMS = 200
CAUSES = ['scale_overflow'] * 60 + ['grad_nonfinite'] * 3 + ['loss_nonfinite']


def many_rows(num):
    """Yield rows with three causes and 200 parameters, 16 samples per row."""
    yield start(max_iters=num)
    causes = list(dict.fromkeys(CAUSES))
    made = []
    for cause, number in itertools.product(causes, range(NUM_PARAMS)):
        samples = [f'train/{number:03d}{i:03d}.jpg' for i in range(16)]
        param = f'backbone.{number}.weight'
        made.append(update(1, cause, param, samples=samples))
    for iter_ in range(1, num + 1):
        place = causes.index(CAUSES[iter_ * 7919 % len(CAUSES)]) * NUM_PARAMS
        row = made[place + iter_ * 31 % NUM_PARAMS]
        yield {**row, 'iter': iter_, 'id': f'a-{iter_}', 'total_skips': iter_}


def write(folder, num):
    path = folder / '20260101_000000' / 'nanguard' / 'events.jsonl'
    path.parent.mkdir(parents=True)
    with path.open('w') as file:
        for row in many_rows(num):
            file.write(json.dumps(row) + '\n')
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--rows', type=int, default=1_000_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        path = write(Path(aside), args.rows)
        begin = time.monotonic()
        subprocess.run([sys.executable, TOOL, aside], stdout=sys.stderr)
        seconds = time.monotonic() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        page = Path(aside, 'nanguard_report.html')
        driver = open_browser()
        try:
            ready = open_page(driver, page)
            begin = time.monotonic()
            driver.execute_async_script(
                'const done = arguments[0];'
                "const input = document.querySelector('input[name=param]');"
                "input.value = 'backbone.7.weight';"
                "input.dispatchEvent(new Event('input'));"
                'requestAnimationFrame(() => setTimeout(done));'
            )
            filtered = time.monotonic() - begin
            assert not errors(driver)
        finally:
            driver.quit()
        numbers = {
            'rows': args.rows,
            'events.jsonl, MB': path.stat().st_size / 1e6,
            'report, s': seconds,
            'of these on the processor, s': used.ru_utime + used.ru_stime,
            'memory at most, MB': used.ru_maxrss / 1e3,
            'page, MB': page.stat().st_size / 1e6,
            'until the page can be used, s': ready,
            'a filter, s': filtered,
            'load of the machine': os.getloadavg()[0],
        }
    for name, value in numbers.items():
        print(f'{name}: {value:,.3g}' if value < 1e4 else f'{name}: {value:,}')


if __name__ == '__main__':
    main()
