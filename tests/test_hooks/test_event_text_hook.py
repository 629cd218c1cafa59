import json

import pytest
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend, LocalVisBackend
from tensorboard.backend.event_processing import event_accumulator
from toys import guard_hooks, make_runner, read_rows, wrapper

FAULTS = (
    dict(iter=3, site='loss'),
    dict(iter=6, site='grad', where='head.weight', value='inf'),
)


@VISBACKENDS.register_module()
class TextVisBackend(LocalVisBackend):
    """A backend that a user could write."""

    def __init__(self, save_dir, fails=False):
        super().__init__(save_dir)
        self.shown_texts = []
        self.fails = fails

    def add_text(self, tag, text, step):
        self.shown_texts.append((tag, text, step))
        if self.fails:
            raise ConnectionError('the server is gone')


@VISBACKENDS.register_module()
class PictureVisBackend(BaseVisBackend):
    """A backend that cannot show text."""

    def _init_env(self):
        pass

    @property
    def experiment(self):
        return self


def run(tmp_path, *backends, **hooks):
    runner = make_runner(
        tmp_path,
        wrapper(),
        default_hooks={
            **guard_hooks(*FAULTS),
            'event_text': dict(type='mmnanguard.EventTextHook'),
            **hooks,
        },
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(b) for b in backends]
        ),
    )
    runner.train()
    return runner


def test_tensorboard_shows_each_event_as_text(tmp_path):
    runner = run(
        tmp_path,
        dict(type='LocalVisBackend'),
        dict(type='TensorboardVisBackend'),
        dump=dict(type='mmnanguard.BatchDumpHook'),
    )
    log = event_accumulator.EventAccumulator(f'{runner.log_dir}/vis_data')
    log.Reload()
    for kind in ('update', 'dump'):
        events = log.Tensors(f'guard/{kind}/text_summary')
        rows = read_rows(runner, kind)
        assert [event.step for event in events] == [3, 6]
        texts = [event.tensor_proto.string_val[0].decode() for event in events]
        for text, row in zip(texts, rows):
            headline, _, rest = text.partition('\n\n')
            assert json.loads(rest) == row
            if kind == 'update':
                assert headline.startswith(f'Iter {row["iter"]}: ')


def test_a_backend_of_ones_own(tmp_path):
    runner = run(tmp_path, dict(type='TextVisBackend'))
    (backend,) = runner.visualizer._vis_backends.values()
    assert [(tag, step) for tag, _, step in backend.shown_texts] == [
        ('guard/update', 3),
        ('guard/update', 6),
    ]


def test_a_backend_that_fails_costs_its_text_not_the_run(tmp_path):
    runner = run(
        tmp_path,
        dict(type='TextVisBackend', fails=True, name='gone'),
        dict(type='TextVisBackend', name='well'),
    )
    gone, well = runner.visualizer._vis_backends.values()
    assert [len(backend.shown_texts) for backend in (gone, well)] == [1, 2]
    assert runner.iter == 10


@pytest.mark.parametrize(
    ('backend', 'is_named'),
    [('LocalVisBackend', False), ('PictureVisBackend', True)],
)
def test_one_that_shows_no_text_is_named(tmp_path, backend, is_named):
    runner = run(tmp_path, dict(type=backend))
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert (f'{backend} shows no text' in log) == is_named
    assert len(read_rows(runner)) == 2
