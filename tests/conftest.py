import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer


@pytest.fixture(autouse=True)
def fresh_globals():
    """MMEngine keeps its loggers, hubs and scopes in class attributes."""
    torch.manual_seed(0)
    yield
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()
    for manager in (MMLogger, MessageHub, DefaultScope, Visualizer):
        manager._instance_dict.clear()


@pytest.fixture(autouse=True)
def skip_gpu(request):
    if 'gpu' in request.keywords and not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
