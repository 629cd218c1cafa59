"""Replay of a dumped update in another process, on a newly built model.

``open_dump`` builds the model from the config. Then it restores weights, hooks
that change the model, numbers of the message hub, batches and random states.
A part that it cannot restore makes the replay inexact.
"""

import re
import shutil
import tempfile
import traceback
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple
from uuid import uuid4

import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmnanguard.core import Autopsy, GuardEvent, NanGuardError
from mmnanguard.numerics.probe.replay import Setting

from .._shared.find_guards import find_wrappers
from .batch_dump import SCHEMA, Dump
from .batch_keeper import KeptBatch
from .check_dump import check_dump
from .fp32_modules_hook import Fp32ModulesHook
from .plain_batch import from_plain
from .replay_config import IMPORT_HINT, KEYS, hooks_inside, read_config
from .replay_weights import load_file, load_weights, one_line
from .try_cures import try_cures
from .window import MicroBatch
from .window_replay import WindowReplay

__all__ = ['DumpReplay', 'open_dump']


class DumpReplay(NamedTuple):
    """A dumped window on a newly built model.

    Attributes:
        dump: The content of the dump file.
        window_replay: The replay of the window.
        doubts: Clauses that say how the replay differs from training.
    """

    dump: Dump
    window_replay: WindowReplay
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
        # The event holds the loss of its first rank, which says nothing of
        # the losses of other ranks.
        has_loss = self.dump['rank'] == event.ranks[0]
        loss = event.loss if has_loss else None
        try:
            autopsy = self.window_replay.autopsy(
                event.id, event.optimizer, loss
            )
        except Exception as error:
            # The model is the user's code and may raise anything. The last
            # frame is the line that the user can act on.
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise NanGuardError(
                f'The window cannot be run again: {place.filename}:'
                f'{place.lineno} raised {type(error).__name__}: {error}. Do '
                'config, weights and device fit the batch?'
            ) from error
        replay = self.window_replay
        autopsy = replay.confirm(autopsy)
        tried = try_cures(
            replay, autopsy, event, replay.can_leave_out(autopsy)
        )
        return autopsy.replace(
            rank=self.dump['rank'],
            exact=autopsy.exact and not self.doubts,
            tried={**autopsy.tried, **tried},
        )


def open_dump(
    path: Path,
    config: Optional[str] = None,
    checkpoint: Optional[str] = None,
    device: str = 'cpu',
    allow_pickle: bool = False,
) -> DumpReplay:
    """Build all that a replay of a dumped window needs.

    Args:
        path: The file that BatchDumpHook wrote.
        config: A config file to use instead of the config in the dump.
        checkpoint: A file with weights to use instead of those in the dump.
        device: The device to run on.
        allow_pickle: Whether to trust the file: to open pickled objects, and
            to build the types that its config names. Both can run any code.

    Raises:
        NanGuardError: If something cannot be read, does not fit, or is
            missing.
    """
    dump = load_file(path, 'dump')
    # A tensor, which a damaged file may have here, is compared by element.
    has_schema = isinstance(dump, dict) and type(dump.get('schema')) is int
    if not has_schema or dump['schema'] != SCHEMA:
        raise NanGuardError(
            f'{path} is no dump of schema {SCHEMA}, as BatchDumpHook writes '
            'it in this version.'
        )
    # Checked before the model is built, which may take long.
    check_dump(dump, path)
    check_device(device)
    try:
        return build_replay(
            dump, path, config, checkpoint, device, allow_pickle
        )
    except NanGuardError:
        raise
    except Exception as error:
        # Parts of the dump may be damaged within, and then raise anything.
        raise NanGuardError(
            f'{path} cannot be opened: {type(error).__name__}: '
            f'{one_line(error)}'
        ) from error


def build_replay(
    dump: Dump,
    path: Path,
    config: Optional[str],
    checkpoint: Optional[str],
    device: str,
    allow_pickle: bool,
) -> DumpReplay:
    """Build the replay of a dump that was checked; see :func:`open_dump`."""
    cfg = read_config(path, dump, config, is_trusted=allow_pickle)
    runner = build(cfg, config or path)
    doubts = [
        *doubts_about_ranks(cfg, dump['world_size']),
        *load_weights(runner.model, dump, checkpoint),
    ]
    start_model_changers(runner, cfg, dump['fp32_modules'])
    runner.model.to(device)
    # Older dumps have no numbers of the message hub.
    runner.message_hub.update_info_dict(dump.get('runtime_info', {}))
    window_replay = WindowReplay(
        runner.model,
        find_wrappers(runner),
        settings_in(dump),
        window_in(dump, path, allow_pickle),
    )
    return DumpReplay(dump, window_replay, tuple(doubts))


