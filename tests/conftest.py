from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import loops
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def fresh_globals():
    """MMEngine keeps its loggers, hubs and scopes in class attributes; an
    import may have made some, which write past what captures a test's output.
    """
    torch.manual_seed(0)
    clear_globals()
    yield
    clear_globals()


@pytest.fixture(autouse=True)
def no_pause_between_epochs(monkeypatch):
    """MMEngine's iterator without end sleeps two seconds there."""
    clock = SimpleNamespace(sleep=lambda seconds: None)
    monkeypatch.setattr(loops, 'time', clock)


def clear_globals():
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    for manager in (MMLogger, MessageHub, DefaultScope, Visualizer):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True)
def skip_gpu(request):
    if 'gpu' in request.keywords and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
