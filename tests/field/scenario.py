"""The base class of a scenario."""

import math
from types import SimpleNamespace
from typing import Any, ClassVar, Dict, List, Sequence, Tuple, Type, Union

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import Dataset

SCENARIOS: Dict[str, 'Scenario'] = {}


class Scenario:
    """A training run that people reported, and the right verdict on it.

    A subclass gives ``network``, ``sample`` and ``loss``, and the attributes
    that differ from these. The docstring tells what happens in the report.

    Attributes:
        source: The public report, as 'owner/repository#number' or as the
            address of a page.
        iters: Number of iterations of the run.
        batch_size: Number of samples in a batch. Samples come in order.
        num_samples: Number of samples that the data set repeats.
        optimizer: Config of the optimizer.
        parts: Names of the parts of the net that have an optimizer each, in
            the order of their updates, such as the networks of a GAN. If
            empty, one optimizer trains the net.
        precision: 'float32', 'float16' or 'bfloat16'.
        wrapper: Further keys of the wrapper, such as ``clip_grad``.
        schedule: Configs of the parameter schedulers.
        catches: Errors that the user's ``train_step`` catches, to leave out
            a batch.
        is_healthy: Whether the guard has to keep out of the run: no rejected
            update, no warning, and the same bits as without a guard.
        must_train: Whether halting is wrong even where the run without a
            guard is lost, because skipping updates is enough.
        must_reach: Loss that a run must reach if the guard does not halt it.
        is_written_by_hook: Whether a hook of the user makes weights NaN, so
            that a run that halts may be left with them.
        may_warn: Pattern of warnings that a healthy run may give.
        causes: Causes of which one must be that of most rejected updates;
            routine overflows do not count. If empty, none may be rejected.
        culprit: Pattern of the sample, parameter, module, operation or key
            that ``--guard full`` must name; '' if there is none to name.
        says: Patterns that the console, the story of a halt, or the report
            must contain, with the wrapper alone and in full.
        says_in_full: Patterns that they must contain in full. The wrapper
            alone has no autopsy, and says that it does not know.
        never_says: Patterns that none of them may contain.
    """

    source: ClassVar[str]
    iters = 100
    batch_size = 4
    num_samples = 64
    optimizer: ClassVar[Dict[str, Any]] = dict(type='SGD', lr=0.1)
    parts: Tuple[str, ...] = ()
    precision = 'float32'
    wrapper: ClassVar[Dict[str, Any]] = {}
    schedule: ClassVar[List[Dict[str, Any]]] = []
    catches: Tuple[Type[Exception], ...] = ()
    is_healthy = False
    must_train = True
    must_reach = math.inf
    is_written_by_hook = False
    may_warn = ''
    causes: Tuple[str, ...] = ()
    culprit = ''
    says: Tuple[str, ...] = ()
    says_in_full: Tuple[str, ...] = ()
    never_says: Tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if 'source' in vars(cls):
            SCENARIOS[cls.__name__] = cls()

    @property
    def name(self) -> str:
        """Name of the class."""
        return type(self).__name__

    def network(self) -> nn.Module:
        """Build the net. The random seed is set before."""
        return nn.Linear(4, 3)

    def sample(
        self, index: int, generator: torch.Generator
    ) -> Dict[str, Tensor]:
        """Return the tensors of one sample; ``inputs`` goes to the model.

        The generator is seeded with the index.
        """
        raise NotImplementedError

    def loss(
        self, net: nn.Module, batch: SimpleNamespace
    ) -> Union[Tensor, Dict[str, Tensor]]:
        """Return the loss or losses of a batch.

        Each tensor of the samples is an attribute of the batch: stacked, or
        a list if the shapes differ.
        """
        raise NotImplementedError

    def loss_of(
        self, part: str, net: nn.Module, batch: SimpleNamespace
    ) -> Tensor:
        """Return the loss of one of ``parts``; ``loss`` measures the net."""
        raise NotImplementedError

    def is_good(self, index: int) -> bool:
        """Whether the sample takes part in the measurement after the run."""
        return True

    def hooks(self) -> Sequence[Hook]:
        """Return the user's own hooks."""
        return ()

    def make_sample(self, index: int) -> Dict[str, Any]:
        """Return a sample as a data set of OpenMMLab gives it."""
        generator = torch.Generator().manual_seed(index)
        tensors = self.sample(index, generator)
        inputs = tensors.pop('inputs')
        name = f'{index:03d}.jpg'
        data_sample = BaseDataElement(metainfo=dict(img_path=name), **tensors)
        return dict(inputs=inputs, data_samples=data_sample)

    def losses(
        self, net: nn.Module, inputs: Any, data_samples: Any
    ) -> Dict[str, Tensor]:
        """Return the losses of a batch as MMEngine wants them."""
        losses = self.loss(net, make_batch(inputs, data_samples))
        return losses if isinstance(losses, dict) else dict(loss=losses)


def make_batch(inputs: Any, data_samples: Any) -> SimpleNamespace:
    """Return the tensors of a batch by name."""
    batch = {'inputs': stack(inputs)}
    for key in data_samples[0].keys():  # noqa: SIM118
        batch[key] = stack([getattr(data, key) for data in data_samples])
    return SimpleNamespace(**batch)


def stack(tensors: Sequence[Tensor]) -> Union[Tensor, List[Tensor]]:
    """Stack tensors, or return them as a list if their shapes differ."""
    if len({tensor.shape for tensor in tensors}) > 1:
        return list(tensors)
    return torch.stack(list(tensors))


@MODELS.register_module()
class FieldModel(BaseModel):
    """The model of a scenario: its net and its loss."""

    def __init__(self, scenario: str, data_preprocessor: Any = None) -> None:
        super().__init__(data_preprocessor)
        self.scenario = SCENARIOS[scenario]
        self.net = self.scenario.network()

    def train_step(self, data: Any, optim_wrapper: Any) -> Dict[str, Tensor]:
        if self.scenario.parts:
            return self.train_parts(data, optim_wrapper)
        try:
            return super().train_step(data, optim_wrapper)
        except self.scenario.catches:
            return {}

    def train_parts(self, data: Any, wrappers: Any) -> Dict[str, Tensor]:
        """Update each part of the net in turn, as a GAN does."""
        batch = make_batch(**self.data_preprocessor(data, True))
        losses = {}
        for part in self.scenario.parts:
            with wrappers[part].optim_context(self.net[part]):
                loss = self.scenario.loss_of(part, self.net, batch)
            wrappers[part].update_params(loss)
            losses[f'loss_{part}'] = loss.detach()
        return losses

    def forward(
        self, inputs: Any, data_samples: Any = None, mode: str = 'tensor'
    ) -> Any:
        if mode != 'loss':
            return self.net(stack(inputs))
        return self.scenario.losses(self.net, inputs, data_samples)


@DATASETS.register_module()
class FieldData(Dataset):
    """The data of a scenario, repeated until the last iteration."""

    metainfo: ClassVar[Dict[str, Any]] = {}

    def __init__(self, scenario: str) -> None:
        self.scenario = SCENARIOS[scenario]

    def __len__(self) -> int:
        return self.scenario.iters * self.scenario.batch_size

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return self.scenario.make_sample(index % self.scenario.num_samples)
