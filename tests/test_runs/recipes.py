"""Configs that mmpretrain ships, and what makes them fit for a CPU.

Eight iterations of eight images, 32 pixels wide, in two epochs; the nets are
thin and have fewer layers. All by options: the configs are as they come.
"""

from typing import NamedTuple, Tuple

BATCH_SIZE = 8
NUM_ITERS = 8
TRAIN = (
    'train_cfg.max_epochs=2',
    'randomness.seed=0',
    f'train_dataloader.batch_size={BATCH_SIZE}',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
)
CLASSIFY = (
    'train_dataloader.dataset.pipeline.1.scale=32',
    'val_dataloader.dataset.pipeline.1.scale=36',
    'val_dataloader.dataset.pipeline.2.crop_size=32',
    f'val_dataloader.batch_size={BATCH_SIZE}',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
)
RESNET = (
    'model.backbone.depth=18',
    'model.backbone.stem_channels=8',
    'model.backbone.base_channels=8',
)
VIT = (
    'model.backbone.img_size=32',
    'model.backbone.patch_size=8',
    'model.backbone.arch._delete_=True',  # a name becomes a dict
    'model.backbone.arch.embed_dims=16',
    'model.backbone.arch.num_layers=2',
    'model.backbone.arch.num_heads=2',
    'model.backbone.arch.feedforward_channels=32',
)
SWIN = (
    'model.backbone.img_size=32',
    'model.backbone.window_size=4',
    'model.backbone.pad_small_map=True',
    'model.backbone.arch._delete_=True',
    'model.backbone.arch.embed_dims=16',
    'model.backbone.arch.depths=[1,1,2,1]',
    'model.backbone.arch.num_heads=[1,2,2,4]',
)
WARM_UP = ('param_scheduler.0.end=1', 'param_scheduler.1.begin=1')
EMA = 'custom_hooks.0.momentum=0.1'  # the averages shall move


class Recipe(NamedTuple):
    """A config, and how to run it.

    Attributes:
        precision: 'fp32', 'fp16' or 'bf16'.
        options: Without those that all have.
        has_buffers: Of floating point.
    """

    config: str
    precision: str
    options: Tuple[str, ...]
    has_buffers: bool = False

    def all_options(self, data_root):
        """What goes behind --cfg-options."""
        splits = ['train', 'val'] if CLASSIFY[0] in self.options else ['train']
        return [
            *TRAIN,
            *self.options,
            *(
                f'{one}_dataloader.dataset.data_root={data_root}'
                for one in splits
            ),
        ]


def views(*paths):
    """Without a shift of hues: NumPy 2 refuses what mmcv 2.1 does there."""
    prefix = 'train_dataloader.dataset.pipeline.1.transforms'
    return tuple(
        f'{prefix}.{path}.{option}'
        for path in paths
        for option in ('0.scale=32', '1.transforms.0.hue=0')
    )


RECIPES = {
    'resnet': Recipe(
        'resnet/resnet50_8xb32_in1k.py',
        'fp32',
        (*CLASSIFY, *RESNET, 'model.head.in_channels=64'),
        has_buffers=True,
    ),
    # AmpOptimWrapper, loss_scale=512.
    'resnet-fp16': Recipe(
        'resnet/resnet50_8xb32-fp16_in1k.py',
        'fp16',
        (*CLASSIFY, *RESNET, 'model.head.in_channels=64'),
        has_buffers=True,
    ),
    # Mixup and CutMix, clip_grad, window attention.
    'swin': Recipe(
        'swin_transformer/swin-tiny_16xb64_in1k.py',
        'bf16',
        (*CLASSIFY, *SWIN, *WARM_UP, 'model.head.in_channels=128'),
    ),
    # Mixup and CutMix, EMAHook.
    'vit': Recipe(
        'vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
        'fp32',
        (*CLASSIFY, *VIT, *WARM_UP, EMA, 'model.head.in_channels=16'),
    ),
    # The same, its EMAHook of NanGuardHook's own priority, and clip_grad.
    'deit': Recipe(
        'deit/deit-base_16xb64_in1k.py',
        'fp16',
        (*CLASSIFY, *VIT, *WARM_UP, EMA, 'model.head.in_channels=16'),
    ),
    # A momentum encoder and a queue.
    'mocov2': Recipe(
        'mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
        'fp32',
        (
            *RESNET,
            *views('0'),
            'model.queue_len=32',
            'model.feat_dim=16',
            'model.neck.in_channels=64',
            'model.neck.hid_channels=16',
            'model.neck.out_channels=16',
        ),
        has_buffers=True,
    ),
    # AmpOptimWrapper, loss_scale='dynamic'; a momentum encoder that hardly
    # moves while the learning rate is warmed up.
    'mocov3': Recipe(
        'mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k.py',
        'fp16',
        (
            *VIT,
            *WARM_UP,
            'param_scheduler.1.end=2',
            *views('0', '1'),
            *(
                f'model.{part}.{side}_channels=16'
                for part in ('neck', 'head.predictor')
                for side in ('in', 'hid', 'out')
            ),
        ),
        has_buffers=True,
    ),
}
