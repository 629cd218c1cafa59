"""A dumped update, on a model that is built anew for it."""

import re
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmnanguard.core import Autopsy, GuardEvent, NanGuardError
from mmnanguard.numerics import load_plain
from mmnanguard.numerics.checkpoints.saved_averages import (
    EMA_KEY,
    trained_and_averaged,
)
from mmnanguard.numerics.probe.replay import Setting
from mmnanguard.safe_load import allow_mmengine_checkpoints

from .._shared.find_guards import find_wrappers
from .batch_dump import SCHEMA
from .batch_keeper import KeptBatch
from .fp32_modules_hook import Fp32ModulesHook
from .plain_batch import from_plain
from .replay_config import IMPORT_HINT, KEYS, hooks_inside, read_config
from .window import MicroBatch
from .window_replay import WindowReplay

__all__ = ['DumpReplay', 'open_dump']


class DumpReplay(NamedTuple):
    """A dumped window on a model that was built anew for it.

    Attributes:
        dump: All that the file holds.
        examination: Of the window, to be run again.
        doubts: What is not as it was in training, in words.
    """

    dump: Dict[str, Any]
    examination: WindowReplay
    doubts: Tuple[str, ...]

    @property
    def event(self) -> GuardEvent:
        """The event of the rejected update."""
        return GuardEvent.from_row(self.dump['event'])

    def autopsy(self) -> Autopsy:
        """Run the window again.

        Raises:
            NanGuardError: If the model cannot run on the batches.
        """
        event = self.event
        # The event has the loss of that rank.
        has_loss = self.dump['rank'] == event.ranks[0]
        try:
            found = self.examination.autopsy(
                event.id, event.optimizer, event.loss if has_loss else None
            )
        except Exception as error:  # of the user's model
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise NanGuardError(
                f'The window cannot be run again: {place.filename}:'
                f'{place.lineno} raised {type(error).__name__}: {error}. Do '
                'config, weights and device fit the batch?'
            ) from error
        return self.examination.confirm(found).replace(
            rank=self.dump['rank'], exact=found.exact and not self.doubts
        )


def open_dump(
    path: Path,
    config: Optional[str] = None,
    checkpoint: Optional[str] = None,
    device: str = 'cpu',
    allow_pickle: bool = False,
) -> DumpReplay:
    """Build all that it takes to run a dumped window again.

    Args:
        path: What BatchDumpHook wrote.
        config: A file, in place of the dump's own.
        checkpoint: A file with the weights, in place of the dump's own.
        device: To run on.
        allow_pickle: Trust the file: open pickled objects, and build what
            its config names, which can run any code.

    Raises:
        NanGuardError: If something cannot be read, does not fit, or misses.
    """
    dump = load(path, 'dump')
    if not isinstance(dump, dict) or dump.get('schema') != SCHEMA:
        raise NanGuardError(
            f'{path} is no dump of schema {SCHEMA}, as BatchDumpHook writes '
            'it in this version.'
        )
    check_device(device)
    cfg = read_config(path, dump, config, is_trusted=allow_pickle)
    runner = build(cfg, config or path)
    doubts = [
        *ask_for_ranks(cfg, dump['world_size']),
        *put_weights(runner.model, dump, checkpoint),
    ]
    add_hooks(runner, cfg, dump['fp32_modules'])
    runner.model.to(device)
    runner.message_hub.update_info_dict(dump.get('runtime_info', {}))
    settings = {
        name: Setting(
            setting['dtype'] and getattr(torch, setting['dtype']),
            setting['loss_scale'],
            setting['accumulation'],
        )
        for name, setting in dump['settings'].items()
    }
    try:
        batches = from_plain(dump['batches'], allow_pickle)
    except ValueError as error:
        raise NanGuardError(
            f'{path} {error}. If you trust the file, allow it with '
            '--allow-pickle.'
        ) from None
    window = [
        MicroBatch(index, KeptBatch(batch, dump['is_exact']), rng, number)
        for index, batch, rng, number in zip(
            dump['batch_idx'], batches, dump['rng'], dump['iter']
        )
    ]
    examination = WindowReplay(
        runner.model, find_wrappers(runner), settings, window
    )
    return DumpReplay(dump, examination, tuple(doubts))


def load(path: Any, what: str) -> Any:
    allow_mmengine_checkpoints()
    try:
        return load_plain(path)
    except Exception as error:  # of many kinds
        raise NanGuardError(
            f'{path} cannot be read as a {what}: {error}'
        ) from error


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except Exception as error:  # of many kinds
        told = str(error).splitlines()[0]
        raise NanGuardError(
            f'--device {device} cannot be used here ({told}). Without '
            '--device, it is the GPU where there is one, else the CPU.'
        ) from error


def build(cfg: Config, where: object) -> Runner:
    """A Runner as far as a pass needs one."""
    folder = tempfile.mkdtemp()
    try:
        runner = Runner(
            **{key: cfg[key] for key in KEYS if key in cfg},
            work_dir=folder,
            log_level='WARNING',
            experiment_name=f'replay_{uuid4().hex}',
        )
        runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    except Exception as error:  # of the user's classes
        raise NanGuardError(
            f'The model cannot be built from the config of {where} '
            f'({type(error).__name__}: {error}). {IMPORT_HINT}'
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    runner.model.train()
    return runner


def ask_for_ranks(cfg: Config, world_size: int) -> List[str]:
    """Runner makes plain BatchNorm of SyncBN where there is one rank."""
    asks = f'{cfg.model} {"sync_bn" if cfg.get("sync_bn") else ""}'
    if world_size == 1 or not re.search('sync_?(bn|batchnorm)', asks.lower()):
        return []
    return [f"SyncBN had the statistics of {world_size} ranks, here of one's"]


def add_hooks(runner: Runner, cfg: Config, fp32_modules: List[str]) -> None:
    """Those that change what a pass computes."""
    for kind, hook in hooks_inside(cfg):
        if issubclass(kind, Fp32ModulesHook):
            hook = dict(hook, modules=fp32_modules)
        HOOKS.build(hook).before_train(runner)


def put_weights(
    model: nn.Module, dump: Dict[str, Any], path: Optional[str]
) -> List[str]:
    """Load the weights; says where they are not those of that moment."""
    event = dump['event']
    saved = load(path, 'checkpoint') if path else {}
    state = (
        saved.get('state_dict', saved) if isinstance(saved, dict) else saved
    )
    if not isinstance(state, dict):
        raise NanGuardError(
            f'{path} holds a {type(state).__name__}, where a checkpoint has '
            'a dict of tensors by name. Give one that training has saved.'
        )
    state = state or dump.get('weights')
    if not state:
        raise NanGuardError(
            'The dump holds no weights. Give --checkpoint, best the last one '
            f'before iteration {event["iter"]}; or dump with '
            'BatchDumpHook(save_weights=True).'
        )
    if EMA_KEY in saved:
        state, _ = trained_and_averaged(state, saved[EMA_KEY])
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise NanGuardError(
            f'{path or "The dump"} does not fit the model '
            f'({" ".join(str(error).split())}). Is it of this config?'
        ) from error
    if missing:
        raise NanGuardError(
            f'{path or "The dump"} lacks {len(missing)} tensors of the model, '
            f'such as {missing[0]}. Is it of this config?'
        )
    before = event['iter'] - len(dump['batches'])
    found = saved.get('meta', {}).get('iter')
    if not path or found == before:
        return []
    return [f'{path} is of iteration {found}, the update began after {before}']
