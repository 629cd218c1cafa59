"""Configs that projects ship, and options that fit them to a CPU.

Runs have eight iterations of a few small pictures; the nets are thin and have
fewer layers. The configs are not edited.
"""

from typing import NamedTuple, Tuple

NUM_ITERS = 8
TRAIN = (
    'randomness.seed=0',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'train_dataloader.dataset.data_root={data_root}',
)
TWO_EPOCHS = (*TRAIN, 'train_cfg.max_epochs=2')


class Recipe(NamedTuple):
    """A config, and how to run it.

    Attributes:
        precision: 'fp32', 'fp16' or 'bf16'.
        options: The words after --cfg-options, perhaps with '{data_root}'.
        has_buffers: Whether the model has buffers of floating point.
        has_ema: Whether the run has an EMAHook.
        clips: Whether the norm is clipped, which MMEngine rounds otherwise.
        by_epoch: Whether the run counts epochs instead of iterations.
        struck: The module whose output goes bad. It is empty for a model that
            raises an error at non-finite numbers: then the loss goes bad.
    """

    project: str
    config: str
    precision: str
    options: Tuple[str, ...]
    has_buffers: bool = False
    has_ema: bool = False
    clips: bool = False
    by_epoch: bool = True
    struck: str = 'backbone'


CLASSIFY = (
    *TWO_EPOCHS,
    'train_dataloader.batch_size=8',
    'train_dataloader.dataset.pipeline.1.scale=32',
    'val_dataloader.dataset.pipeline.1.scale=36',
    'val_dataloader.dataset.pipeline.2.crop_size=32',
    'val_dataloader.dataset.data_root={data_root}',
    'val_dataloader.batch_size=8',
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


def views(*paths):
    """Return the options of small views, without a shift of hues: NumPy 2
    refuses mmcv 2.1's computation of it.
    """
    prefix = 'train_dataloader.dataset.pipeline.1.transforms'
    options = [*TWO_EPOCHS, 'train_dataloader.batch_size=8']
    for path in paths:
        options.append(f'{prefix}.{path}.0.scale=32')
        options.append(f'{prefix}.{path}.1.transforms.0.hue=0')
    return tuple(options)


MMPRETRAIN = {
    'resnet': Recipe(
        'mmpretrain',
        'resnet/resnet50_8xb32_in1k.py',
        'fp32',
        (*CLASSIFY, *RESNET, 'model.head.in_channels=64'),
        has_buffers=True,
    ),
    # AmpOptimWrapper, loss_scale=512.
    'resnet-fp16': Recipe(
        'mmpretrain',
        'resnet/resnet50_8xb32-fp16_in1k.py',
        'fp16',
        (*CLASSIFY, *RESNET, 'model.head.in_channels=64'),
        has_buffers=True,
    ),
    # Mixup and CutMix, window attention.
    'swin': Recipe(
        'mmpretrain',
        'swin_transformer/swin-tiny_16xb64_in1k.py',
        'bf16',
        (*CLASSIFY, *SWIN, *WARM_UP, 'model.head.in_channels=128'),
        clips=True,
    ),
    # Mixup and CutMix, EMAHook.
    'vit': Recipe(
        'mmpretrain',
        'vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
        'fp32',
        (*CLASSIFY, *VIT, *WARM_UP, EMA, 'model.head.in_channels=16'),
        has_ema=True,
    ),
    # The same, its EMAHook of NanGuardHook's own priority.
    'deit': Recipe(
        'mmpretrain',
        'deit/deit-base_16xb64_in1k.py',
        'fp16',
        (*CLASSIFY, *VIT, *WARM_UP, EMA, 'model.head.in_channels=16'),
        has_ema=True,
        clips=True,
    ),
    # A momentum encoder and a queue.
    'mocov2': Recipe(
        'mmpretrain',
        'mocov2/mocov2_resnet50_8xb32-coslr-200e_in1k.py',
        'fp32',
        (
            *views('0'),
            *RESNET,
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
        'mmpretrain',
        'mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k.py',
        'fp16',
        (
            *views('0', '1'),
            *VIT,
            *WARM_UP,
            'param_scheduler.1.end=2',
            'model.neck.in_channels=16',
            'model.neck.hid_channels=16',
            'model.neck.out_channels=16',
            'model.head.predictor.in_channels=16',
            'model.head.predictor.hid_channels=16',
            'model.head.predictor.out_channels=16',
        ),
        has_buffers=True,
    ),
}

NO_VALIDATION = ('val_cfg=None', 'val_dataloader=None', 'val_evaluator=None')
DETECT = (
    *TWO_EPOCHS,
    *NO_VALIDATION,
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.ann_file=annotations.json',
    'train_dataloader.dataset.data_prefix.img=images/',
    'model.backbone.init_cfg=None',
    'model.backbone.depth=18',
    'model.backbone.base_channels=8',
)
SEGMENT = (
    *TRAIN,
    *NO_VALIDATION,
    f'train_cfg.max_iters={NUM_ITERS}',
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.data_prefix.img_path=images',
    'train_dataloader.dataset.data_prefix.seg_map_path=masks',
    'train_dataloader.dataset.pipeline.2.scale=(64,64)',
    'train_dataloader.dataset.pipeline.3.crop_size=(32,32)',
    'model.data_preprocessor.size=(32,32)',
)
CROPS = 'train_dataloader.dataset.pipeline.3.transforms'
ATTENTION = (
    'encoder.layer_cfg.self_attn_cfg',
    'decoder.layer_cfg.self_attn_cfg',
    'decoder.layer_cfg.cross_attn_cfg',
)
FFN = ('encoder.layer_cfg.ffn_cfg', 'decoder.layer_cfg.ffn_cfg')

# These need mmcv's compiled operations.
MMDET_MMSEG = {
    'retinanet': Recipe(
        'mmdet',
        'retinanet/retinanet_r50_fpn_1x_coco.py',
        'fp32',
        (
            *DETECT,
            'train_dataloader.dataset.pipeline.2.scale=(64,64)',
            'model.neck.in_channels=[8,16,32,64]',
            'model.neck.out_channels=16',
            'model.bbox_head.in_channels=16',
            'model.bbox_head.feat_channels=16',
            'model.bbox_head.stacked_convs=1',
        ),
        has_buffers=True,
        struck='neck',
    ),
    'detr': Recipe(
        'mmdet',
        'detr/detr_r50_8xb2-150e_coco.py',
        'fp16',
        (
            *DETECT,
            f'{CROPS}.0.0.scales=[(64,64),(48,48)]',
            f'{CROPS}.1.0.scales=[(96,96)]',
            f'{CROPS}.1.1.crop_size=(48,64)',
            f'{CROPS}.1.2.scales=[(64,64)]',
            'model.neck.in_channels=[64]',
            'model.neck.out_channels=16',
            'model.num_queries=8',
            'model.positional_encoding.num_feats=8',
            'model.encoder.num_layers=1',
            'model.decoder.num_layers=1',
            *(f'model.{part}.num_heads=2' for part in ATTENTION),
            *(f'model.{part}.feedforward_channels=32' for part in FFN),
            *(
                f'model.{part}.embed_dims=16'
                for part in (*ATTENTION, *FFN, 'bbox_head')
            ),
        ),
        has_buffers=True,
        clips=True,
        struck='',  # the matching of queries with boxes does
    ),
    'segformer': Recipe(
        'mmseg',
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'bf16',
        (
            *SEGMENT,
            'model.backbone.init_cfg=None',
            'model.backbone.embed_dims=8',
            'model.backbone.num_layers=[1,1,1,1]',
            'model.backbone.num_heads=[1,1,2,2]',
            'model.decode_head.in_channels=[8,8,16,16]',
            'model.decode_head.channels=16',
            'param_scheduler.0.end=4',
            'param_scheduler.1.begin=4',
            'param_scheduler.1.end=8',
        ),
        has_buffers=True,
        by_epoch=False,
    ),
    'fcn': Recipe(
        'mmseg',
        'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
        'fp32',
        (
            *SEGMENT,
            'model.pretrained=None',
            'model.backbone.depth=18',
            'model.backbone.base_channels=8',
            'model.decode_head.in_channels=64',
            'model.decode_head.channels=16',
            'model.auxiliary_head.in_channels=32',
            'model.auxiliary_head.channels=8',
            'param_scheduler.0.end=8',
        ),
        has_buffers=True,
        by_epoch=False,
        struck='backbone.layer4',
    ),
}
RECIPES = {**MMPRETRAIN, **MMDET_MMSEG}
