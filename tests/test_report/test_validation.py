"""The results of validations, and the best checkpoint."""

import pytest
from event_rows import start, write_events, write_scalars
from mmengine.evaluator import BaseMetric
from toys import (
    BATCH_SIZE,
    guard_hooks,
    loader,
    make_data,
    make_runner,
    wrapper,
)

from mmnanguard.report import load_run
from mmnanguard.report.comparison_figure import COLORS, draw_comparison
from mmnanguard.report.validation import describe_validation


def validated(step, **metrics):
    return dict(metrics, time=1.0, data_time=0.1, step=step)


def report_of(folder, rows, *files):
    write_events(folder / '1', [start()])
    write_scalars(folder / '1', rows)
    for name in files:
        (folder / name).touch()
    return load_run(str(folder))


def test_epochs_become_iterations(tmp_path):
    rows = [
        *(dict(iter=10, loss=1.0), validated(1, mAP=0.2)),
        *(dict(iter=20, loss=0.5), validated(2, mAP=0.4)),
        *(dict(iter=30, loss=0.4), validated(3, mAP=0.3)),
    ]
    report = report_of(tmp_path, rows, 'best_mAP_epoch_2.pth')
    (metric,) = report.metrics
    assert metric.sentence() == (
        'mAP 0.3 at iteration 30, the best 0.4 at 20 (best_mAP_epoch_2.pth)'
    )
    assert report.lines_below[-1] == ('validation', metric.sentence())
    assert report.to_dict()['validation'] == [metric._asdict()]


def test_steps_may_be_iterations(tmp_path):
    rows = [dict(iter=90, loss=1.0), validated(100, err=0.2)]
    (metric,) = report_of(tmp_path, rows).metrics
    # Nothing says whether a low value is good.
    assert metric.sentence() == 'err 0.2 at iteration 100'


@pytest.mark.parametrize(('key', 'best'), [('a/loss', 20), ('top1', 10)])
def test_the_direction_is_that_of_mmengine(tmp_path, key, best):
    rows = [
        *(dict(iter=10), validated(1, **{key: 2.0})),
        *(dict(iter=20), validated(2, **{key: 1.0})),
    ]
    (metric,) = report_of(tmp_path, rows).metrics
    assert metric.best_iter == best
    assert metric.sentence().endswith('the best') == (best == 20)


def test_the_best_checkpoint_decides(tmp_path):
    """The rule may be the reverse, and of several files the newest counts."""
    rows = [
        *(dict(iter=10), validated(1, **{'coco/mAP': 0.9, 'b': 1.0})),
        *(dict(iter=20), validated(2, **{'coco/mAP': 0.4, 'b': 2.0})),
    ]
    files = ('best_coco_mAP_epoch_1.pth', 'best_coco_mAP_epoch_2.pth')
    report = report_of(tmp_path, rows, *files, 'best_practice.txt')
    first, second = report.metrics
    assert (first.name, first.best, first.best_iter) == ('coco/mAP', 0.4, 20)
    assert (second.name, second.checkpoint) == ('b', '')
    assert describe_validation(report.metrics) == first.sentence()


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    for number, last in ((1, 20), (2, 10)):
        first = start(1 if number == 1 else 11, attempt=number)
        write_events(tmp_path / f'{number}', [first])
        # The second attempt validates before it trains.
        rows = [validated(1, acc=3)] * (number - 1)
        for iter_ in range(30 - last, 21, 10):
            rows.append(dict(iter=iter_, loss=1.0))
            rows.append(validated(iter_ // 10, acc=number))
        write_scalars(tmp_path / f'{number}', rows)
    report = load_run(str(tmp_path))
    curve = report.curves['val/acc']
    assert list(curve.iters) == [10, 20]
    assert list(curve.values) == [3, 2]


class Falling(BaseMetric):
    """A metric that is best at the second validation."""

    def __init__(self):
        super().__init__()
        self.scores = [1.0, 5.0, 2.0]

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(acc=self.scores.pop(0))


@pytest.mark.parametrize('by_epoch', [False, True])
def test_what_mmengine_writes(tmp_path, by_epoch):
    batches = 4
    train_cfg = dict(by_epoch=True, max_epochs=3)
    if not by_epoch:
        train_cfg = dict(by_epoch=False, max_iters=12, val_interval=4)
    best = dict(type='CheckpointHook', by_epoch=by_epoch, save_best='acc')
    runner = make_runner(
        tmp_path,
        wrapper(),
        max_iters=batches,
        train_cfg=train_cfg,
        val_cfg=dict(),
        val_dataloader=loader(make_data(BATCH_SIZE)),
        val_evaluator=[Falling()],
        log_processor=dict(by_epoch=by_epoch),
        default_hooks=dict(guard_hooks(), checkpoint=best),
    )
    runner.train()
    (metric,) = load_run(str(tmp_path)).metrics
    name = 'best_acc_epoch_2.pth' if by_epoch else 'best_acc_iter_8.pth'
    assert metric == ('acc', 2.0, 12, 5.0, 8, name)


def test_runs_are_compared_by_the_metric_that_most_have(tmp_path):
    reports = []
    for name, keys in (('a', ['x']), ('b', ['y', 'x']), ('c', [])):
        row = validated(1, **dict.fromkeys(keys, 1.0))
        scalars = [dict(iter=5, loss=1.0), row]
        reports.append(report_of(tmp_path / name, scalars))
    drawn = draw_comparison(reports, 5)
    names = [(t['name'], t['yaxis']) for t in drawn['data']]
    runs = [report.name for report in reports]
    expected = [(run, 'y') for run in runs] + [(run, 'y2') for run in runs[:2]]
    assert names == expected
    assert drawn['layout']['yaxis2']['title']['text'] == 'x'
    colors = [trace['line']['color'] for trace in drawn['data']]
    assert colors == [*COLORS[:3], *COLORS[:2]]
