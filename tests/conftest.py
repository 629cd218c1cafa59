import logging
import os
import re
from types import SimpleNamespace

import accelerator
import pytest
import torch
from global_state import clear_globals
from mmengine.runner import loops

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

# A process of pytest-xdist has 80 of them, a terminal has its own.
os.environ.pop('COLUMNS', None)

# How PyTorch 2.1 says that a CPU has no float16 and no fused optimizer, and
# that Dynamo does not trace something.
LACKS = re.compile(
    r"not implemented for 'Half'|needs torch>=2\.\d|`fused=True` requires"
    r"|argument 'fused'|'torch.amp' has no attribute 'GradScaler'"
    r'|CPU Autocast only supports dtype of torch.bfloat16'
    r'|NYI - autograd.Function with custom setup_context'
    r'|torch\.\* op returned non-Tensor dtype'
)


@pytest.fixture(autouse=True)
def fresh_globals():
    """Clear MMEngine's global objects before a test.

    MMEngine keeps its loggers, hubs and scopes in class attributes. An import
    may have made some, and they bypass the capture of a test's output.
    """
    torch.manual_seed(0)
    clear_globals()
    yield
    clear_globals()
    # A tool of the tests that prints a table switches it off.
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def no_pause_between_epochs(monkeypatch):
    """Skip the two seconds that MMEngine's iterator without end sleeps."""
    clock = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr(loops, 'time', clock)


def pytest_addoption(parser):
    parser.addoption(
        '--simulated-device',
        action='store_true',
        help='run the tests marked gpu on a simulated accelerator',
    )


def pytest_configure(config):
    # On a GPU, runs are compared bit for bit as well.
    torch.backends.cudnn.deterministic = True
    if config.getoption('simulated_device'):
        accelerator.simulate()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip a test that needs another device, before fixtures use it."""
    mark = item.get_closest_marker('gpu')
    if mark is None:
        return
    if accelerator.name() is None:
        pytest.skip('needs a CUDA device')
    is_real = accelerator.name() == 'cuda'
    for key, fits in (('real_only', is_real), ('simulated_only', not is_real)):
        if key in mark.kwargs and not fits:
            pytest.skip(f'{key}: {mark.kwargs[key]}')


@pytest.fixture
def device():
    """The type of the device that a test marked ``gpu`` runs on."""
    return accelerator.name()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip a test that fails for lack of something in an old PyTorch; the
    reason is the error message.
    """
    report = yield
    said = f'{report.longrepr}\n{report.capstderr}'
    lack = report.failed and LACKS.search(said)
    if lack and not HAS_CPU_SCALER:
        path, line, _ = item.location
        report.outcome = 'skipped'
        report.longrepr = (path, line, f'this PyTorch: {lack[0]}')
    return report
