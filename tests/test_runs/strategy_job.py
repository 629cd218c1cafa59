"""One of two ranks that train, stop, resume and write their results.

They use ``Runner`` with DDP, or ``FlexibleRunner`` with MMEngine's
FSDPStrategy, which saves only ``state`` and ``param_groups`` of an optimizer
wrapper.
"""

import json
import os
import sys
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.runner import FlexibleRunner, Runner
from test_resume import DropoutNet  # noqa: F401  (registers)
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from toys import (
    everything,
    guard_hooks,
    low_precision,
    read_rows,
    runner_config,
    wrapper,
)

FAULTS = (2, 6)


def make(
    work_dir,
    way,
    stop,
    resume=False,
    hooks=(),
    faults=FAULTS,
    guard=(),
    site='loss',
):
    config = runner_config(
        work_dir,
        wrapper(
            'NanGuardAmpOptimWrapper',
            optimizer='AdamW',
            lr=0.01,
            **low_precision(dict(init_scale=64, growth_interval=3)),
            guard=dict(proven_after=0, **dict(guard)),
        ),
        max_iters=stop,
        model=dict(type='DropoutNet'),
        default_hooks=guard_hooks(*(dict(iter=n, site=site) for n in faults)),
        train_dataloader=dict(
            dataset=dict(type='NoisyData', size=64),
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_size=4,
            num_workers=0,
        ),
        launcher='pytorch',
        resume=resume,
        randomness=dict(seed=0, diff_rank_seed=True),
        experiment_name=f'{way}_{Path(work_dir).name}_{stop}_{resume}',
    )
    config['default_hooks']['nan_guard']['save_rng'] = True
    config['default_hooks'].update(dict(hooks))
    config['default_hooks']['checkpoint'] = dict(
        type='CheckpointHook', by_epoch=False, interval=4
    )
    config['default_hooks']['audit'] = dict(
        type='mmnanguard.StateAuditHook', interval=3
    )
    torch.manual_seed(0)
    if way == 'ddp':
        config['cfg'] = dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', device_ids=None
            )
        )
        return Runner(**config)
    state_dict_cfg = way
    if way == 'full':
        # MMEngine's 'full' moves shards to the CPU, on which PyTorch 2.13
        # crashes where they are there already.
        kept = dict(offload_to_cpu=False, rank0_only=False)
        state_dict_cfg = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', **kept),
            optim_state_dict_config=dict(
                type='FullOptimStateDictConfig', **kept
            ),
        )
    strategy = dict(
        type='FSDPStrategy',
        state_dict_cfg=state_dict_cfg,
        model_wrapper=dict(
            type='MMFullyShardedDataParallel',
            use_orig_params=True,
            device_id=torch.device('cpu'),
        ),
    )
    return FlexibleRunner(**config, strategy=strategy)


def mend_mmengine():
    """Repair MMEngine 0.10.7's resume of FSDP and of sharded checkpoints.

    PyTorch after 2.0 wants these arguments in another order.
    """
    load = FullyShardedDataParallel.optim_state_dict_to_load
    FullyShardedDataParallel.optim_state_dict_to_load = staticmethod(
        lambda state_dict, model, optimizer: load(model, optimizer, state_dict)
    )
    os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'


def see(runner):
    runner.train()
    guard = runner.optim_wrapper.guard
    return everything(runner), dict(
        state=guard.state.to_dict(),
        scale=guard.scaler.get_scale(),
        growth=guard.scaler.state_dict().get('_growth_tracker'),
        run=guard.run,
        attempt=guard.attempt,
        rng=torch.get_rng_state().tolist(),
    )


def here(tensor):
    """Return this rank's part of a tensor."""
    is_sharded = hasattr(tensor, 'local_tensor')
    return tensor.local_tensor() if is_sharded else tensor


def differing(left, right):
    return [
        name
        for name, tensor in left.items()
        if not torch.equal(here(tensor), here(right[name]))
    ]


def main(work_dir, way):
    dist.init_process_group('gloo')
    mend_mmengine()
    work_dir = Path(work_dir)
    whole, uninterrupted = see(make(work_dir / 'whole', way, 8))
    _, first = see(make(work_dir / 'parts', way, 4))
    parts, resumed = see(make(work_dir / 'parts', way, 8, resume=True))
    autopsy = dict(type='mmnanguard.AutopsyHook')
    looked_at = make(
        work_dir / 'looked_at', way, 8, hooks=dict(autopsy=autopsy)
    )
    traces, _ = see(looked_at)
    autopsies = read_rows(looked_at, 'autopsy') if is_main_process() else []
    path = work_dir / f'rank_{dist.get_rank()}.json'
    path.write_text(
        json.dumps(
            dict(
                differing=differing(whole, parts),
                traces=differing(whole, traces),
                autopsies=autopsies,
                num_tensors=len(whole),
                uninterrupted=uninterrupted,
                first=first,
                resumed=resumed,
            )
        )
    )
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
