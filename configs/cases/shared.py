"""What the cases share: how data are made up, how nets are called and
measured, and MMEngine's own AMP on a CPU.
"""

from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence, Union

import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import METRICS, OPTIM_WRAPPERS, TRANSFORMS
from mmengine.structures import BaseDataElement
from torch import Generator, Tensor, nn


class MadeUpDataset(BaseDataset):
    """Samples drawn from a seed, some of them spoilt as the report has it.

    A sample's ``img_path`` ends in its index; there is no such file.

    Args:
        size: How many.
        seed: What they are drawn from.
        spoilt: Indices of those that are spoilt.
        **kwargs: To :class:`mmengine.dataset.BaseDataset`.
    """

    NAME = ''

    def __init__(
        self, size: int, seed: int = 0, spoilt: Sequence[int] = (), **kwargs
    ) -> None:
        self.size, self.seed, self.spoilt = size, seed, list(spoilt)
        super().__init__(serialize_data=False, **kwargs)

    def draw(self, size: int, generator: Generator) -> Dict[str, Tensor]:
        """All samples, each tensor with one row for each."""
        raise NotImplementedError

    def load_data_list(self) -> List[dict]:
        drawn = self.draw(self.size, Generator().manual_seed(self.seed))
        arrays = {key: rows.numpy() for key, rows in drawn.items()}
        return [
            dict(
                img_path=f'{self.NAME}/{index:06d}',
                **{key: rows[index].copy() for key, rows in arrays.items()},
            )
            for index in range(self.size)
        ]


@TRANSFORMS.register_module()
class PackTensors:
    """Ends a pipeline: these keys become the inputs."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys

    def __call__(self, results: dict) -> dict:
        sample = BaseDataElement(
            metainfo={key: results[key] for key in ('sample_idx', 'img_path')}
        )
        inputs = {key: torch.as_tensor(results[key]) for key in self.keys}
        return dict(inputs=inputs, data_samples=sample)


class MeasuredNet(BaseModel):
    """A net that gives its losses, and how wrong it is on each sample."""

    def losses(self, **inputs: Tensor) -> Dict[str, Tensor]:
        raise NotImplementedError

    def errors(self, **inputs: Tensor) -> Tensor:
        """Of shape (N,)."""
        raise NotImplementedError

    def forward(
        self,
        inputs: Dict[str, Tensor],
        data_samples: Optional[List[BaseDataElement]] = None,
        mode: str = 'tensor',
    ) -> Union[Dict[str, Tensor], List[BaseDataElement]]:
        if mode == 'loss':
            return self.losses(**inputs)
        for sample, error in zip(data_samples, self.errors(**inputs)):
            sample.error = error
        return data_samples


@METRICS.register_module()
class MeanError(BaseMetric):
    """Mean of the samples' errors, under the key 'error'."""

    default_prefix = ''

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        self.results += [float(each['error']) for each in data_samples]

    def compute_metrics(self, results: List[float]) -> Dict[str, float]:
        return dict(error=sum(results) / len(results))


@OPTIM_WRAPPERS.register_module()
class UnguardedAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's ``AmpOptimWrapper``, which refuses a CPU, on a CPU.

    It is built otherwise; what it does in an update is inherited.
    """

    def __init__(
        self,
        loss_scale: Optional[float] = None,
        dtype: str = 'float16',
        **kwargs,
    ) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = loss_scale  # fixed, as MMEngine has it
        self.cast_dtype = getattr(torch, dtype)
        self.loss_scaler = torch.amp.GradScaler(
            'cpu', init_scale=loss_scale or 1.0, enabled=loss_scale is not None
        )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with OptimWrapper.optim_context(self, model), torch.autocast(
            'cpu', dtype=self.cast_dtype
        ):
            yield