def settings_in(dump: Dump) -> Dict[str, Setting]:
    """Return the settings of a dump, in which dtypes are names."""
    settings = {}
    for name, plain in dump['settings'].items():
        dtype = plain['dtype'] and getattr(torch, plain['dtype'])
        settings[name] = Setting(
            dtype, plain['loss_scale'], plain['accumulation']
        )
    return settings


def window_in(dump: Dump, path: Path, allow_pickle: bool) -> List[MicroBatch]:
    """Return the micro-batches of a dump.

    Raises:
        NanGuardError: If they hold pickled objects that are not allowed.
    """
    try:
        batches = from_plain(dump['batches'], allow_pickle)
    except ValueError as error:
        raise NanGuardError(
            f'{path} {error}. If you trust the file, allow it with '
            '--allow-pickle.'
        ) from None
    window = []
    for batch_idx, data, rng, iteration in zip(
        dump['batch_idx'], batches, dump['rng'], dump['iter']
    ):
        kept = KeptBatch(data, dump['is_exact'])
        window.append(MicroBatch(batch_idx, kept, rng, iteration))
    return window


def check_device(device: str) -> None:
    """Check that tensors can be put on a device.

    Raises:
        NanGuardError: If they cannot.
    """
    try:
        torch.empty(0, device=device)
    except Exception as error:
        # RuntimeError for a wrong name, AssertionError in a build without
        # CUDA, others by backend. The first line names the reason; hints for
        # developers follow.
        reason = str(error).splitlines()[0]
        raise NanGuardError(
            f'--device {device} cannot be used here ({reason}). Without '
            '--device, it is the GPU where there is one, else the CPU.'
        ) from error


def build(cfg: Config, source: object) -> Runner:
    """Build a Runner with the parts that a forward and backward pass needs.

    Args:
        cfg: The config.
        source: The file that the config was read from, for the error.

    Raises:
        NanGuardError: If a class of the config is missing or fails.
    """
    parts = {key: cfg[key] for key in KEYS if key in cfg}
    folder = tempfile.mkdtemp()
    try:
        runner = Runner(
            **parts,
            # A Runner needs a folder and writes logs into it.
            work_dir=folder,
            log_level='WARNING',
            # Runners of an equal name would share a message hub.
            experiment_name=f'replay_{uuid4().hex}',
        )
        # Not built by the constructor, which takes an optimizer wrapper only
        # together with a train loop and its data.
        runner.optim_wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    except Exception as error:
        # The user's classes may raise anything.
        raise NanGuardError(
            f'The model cannot be built from the config of {source} '
            f'({type(error).__name__}: {error}). {IMPORT_HINT}'
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    runner.model.train()
    return runner


def doubts_about_ranks(cfg: Config, world_size: int) -> List[str]:
    """Return a doubt if the model normalizes over the batches of all ranks.

    Runner replaces SyncBN by BatchNorm in a process without ranks. The text
    of the config is searched, because the layer may stand anywhere in it.
    """
    text = str(cfg.model)
    if cfg.get('sync_bn'):
        text += ' sync_bn'
    has_sync_bn = re.search('sync_?(bn|batchnorm)', text.lower())
    if world_size == 1 or not has_sync_bn:
        return []
    return [f"SyncBN had the statistics of {world_size} ranks, here of one's"]


def start_model_changers(
    runner: Runner, cfg: Config, fp32_modules: List[str]
) -> None:
    """Build the hooks that change a forward pass, and start them.

    Args:
        runner: The runner of the replay.
        cfg: The config with the hooks.
        fp32_modules: The patterns of all modules that ran in float32, with
            those that an autopsy added.
    """
    for kind, hook in hooks_inside(cfg):
        if issubclass(kind, Fp32ModulesHook):
            hook = dict(hook, modules=fp32_modules)
        HOOKS.build(hook).before_train(runner)
