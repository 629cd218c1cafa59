"""The bad sample of a batch is named, in all the forms that batches have."""

import math
from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest
import torch
from accelerator import count_waits
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmnanguard.hooks.inputs.input_check import InputCheck, bad_samples
from mmnanguard.hooks.inputs.input_policy import InputPolicy

Pair = namedtuple('Pair', ['image', 'depth'])


def clean(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def bad(*shape, at=0, value=math.nan, dtype=torch.float32):
    """Return a tensor with one bad element, in row ``at``."""
    tensor = clean(*shape, dtype=dtype)
    tensor[(at, *[-1] * (len(shape) - 1))] = value
    return tensor


def sample(index, named=True, **fields):
    metainfo = dict(ori_shape=(4, 4), factor=math.nan)  # is not looked at
    if named:
        metainfo['img_path'] = f'{index}.jpg'
    return BaseDataElement(metainfo=metainfo, **fields)


def samples(*fields, named=True):
    return [sample(i, named, **dict(keys)) for i, keys in enumerate(fields)]


def three(**keys):
    """Return three empty samples."""
    return samples({}, {}, {}, **keys)


def boxes(num, **keys):
    return InstanceData(bboxes=bad(num, 4, **keys), labels=torch.ones(num))


def look(output, batch=None, batch_idx=5, rank=None, **policy):
    return InputCheck(
        output,
        output if batch is None else batch,
        batch_idx,
        InputPolicy(**policy),
        rank,
    )


def found_in(output, batch=None, **keys):
    flags = look(output, batch, **keys).flags
    return bad_samples([] if flags is None else [flags])


def pixels(**keys):
    return PixelData(data=bad(1, 4, 4, **keys))


OUTPUTS = {
    'a batch tensor': (
        dict(inputs=bad(3, 2, 4, 4, at=1), data_samples=three()),
        {'inputs': ['1.jpg']},
    ),
    'as many channels as samples': (
        dict(
            inputs=[clean(3, 4, 4), clean(3, 4, 4), bad(3, 4, 4)],
            data_samples=three(),
        ),
        {'inputs': ['2.jpg']},
    ),
    'a tuple with a tensor a sample': (
        dict(
            inputs=(bad(3, 4, 4), clean(3, 9, 9), clean(3, 4, 9)),
            data_samples=three(),
        ),
        {'inputs': ['0.jpg']},
    ),
    'a dict of tensors and lists': (
        dict(
            inputs=dict(
                img=bad(3, 2, 4, 4, at=2),
                points=[clean(7, 4), bad(9, 4, at=8), clean(0, 4)],
                voxels=bad(11, 4, at=1),
            ),
            data_samples=three(),
        ),
        {
            'inputs.img': ['2.jpg'],
            'inputs.points': ['1.jpg'],
            # Of all samples together.
            'inputs.voxels': ['batch 5'],
        },
    ),
    'views': (
        dict(
            inputs=[bad(3, 2, 4, 4, at=1), bad(3, 2, 4, 4, at=2)],
            data_samples=three(),
        ),
        {'inputs': ['1.jpg', '2.jpg']},
    ),
    'as many views as samples': (
        dict(
            inputs=[clean(2, 3, 4, 4), bad(2, 3, 4, 4, at=0)],
            data_samples=samples({}, {}),
        ),
        {'inputs': ['0.jpg']},
    ),
    'boxes, which are no samples': (
        dict(
            inputs=clean(2, 3, 4, 4),
            data_samples=samples(
                dict(gt_instances=boxes(2, value=1.0)),
                dict(gt_instances=boxes(2, at=0)),
            ),
        ),
        {'data_samples.gt_instances.bboxes': ['1.jpg']},
    ),
    'no boxes': (
        dict(
            inputs=clean(2, 3, 4, 4),
            data_samples=samples(
                dict(gt_instances=InstanceData(bboxes=clean(0, 4))),
                dict(gt_instances=boxes(1)),
            ),
        ),
        {'data_samples.gt_instances.bboxes': ['1.jpg']},
    ),
    'pixels': (
        dict(
            inputs=clean(3, 3, 4, 4),
            data_samples=samples(
                dict(gt_depth=pixels(value=math.inf)),
                dict(gt_depth=pixels(value=1.0)),
                dict(gt_depth=pixels(value=-math.inf)),
            ),
        ),
        {'data_samples.gt_depth.data': ['0.jpg', '2.jpg']},
    ),
    'floats, lists and dicts of a sample': (
        dict(
            inputs=clean(4, 3, 4, 4),
            data_samples=samples(
                dict(score=math.nan, weight=2.0),
                dict(parts=[clean(2), dict(x=bad(4, 2))]),
                dict(score=torch.tensor(math.inf)),
                dict(score=1, name='nan'),
            ),
        ),
        {
            'data_samples.score': ['0.jpg', '2.jpg'],
            'data_samples.parts.x': ['1.jpg'],
        },
    ),
    'samples stacked into one': (
        dict(
            inputs=clean(3, 3, 4, 4),
            data_samples=BaseDataElement(gt_img=bad(3, 3, 4, 4, at=2)),
        ),
        {'data_samples.gt_img': ['2.jpg']},
        dict(inputs=None, data_samples=three()),
    ),
    'branches': (
        dict(
            inputs=dict(sup=bad(1, 3, 4, 4), unsup=bad(2, 3, 4, 4, at=1)),
            data_samples=dict(
                sup=[sample(7)],
                unsup=[sample(8), sample(9, gt_instances=boxes(3, at=1))],
            ),
        ),
        {
            'inputs.sup': ['7.jpg'],
            'inputs.unsup': ['9.jpg'],
            'data_samples.unsup.gt_instances.bboxes': ['9.jpg'],
        },
    ),
    'rows that are no samples': (
        dict(inputs=bad(6, 3, 4, 4, at=1), data_samples=three()),
        {'inputs': ['batch 5']},
    ),
    'a number for the batch': (
        dict(inputs=torch.tensor(math.nan), data_samples=three()),
        {'inputs': ['batch 5']},
    ),
    'arguments without names': (
        [bad(4, 3, 8, 8, at=3), torch.arange(4)],
        {'0': ['batch 5, row 3']},
    ),
    'labels that are bad': (
        (clean(4, 3, 8, 8), bad(4, at=1)),
        {'1': ['batch 5, row 1']},
    ),
    'a namedtuple': (
        Pair(bad(4, 3, 8, 8, at=3), bad(4, 8, 8, at=1)),
        {'image': ['batch 5, row 3'], 'depth': ['batch 5, row 1']},
    ),
    'namedtuples': (
        dict(
            inputs=[
                Pair(clean(3, 4, 4), bad(4, 4)),
                Pair(clean(3, 4, 4), clean(4, 4)),
            ],
            data_samples=samples({}, {}),
        ),
        {'inputs.depth': ['0.jpg']},
    ),
    'a lone tensor': (bad(4, 3, at=2), {'inputs': ['batch 5, row 2']}),
    'a list without names': (
        dict(inputs=[clean(3, 4, 4), bad(3, 4, 4)]),
        {'inputs': ['batch 5, row 1']},
    ),
    'samples without names': (
        dict(inputs=bad(3, 3, 4, 4, at=2), data_samples=three(named=False)),
        {'inputs': ['batch 5, row 2']},
    ),
    'views without names': (
        dict(inputs=[bad(3, 2, 4, 4), clean(3, 2, 4, 4)]),
        {'inputs': ['batch 5, row 0']},
    ),
    'parts that do not agree': (
        dict(inputs=bad(3, 2, 4, 4), anchors=clean(4, 4)),
        {'inputs': ['batch 5, row 0']},
    ),
    'nothing to look at': (
        dict(
            inputs=torch.ones(3, 2, 4, 4, dtype=torch.uint8),
            mask=torch.ones(3, dtype=torch.bool),
            data_samples=None,
            name='nan',
        ),
        {},
    ),
    'arrays': (
        dict(
            inputs=clean(3, 2),
            masks=[clean(1).numpy(), bad(4).numpy(), clean(4).numpy()],
            polygons=[[bad(6).numpy().astype('>f4')], [], []],
            reversed=bad(3, 2, at=2).numpy()[::-1],
            read_only=np.broadcast_to(bad(1).numpy(), (3, 2)),
            number=[np.float32(1), np.float32(math.nan), np.float16(1)],
            counts=np.ones((3, 2), np.uint8),
            masked=np.ma.masked_invalid(bad(3, 2).numpy()),
            data_samples=three(),
        ),
        {
            'masks': ['1.jpg'],
            'polygons': ['0.jpg'],
            'reversed': ['0.jpg'],
            'read_only': ['0.jpg', '1.jpg', '2.jpg'],
            'number': ['1.jpg'],
        },
    ),
    'empty tensors': (
        dict(inputs=clean(3, 0), boxes=clean(0, 4), data_samples=three()),
        {},
    ),
    'an empty batch': (dict(inputs=clean(0, 3, 4, 4), data_samples=[]), {}),
}


@pytest.mark.parametrize('name', OUTPUTS)
def test_the_sample_is_named(name):
    output, expected, *batch = OUTPUTS[name]
    assert found_in(output, *batch) == expected


@pytest.mark.parametrize('name', OUTPUTS)
def test_reject_hands_on_what_it_was_given(name):
    output = OUTPUTS[name][0]
    assert look(output).output is output


@pytest.mark.parametrize('name', OUTPUTS)
def test_sanitize_leaves_nothing_bad_and_changes_copies(name):
    output, expected, *batch = OUTPUTS[name]
    mended = look(output, *batch, action='sanitize').output
    assert found_in(mended, *batch) == {}
    assert type(mended) is type(output)
    assert found_in(output, *batch) == expected
    assert look(mended).keys == look(output).keys


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_dtypes(dtype, value):
    output = dict(inputs=bad(3, 2, 4, at=1, value=value, dtype=dtype))
    assert found_in(output) == {'inputs': ['batch 5, row 1']}
    mended = look(output, action='sanitize', nan=2.0, posinf=1e300, neginf=-3)
    (row,) = mended.output['inputs'][1, -1, -1:].tolist()
    largest = torch.finfo(dtype).max
    if math.isnan(value):
        assert row == 2.0
    elif value > 0:
        assert row == min(1e300, largest)
    else:
        assert row == -3.0
    assert mended.output['inputs'].dtype is dtype
    extreme = look(output, action='sanitize', posinf=None, neginf=None).output
    assert abs(extreme['inputs'][1, -1, -1].item()) in (0.0, largest)


@pytest.mark.parametrize('value', [3.4e38, -3.4e38, 1e-45, -0.0])
def test_a_large_number_is_finite(value):
    inputs = bad(3, 2, value=value)
    assert found_in(dict(inputs=inputs)) == {}
    mended = look(dict(inputs=inputs), action='sanitize').output['inputs']
    assert torch.equal(mended.view(torch.int32), inputs.view(torch.int32))


def test_channels_last_and_other_strides():
    inputs = bad(3, 2, 4, 5, at=1)
    for other in (
        inputs.to(memory_format=torch.channels_last),
        inputs.transpose(1, 3),
        inputs[:, :, :, ::2],
        bad(3, 1, 1, 1, at=1).expand(3, 2, 4, 5),
    ):
        assert found_in(dict(inputs=other)) == {'inputs': ['batch 5, row 1']}


def test_keys_take_all_below_them():
    output = dict(
        inputs=bad(2, 3, 4, 4),
        data_samples=samples(
            dict(gt_instances=boxes(2), gt_depth=pixels()), {}
        ),
    )
    below = ['data_samples.gt_depth.data', 'data_samples.gt_instances.bboxes']
    for keys, expected in {
        ('inputs',): ['inputs'],
        ('data_samples',): below,
        ('data_samples.gt_instances', 'inputs'): ['inputs', below[1]],
        ('data_samples.gt',): [],  # not a part, but the beginning of one
    }.items():
        assert list(found_in(output, keys=keys)) == expected
        assert look(output, keys=keys).keys == {
            'inputs',
            *below,
            'data_samples.gt_instances.labels',
        }


def test_keys_come_in_the_same_order_in_every_process():
    names = 'ecafdb'
    element = BaseDataElement(**{name: bad(2) for name in names})
    bad_keys = found_in(dict(inputs=bad(1, 3), data_samples=[element]))
    assert list(bad_keys) == [
        'inputs',
        *(f'data_samples.{name}' for name in sorted(names)),
    ]


def test_keys_decide_what_is_mended():
    output = dict(inputs=bad(2, 3), data_samples=samples(dict(x=bad(2)), {}))
    mended = look(output, action='sanitize', keys=['data_samples']).output
    assert found_in(mended) == {'inputs': ['0.jpg']}
    assert mended['inputs'] is output['inputs']


@pytest.mark.parametrize('kind', [OrderedDict, defaultdict])
def test_types_of_dicts_are_kept(kind):
    output = kind()
    output['inputs'] = bad(2, 3)
    mended = look(output, action='sanitize').output
    assert type(mended) is kind
    assert list(mended) == ['inputs']


def test_a_data_element_keeps_its_metainfo_and_its_other_fields():
    given = sample(0, gt_instances=boxes(2), label=3)
    output = dict(inputs=clean(1, 3), data_samples=[given])
    (mended,) = look(output, action='sanitize').output['data_samples']
    assert mended.metainfo.keys() == given.metainfo.keys()
    assert mended.label == 3
    assert mended.gt_instances.labels.tolist() == [1.0, 1.0]
    assert mended.gt_instances.bboxes[0].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert math.isnan(given.gt_instances.bboxes[0, 3])


def test_ranks_are_told_where_samples_have_no_names():
    assert found_in(bad(2, 3), rank=1) == {
        'inputs': ['batch 5 of rank 1, row 0']
    }
    assert found_in(torch.tensor(math.nan), rank=1) == {
        'inputs': ['batch 5 of rank 1']
    }
    named = dict(inputs=bad(1, 3), data_samples=samples({}))
    assert found_in(named, rank=1) == {'inputs': ['0.jpg']}


def test_gradients_flow_through_what_is_mended():
    """Gradients reach a preprocessor that is trained."""
    scale = torch.ones(3, requires_grad=True)
    output = dict(inputs=bad(2, 3) * scale)
    look(output, action='sanitize').output['inputs'].sum().backward()
    assert scale.grad[:2].tolist() == [2.0, 2.0]


@pytest.mark.gpu
def test_a_look_does_not_sync(device):
    output = dict(
        inputs=bad(3, 3, 4, 4, at=1).to(device),
        data_samples=samples(
            dict(x=bad(2).to(device)), dict(y=bad(2)), dict(z=math.nan)
        ),
    )
    with count_waits() as waits:
        for action in ('reject', 'sanitize'):
            flags = look(output, action=action).flags
    assert waits.count == 0
    assert flags.is_bad.device.type == device
    assert bad_samples([flags]) == {
        'inputs': ['1.jpg'],
        'data_samples.x': ['0.jpg'],
        'data_samples.y': ['1.jpg'],
        'data_samples.z': ['2.jpg'],
    }
