import gc
import itertools
import multiprocessing
import pickle
import sys
from copy import deepcopy
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, HOOKS, TRANSFORMS
from mmengine.structures import BaseDataElement, InstanceData
from planted_digits import NAMES, VALIDATE, PlantedDigits
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from toys import make_runner, wrapper

from mmnanguard import registry
from mmnanguard.core import GuardConfigError, NanGuardError
from mmnanguard.datasets import ValidateSample
from mmnanguard.datasets.find_problems import build_checks, find_problems
from mmnanguard.registry import CHECKS

NAN, INF = float('nan'), float('inf')
IN_FIRST_40 = [NAMES[0], NAMES[1], NAMES[2]]  # indices 0, 8 and 17


@CHECKS.register_module()
def norm_scale_is_sane(results, low=1.0):
    """A check that a user could write."""
    if results['norm_scale'] < low:
        return f'norm_scale is {results["norm_scale"]}, below {low}'
    return None


@CHECKS.register_module()
def answers_yes(results):
    return True


class Boxes:
    """Boxes like those of mmdet, which subclass no tensor either."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)


def sample(**changes):
    """Return a good sample, with ``changes``."""
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 2.0, 3.0, 5.0]])
    return (
        dict(
            img=np.full((2, 3, 1), 7, np.uint8),
            img_path='train/7.jpg',
            depth=torch.ones(2, 3),
            joints=np.arange(12.0).reshape(4, 3),
            ids=[3, 151642],
            norm_scale=71.5,
            mask=np.ones((2, 2), bool),
            instances=[dict(bbox=[0, 0, 1, 1]), dict(bbox=[0, 0, 2, 1])],
            gt_instances=InstanceData(
                bboxes=changes.pop('bboxes', boxes),
                boxes=Boxes(changes.pop('inner', boxes)),
                labels=torch.tensor([1, 2]),
            ),
            data_samples=BaseDataElement(
                metainfo=dict(scale=changes.pop('scale', 1.0)),
                gt_label=torch.tensor(changes.pop('gt_label', 3)),
            ),
            **{},
        )
        | changes
    )


def problem(check, **changes):
    problems = find_problems(sample(**changes), build_checks([check], 'here'))
    return problems[0].text if problems else None


FINITE = dict(type='Finite')
SCALE = dict(type='Range', key='norm_scale', min=1.0, max=200.0)
TOKENS = dict(type='Range', key='ids', min=0, max=151642)
HUGE = dict(type='Range', key='depth', min=-3e5, max=3e5)
BOXES = dict(type='NotDegenerate', key='gt_instances.bboxes')
POINTS = dict(type='NotDegenerate', key='joints', kind='points')
LENGTH = 'np.linalg.norm(np.diff(joints[[1, 2, 3]], axis=0), axis=-1).sum()'
BAD_DEPTH = torch.tensor([[0, NAN, 1], [INF, 0, 0]], dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ('check', 'changes', 'message'),
    [
        (FINITE, {}, None),
        (
            FINITE,
            dict(depth=BAD_DEPTH),
            'depth[0, 1] is nan (and 1 more of 6): it must be finite',
        ),
        (FINITE, dict(norm_scale=-INF), 'norm_scale is -inf: it must'),
        (FINITE, dict(gt_label=NAN), 'data_samples.gt_label is nan'),
        (FINITE, dict(scale=INF), 'data_samples.scale is inf'),
        (FINITE, dict(inner=torch.full((2, 4), NAN)), 'boxes.tensor[0, 0] is'),
        (FINITE, dict(instances=[dict(bbox=[0, NAN])]), 'instances.0.bbox[1]'),
        (dict(FINITE, key='img'), dict(norm_scale=NAN), None),
        (dict(FINITE, key=['img', 'joints']), {}, None),
        (SCALE, {}, None),
        (SCALE, dict(norm_scale=1), None),  # both ends are included
        (SCALE, dict(norm_scale=200), None),
        (SCALE, dict(norm_scale=0.0), 'is 0.: it must be from 1.0 to 200.0'),
        (SCALE, dict(norm_scale=200.1), 'norm_scale is 200.1'),
        (SCALE, dict(norm_scale=NAN), 'norm_scale is nan'),
        (dict(type='Range', key='ids', min=3), {}, None),
        # The bounds are beyond the numbers of the type, Inf is beyond both.
        (HUGE, dict(depth=np.float16([5e4, INF])), 'depth[1] is inf'),
        (HUGE, dict(depth=np.float16([-INF])), 'depth[0] is -inf'),
        (HUGE, dict(depth=np.float32([2e5])), None),
        (dict(HUGE, max=INF), dict(depth=np.float16([INF])), None),
        (FINITE, dict(depth=torch.tensor([1j * NAN]).conj()), 'depth[0] is'),
        (FINITE, dict(depth=torch.ones(2, 2).to_sparse()), None),
        (FINITE, dict(depth=torch.ones(2, 2).to_sparse() * NAN), 'depth[0, 0'),
        (dict(type='Range', key='ids', max=5), {}, 'must be 5 or less'),
        (TOKENS, {}, None),
        (TOKENS, dict(ids=[1, 151643]), 'ids[1] is 151643: it must be from 0'),
        (TOKENS, dict(ids=torch.tensor([-1])), 'ids[0] is -1'),
        (dict(type='Range', key=LENGTH, min=1, max=200), {}, None),
        (
            dict(type='Range', key=LENGTH, min=1, max=200),
            dict(joints=np.zeros((4, 3))),
            'is 0.: it must be from 1 to 200',
        ),
        (
            dict(type='Range', key=LENGTH, min=1, max=200),
            dict(joints=np.zeros((2, 3))),
            'fails: IndexError',
        ),
        (BOXES, {}, None),
        (BOXES, dict(bboxes=torch.zeros(2, 0, 4)), None),
        (
            BOXES,
            dict(bboxes=torch.tensor([[0, 0, 1, 1], [3, 1, 3, 5]])),
            'bboxes[1] is [3., 1., 3., 5.]: its width and height must be',
        ),
        (BOXES, dict(bboxes=torch.tensor([[5, 5, 1, 1]] * 2).byte()), 'width'),
        (BOXES, dict(bboxes=torch.tensor([[0, NAN, 1, 1]] * 2)), 'width'),
        (dict(BOXES, min_size=2), {}, 'above 2'),
        (dict(BOXES, kind='xywh'), {}, None),
        (
            dict(BOXES, kind='xywh'),
            dict(bboxes=torch.tensor([[1, 1, 0, 2, 0.3]] * 2)),
            'width and height',
        ),
        (dict(BOXES, key='instances.bbox'), {}, None),
        (
            dict(BOXES, key='instances.bbox'),
            dict(instances=[dict(bbox=[0, 0, 1, 1]), dict(bbox=[1, 1, 1, 1])]),
            'instances.1.bbox is [1., 1., 1., 1.]',
        ),
        (POINTS, {}, None),
        (POINTS, dict(joints=np.ones((4, 3))), 'more than 0.0 apart'),
        (POINTS, dict(joints=np.full((4, 3), INF)), 'more than 0.0 apart'),
        (dict(type='NotEmpty', key='mask'), {}, None),
        (
            dict(type='NotEmpty', key='mask'),
            dict(mask=np.zeros((2, 2))),
            'mask is 0 in all of its 4 elements',
        ),
        (dict(type='NotEmpty', key='ids'), dict(ids=[]), 'ids is empty'),
        (dict(type='norm_scale_is_sane'), {}, None),
        (
            dict(type='norm_scale_is_sane', low=80),
            {},
            'norm_scale is 71.5, below 80',
        ),
        (dict(SCALE, key='scale', allow_missing=True), {}, None),
        (dict(SCALE, key='instances.2.bbox', allow_missing=True), {}, None),
    ],
)
def test_checks(check, changes, message):
    seen = problem(check, **changes)
    if message is None:
        assert seen is None
    else:
        assert message in seen


@pytest.mark.parametrize(
    ('check', 'message'),
    [
        ('Finit', "did you mean 'Finite'"),
        (dict(type='Range', key='a', mni=0), "did you mean 'min'"),
        (dict(type='Range', key='a'), 'one bound'),
        (dict(type='Range', min=0), 'a key such as'),
        (dict(type='Range', key='a', min=2, max=1), 'at most max'),
        (dict(type='Range', key='a', min=NAN), 'a number or None'),
        (dict(type='Range', key=5, min=0), 'key is 5: it must be a key such'),
        (dict(type='Finite', key=[]), 'a key such as'),
        (dict(type='Range', key='a +', min=0), 'neither a key nor an expr'),
        (dict(type='NotDegenerate', key='a', kind='box'), 'xyxy'),
        (dict(type='NotDegenerate', key='a', min_size=-1), '0 or more'),
        (dict(type='NotEmpty'), 'a key such as'),
        (dict(type='norm_scale_is_sane', lo=1), "did you mean 'low'"),
        (dict(key='a'), "a dict with a 'type'"),
    ],
)
def test_mistakes_in_a_config(check, message):
    with pytest.raises(GuardConfigError, match=message):
        build_checks([check], 'ValidateSample.checks')


@pytest.mark.parametrize(
    ('check', 'message'),
    [
        (
            dict(SCALE, key='gt_instances.bbox'),
            r"has no 'gt_instances.bbox': did you mean 'gt_instances.bboxes'\?"
            r'.* img, img_path,.*allow_missing',
        ),
        (dict(SCALE, key='norm_scal + 1'), "did you mean 'norm_scale'"),
        (dict(SCALE, key='gt_instances.bboxs[0]'), 'bboxs'),
        (dict(SCALE, key='instances.2.bbox'), "has no 'instances.2'"),
        (dict(SCALE, key='img_path'), 'holds no numbers, it is a str'),
        (dict(BOXES, key='joints'), r'has shape \(4, 3\)'),
        ('answers_yes', 'what the check answers_yes returns is True'),
    ],
)
def test_mistakes_that_a_sample_shows(check, message):
    with pytest.raises(GuardConfigError, match=message):
        problem(check)


def make(action='drop', check=SCALE):
    return TRANSFORMS.build(
        dict(type='mmnanguard.ValidateSample', checks=[check], action=action)
    )


def test_actions(capsys):
    good, bad = sample(), sample(norm_scale=0.0)
    for action in ('drop', 'raise', 'tell'):
        validate = make(action)
        assert validate(good) is good
        assert validate.record.read() == {}
        if action == 'raise':
            message = 'Sample train/7.jpg is bad: norm_scale is 0.: it must be'
            with pytest.raises(NanGuardError, match=message):
                validate(bad)
            continue
        for _ in range(3):
            assert validate(bad) is (None if action == 'drop' else bad)
        (story,) = validate.record.read().values()
        assert story.startswith('norm_scale is 0.')
        assert capsys.readouterr().out.count('train/7.jpg is bad') == 1
    with pytest.raises(GuardConfigError, match="action is 'skip'"):
        make('skip')
    with pytest.raises(GuardConfigError, match='one at least'):
        TRANSFORMS.build(dict(type='mmnanguard.ValidateSample', checks=[]))


def test_a_run_of_bad_samples_does_not_flood_the_log(capsys):
    validate = make()
    for index in range(50):
        validate(sample(norm_scale=0.0, img_path=f'{index}'))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert 'tells of no more' in lines[-1]
    assert len(validate.record.read()) == 50


def test_copies_of_a_record_are_one():
    record = make().record
    copy = pickle.loads(pickle.dumps(record))
    assert copy.add('a', 'why')
    assert not record.add('a', 'why')
    assert copy.read() == record.read() == {'a': 'why'}
    del copy
    assert record.read() == {'a': 'why'}
    # Within the process a copy is that of another dataset.
    assert deepcopy(record).read() == {}
    path = Path(record.path)
    assert path.exists()
    del record
    gc.collect()
    assert not path.exists()


def test_a_record_does_not_grow_with_the_epochs():
    record = make().record
    others = [pickle.loads(pickle.dumps(record)) for _ in range(3)]
    for _ in range(100):
        for writer in [record, *others]:
            writer.add('a', 'why')
    assert Path(record.path).read_text().count('why') == 1


def test_half_a_line_costs_no_run():
    """A full disk may leave half a line; the record is still read."""
    record = make().record
    Path(record.path).write_text('{"name": "a", "st')
    assert record.add('b', 'why')
    assert record.add('c', 'why')
    assert record.read() == {'c': 'why'}


def forget(holder):
    holder.clear()
    gc.collect()


def test_a_worker_that_ends_takes_no_record_along():
    holder = [make().record]
    holder[0].add('a', 'why')
    fork = multiprocessing.get_context('fork')
    worker = fork.Process(target=forget, args=(holder,))
    worker.start()
    worker.join()
    assert Path(holder[0].path).exists()


def planted(pipeline, **changes):
    return DATASETS.build(
        dict(
            type=PlantedDigits.__name__,
            split='train',
            pipeline=[*pipeline, dict(type='PackDigits')],
            **changes,
        )
    )


@pytest.mark.parametrize(
    ('start', 'num_workers'), [(None, 0), ('fork', 2), ('spawn', 1)]
)
def test_worker_processes(start, num_workers):
    dataset = planted([VALIDATE], indices=40)
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=num_workers,
        multiprocessing_context=start,
        persistent_workers=num_workers > 0,
        collate_fn=list,
    )
    for _ in range(2):
        samples = itertools.chain.from_iterable(loader)
        names = [item['data_samples'].img_path for item in samples]
        assert len(names) == 40
        assert not set(names) & set(NAMES)
    recorded = dataset.pipeline.transforms[0].record.read()
    assert sorted(recorded) == IN_FIRST_40


def test_an_error_of_a_worker_says_what_to_do():
    """A DataLoader rebuilds the error from its text alone."""
    dataset = planted([dict(VALIDATE, action='raise')], indices=1)
    try:
        dataset[0]
    except NanGuardError:
        error = ExceptionWrapper(where='in a worker')
    message = r'digits/train/000000 is bad: img\[3, 4, 0\] is inf'
    with pytest.raises(NanGuardError, match=message):
        error.reraise()


def test_test_mode_takes_no_other_sample():
    dataset = planted([VALIDATE], indices=3, test_mode=True)
    with pytest.raises(Exception, match='should not get `None`'):
        dataset[0]


def test_the_hook_follows_the_pipeline(tmp_path):
    """Other hooks may exchange the pipeline in the middle of a run."""
    hooks = dict(bad=dict(type='mmnanguard.BadSamplesHook', interval=1))
    runner = make_runner(tmp_path, wrapper(), max_iters=1, default_hooks=hooks)
    runner.train()
    (log,) = tmp_path.glob('*/*.log')
    assert log.read_text().count('finds no ValidateSample') == 1
    validate = make('tell')
    runner.train_dataloader.dataset.append(validate)
    validate(sample(norm_scale=0.0))
    runner.call_hook('after_train')
    message = (
        '1 bad samples so far, 1 of them new: train/7.jpg: norm_scale is 0.'
    )
    assert message in log.read_text()
    assert log.read_text().count('; kept') == 1
    with pytest.raises(GuardConfigError, match='interval is 0'):
        HOOKS.build(dict(type='mmnanguard.BadSamplesHook', interval=0))


def test_mmcv_is_not_needed(monkeypatch):
    for name in ('mmcv', 'mmcv.transforms'):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(registry.TRANSFORMS, '_module_dict', {})
    path = sys.modules[ValidateSample.__module__].__file__
    spec = spec_from_file_location(f'{ValidateSample.__module__}_alone', path)
    alone = module_from_spec(spec)
    spec.loader.exec_module(alone)
    validate = alone.ValidateSample(['Finite'])
    assert 'mmcv' not in str(type(validate).__mro__)
    assert validate(dict(img=NAN)) is None
    assert validate(dict(img=1.0)) == dict(img=1.0)
