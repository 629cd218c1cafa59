import re
from types import SimpleNamespace

import pytest
import torch
from global_state import clear_globals
from mmengine.runner import loops

from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER

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


@pytest.fixture(autouse=True)
def no_pause_between_epochs(monkeypatch):
    """Skip the two seconds that MMEngine's iterator without end sleeps."""
    clock = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr(loops, 'time', clock)


@pytest.fixture(autouse=True)
def skip_gpu(request):
    if 'gpu' in request.keywords and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')


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
