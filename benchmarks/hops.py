"""Count the calls of one update, and how often it changes from file to file.

A reader who follows one update through the source makes these hops. Counted
are the functions of mmnanguard that Python calls in one iteration of a small
model, once the first updates, which look for changing buffers, are over. A
comprehension counts as a part of the function that it stands in, because newer
versions of Python do not call it.

Example:
    python benchmarks/hops.py
"""

import argparse
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Dict, List, NamedTuple, Sequence

import torch
from mmengine.model import BaseModel
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import mmnanguard

NUM_WARM_UPS = 6
BATCH_SIZE = 4
PACKAGE = str(Path(mmnanguard.__file__).parent)
COMPREHENSIONS = ('<listcomp>', '<setcomp>', '<dictcomp>', '<genexpr>')
HOOKS = (
    dict(type='mmnanguard.NanGuardHook'),
    dict(type='mmnanguard.EventLogHook'),
)


class Case(NamedTuple):
    """A kind of update that is followed."""

    hooks: Sequence[Dict[str, str]] = ()
    factor: float = 1.0  # of the loss


CASES = {
    'clean, wrapper alone': Case(),
    'clean, both hooks': Case(HOOKS),
    'rejected, wrapper alone': Case(factor=float('nan')),
    'rejected, both hooks': Case(HOOKS, float('nan')),
}


class SmallNet(BaseModel):
    """Conv and BatchNorm, a linear head and a constant mask.

    Attributes:
        factor: Factor of the loss; NaN has the update rejected.
    """

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.head = nn.Linear(4, 2)
        self.register_buffer('mask', torch.tensor([0.0, float('-inf')]))

    def forward(
        self,
        inputs: List[Tensor],
        data_samples: List[BaseDataElement],
        mode: str,
    ) -> Dict[str, Tensor]:
        images = torch.stack(list(inputs))
        outputs = self.head(self.backbone(images).mean((2, 3)))
        return dict(loss=outputs.square().mean() * self.factor)


class SteppedLoop(IterBasedTrainLoop):
    """Begin as MMEngine's loop does, and leave ``run_iter`` to the caller."""

    def run(self) -> None:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()


class Hops:
    """A profiler that records the calls inside of mmnanguard.

    Attributes:
        codes: Code of each call, in the order of calls.
    """

    def __init__(self) -> None:
        self.codes: List[CodeType] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_inside = code.co_filename.startswith(PACKAGE)
        is_function = code.co_name not in COMPREHENSIONS
        if event == 'call' and is_inside and is_function:
            self.codes.append(code)

    def counts(self) -> Dict[str, int]:
        """Return the numbers of calls, functions, files and changes."""
        files = [code.co_filename for code in self.codes]
        changes = [a != b for a, b in zip(['', *files], files)]
        return dict(
            calls=len(self.codes),
            functions=len(set(self.codes)),
            files=len(set(files)),
            changes=sum(changes),
        )

    def lines(self) -> List[str]:
        """Name the calls, one per line."""
        return [
            f'{code.co_filename[len(PACKAGE) + 1 :]}: {code.co_name}'
            for code in self.codes
        ]


def make_runner(hooks: Sequence[Dict[str, str]], folder: str) -> Runner:
    """Build a runner that is about to train its first batch."""
    torch.manual_seed(0)
    samples = [
        dict(
            inputs=torch.randn(3, 8, 8),
            data_samples=BaseDataElement(metainfo=dict(img_path=f'{n}.jpg')),
        )
        for n in range(BATCH_SIZE)
    ]
    runner = Runner(
        model=SmallNet(),
        work_dir=folder,
        train_dataloader=dict(
            dataset=samples,
            sampler=dict(type='InfiniteSampler'),
            batch_size=BATCH_SIZE,
        ),
        train_cfg=dict(type=SteppedLoop, max_iters=10**6),
        optim_wrapper=dict(
            type='mmnanguard.NanGuardOptimWrapper',
            optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
            clip_grad=dict(max_norm=35.0),
        ),
        default_hooks=dict(checkpoint=None, logger=None),
        custom_hooks=[dict(hook) for hook in hooks],
        experiment_name=Path(folder).name,
        log_processor=dict(by_epoch=False),
        log_level='CRITICAL',
        randomness=dict(seed=0),
    )
    runner.train()
    return runner


def follow(case: Case) -> Hops:
    """Record the calls of one iteration as MMEngine's loop makes it."""
    hops = Hops()
    with tempfile.TemporaryDirectory() as folder:
        runner = make_runner(case.hooks, folder)
        loop = runner.train_loop
        batch = next(loop.dataloader_iterator)
        for _ in range(NUM_WARM_UPS):
            loop.run_iter(batch)
        runner.model.factor = case.factor
        sys.setprofile(hops)
        try:
            loop.run_iter(batch)
        finally:
            sys.setprofile(None)
    return hops


def main(argv: Any = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('--cases', nargs='+', choices=CASES, default=[*CASES], metavar='CASE')
    add('--calls', action='store_true', help='also name each call')
    args = parser.parse_args(argv)
    table = Table(
        'update', 'calls', 'functions', 'files', 'changes', box=box.MARKDOWN
    )
    for name in args.cases:
        hops = follow(CASES[name])
        table.add_row(name, *map(str, hops.counts().values()))
        if args.calls:
            print(f'{name}:', *hops.lines(), sep='\n  ')
    Console(width=100).print(table)
    return 0


if __name__ == '__main__':
    sys.exit(main())
