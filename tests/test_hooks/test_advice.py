"""Each kind of fault gets the right reason, culprit and advice.

The story of the halt and the report read the same diagnosis.
"""

import math

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from mmengine.structures import BaseDataElement
from torch import nn
from toys import make_runner, read_rows, wrapper

from mmnanguard.core import TrainingHalted
from mmnanguard.numerics.update.grad_scaler import HAS_CPU_SCALER
from mmnanguard.report import load_run

needs_fp16 = pytest.mark.skipif(
    not HAS_CPU_SCALER, reason='float16 on a CPU needs torch>=2.3'
)


def make_samples(spoil=None, index=5):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for number in range(32):
        sample = BaseDataElement(metainfo=dict(img_path=f'{number:02}.jpg'))
        sample.target = torch.randn(2, generator=generator)
        samples.append(
            dict(
                inputs=torch.randn(4, generator=generator), data_samples=sample
            )
        )
    if spoil is not None:
        spoil(samples[index])
    return samples


def nan_input(sample):
    sample['inputs'][2] = math.nan


def huge_input(sample):
    sample['inputs'] *= 1e30


def far_input(sample):
    sample['inputs'][0] = 100.0


def nan_target(sample):
    sample['data_samples'].target[0] = math.nan


@MODELS.register_module()
class Faulty(BaseModel):
    """A small network, with a fault in the part that ``fault`` names."""

    def __init__(self, fault=''):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 2)
        self.fault = fault
        self.num_seen = 0
        if fault == 'huge weight':
            self.head.bias.data[1] = 2e25

    def forward(self, inputs, data_samples=None, mode='loss'):
        inputs = torch.stack(list(inputs))
        target = torch.stack([item.target for item in data_samples])
        if self.fault == 'float16 forward':
            # The first linear layer overflows, and nothing else.
            nn.init.ones_(self.body[0].weight)
            inputs = inputs * 0 + 6e4
            return dict(loss=self.body(inputs).float().square().mean())
        outputs = self.head(self.body(inputs))
        loss = (outputs - target).square().mean()
        zero = (outputs * 0).sum(1)
        if self.fault == '1/0':
            loss = loss + (1 / zero).mean()
        elif self.fault == 'sqrt(0)':
            loss = loss + zero.sqrt().mean()
        elif self.fault == 'log(0)':
            # Zero for about a third of all samples.
            is_good = (inputs[:, 0] > -0.4).float()
            loss = loss - (is_good + zero).log().mean()
        elif self.fault == 'weight of the loss':
            loss = loss * math.nan
        elif self.fault in ('acos', 'sqrt'):
            # Outside of the domain for the sample that is far away.
            number = 0.5 - 2 * (inputs[:, 0] > 50).float() + zero
            loss = loss + getattr(number, self.fault)().mean()
        elif self.fault == 'forward, then backward':
            self.num_seen += 1
            if self.num_seen < 4:
                return dict(loss=loss + zero.sum().sub(1).sqrt())
            loss = loss + zero.sqrt().mean()
        elif self.fault == 'quartic':
            loss = outputs.pow(4).mean()
        return dict(loss=loss)


def story_of(tmp_path, fault='', spoil=None, hooks=('Autopsy',), **keys):
    """Return the story of the halt, and the verdict of the report."""
    guard = dict(max_consecutive_skips=4, **keys.pop('guard', {}))
    changes = dict(
        optim_wrapper=dict(
            wrapper(**keys.pop('wrapper', dict(lr=0.01))), guard=guard
        ),
        model=dict(type='Faulty', fault=fault),
        max_iters=40,
    )
    changes.update(keys)
    default_hooks = dict(
        nan_guard=dict(type='mmnanguard.NanGuardHook'),
        event_log=dict(type='mmnanguard.EventLogHook'),
    )
    for name in hooks:
        default_hooks[name] = dict(type=f'mmnanguard.{name}Hook')
    runner = make_runner(
        tmp_path,
        train_dataloader=dict(
            dataset=make_samples(spoil),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            batch_size=4,
            collate_fn=dict(type='pseudo_collate'),
        ),
        default_hooks=default_hooks,
        randomness=dict(seed=0),
        **changes,
    )
    with pytest.raises(TrainingHalted) as caught:
        runner.train()
    return runner, str(caught.value), load_run(tmp_path).verdict


def parts(story):
    """Return the first line and the advice of a story."""
    lines = story.split('\n')
    (advice,) = [line for line in lines if 'What to try: ' in line]
    return lines[0], advice


RATE = dict(max_skip_rate=0.05, skip_rate_window=20)


@pytest.mark.parametrize(
    ('fault', 'op', 'call', 'safe'),
    [
        ('1/0', 'aten.reciprocal', 'reciprocal(0)', 'safe_divide'),
        ('sqrt(0)', 'derivative of sqrt', 'div(', 'safe_sqrt'),
        ('log(0)', 'aten.log', 'log(0)', 'safe_log'),
    ],
)
def test_a_pole_is_called_a_pole(tmp_path, fault, op, call, safe):
    _, story, verdict = story_of(tmp_path, fault)
    first, advice = parts(story)
    for text in (first, verdict.sentence):
        assert f'{op}, test_advice.py:' in text
        assert f'has a pole at {call}' in text
        assert 'overflow' not in text
    assert safe in advice
    assert 'no loss scale and no clipping changes that' in advice
    assert verdict.steps[0].text.startswith(
        f'keep the input of {op.split()[-1]}'
    )
    # Other samples in each batch are innocent.
    assert 'ExcludeSamples' not in story
    assert not any('leave out' in step.text for step in verdict.steps)


def test_story_and_report_explain_the_same_cause(tmp_path):
    """The last of the rejected updates has another cause than most."""
    runner, story, verdict = story_of(
        tmp_path, 'forward, then backward', hooks=()
    )
    causes = [row['cause'] for row in read_rows(runner)]
    assert causes == [*['loss_nonfinite'] * 3, 'grad_nonfinite']
    _, advice = parts(story)
    for text in (advice, verdict.steps[0].detail):
        assert 'The forward pass makes it' in text
    (halt,) = read_rows(runner, 'halt')
    assert halt['cause'] == 'loss_nonfinite'


def test_a_huge_weight_is_named(tmp_path):
    """Memory that was never initialized may hold finite numbers."""
    _, story, verdict = story_of(tmp_path, 'huge weight')
    _, advice = parts(story)
    assert "'head.bias' holds numbers above 1e6" in advice
    assert 'initialization' in advice
    assert 'normalize or clamp' not in advice
    assert "look at 'head.bias'" in verdict.sentence


def test_a_number_of_the_code_is_not_finite(tmp_path):
    _, story, verdict = story_of(tmp_path, 'weight of the loss')
    first, advice = parts(story)
    assert 'got a number that is not finite, mul(' in first
    assert 'The code at test_advice.py:' in advice
    assert verdict.steps[0].text.startswith('look at the number that the code')


@pytest.mark.parametrize(
    ('spoil', 'reason'),
    [
        (nan_input, "'inputs' of sample '05.jpg' is not finite"),
        (nan_target, "sample '05.jpg' is not finite to begin with"),
        (
            huge_input,
            "sample '05.jpg' made the model itself (Faulty, aten.pow",
        ),
    ],
)
def test_one_bad_sample_is_the_culprit(tmp_path, spoil, reason):
    runner, story, verdict = story_of(tmp_path, spoil=spoil, guard=RATE)
    first, advice = parts(story)
    assert reason in first
    assert "sample '05.jpg'" in advice
    assert "culprit: sample '05.jpg'" in verdict.sentence
    assert verdict.steps[0].text.startswith("leave out sample '05.jpg'")
    row = read_rows(runner, 'autopsy')[0]
    assert row['tried'] == {'without_samples': True}
    assert row['num_samples'] == 4


@pytest.mark.parametrize('fault', ['acos', 'sqrt'])
def test_a_finite_sample_outside_a_domain(tmp_path, fault):
    """The operation is mended first, for other samples may follow."""
    _, story, verdict = story_of(tmp_path, fault, spoil=far_input, guard=RATE)
    _, advice = parts(story)
    assert 'outside of its domain' in advice
    assert "'05.jpg'" in advice.partition('outside of its domain')[2]
    first, second = [step.text for step in verdict.steps[:2]]
    assert first.startswith(f'keep the input of aten.{fault}')
    assert second.startswith("leave out sample '05.jpg'")


def test_bad_inputs_that_nothing_has_looked_at(tmp_path):
    _, story, verdict = story_of(
        tmp_path, spoil=nan_input, hooks=(), guard=RATE
    )
    words = "'inputs' of sample '05.jpg' is not finite to begin with"
    assert words in parts(story)[0]
    assert 'look there first' in story
    assert "look at 'inputs'" in verdict.sentence


def test_a_check_of_inputs_names_key_and_sample(tmp_path):
    _, story, verdict = story_of(
        tmp_path, spoil=nan_target, hooks=('InputGuard',), guard=RATE
    )
    first, advice = parts(story)
    assert "'data_samples.target' of sample '05.jpg'" in first
    assert 'The data are at fault, not the model' in advice
    assert "culprit: sample '05.jpg'" in verdict.sentence


@pytest.mark.parametrize(
    'keys',
    [
        dict(lr=20.0),
        dict(lr=300.0, optimizer='Adam'),
        dict(lr=20.0, accumulative_counts=2),
    ],
    ids=['SGD', 'Adam', 'accumulation'],
)
@pytest.mark.parametrize('hooks', [(), ('Autopsy',)], ids=['bare', 'autopsy'])
def test_an_explosion_names_the_learning_rate(tmp_path, keys, hooks):
    lr = keys['lr']
    runner, story, verdict = story_of(
        tmp_path, 'quartic', wrapper=keys, hooks=hooks
    )
    first, advice = parts(story)
    for text in (first, verdict.sentence):
        assert 'the run exploded before it: loss ' in text
        assert f'at a learning rate of {lr:.3g}' in text
    assert 'Lower the learning rate or lengthen warm-up, and set' in advice
    assert 'clip_grad=dict(max_norm=' in advice
    assert 'no clipping can help' not in story
    assert verdict.steps[0].text.startswith('lower the learning rate')
    assert not any('leave out' in step.text for step in verdict.steps)
    assert read_rows(runner)[1]['growth']['lr'] == lr


def test_momentum_explodes_late(tmp_path):
    keys = dict(lr=0.6, optimizer_keys=dict(momentum=0.99))
    _, story, _ = story_of(tmp_path, wrapper=keys, max_iters=400)
    assert 'the run exploded before it: loss ' in parts(story)[0]


def test_steps_that_nothing_survives(tmp_path):
    keys = dict(lr=1e30)
    _, story, verdict = story_of(tmp_path, wrapper=keys, hooks=())
    first, advice = parts(story)
    assert 'no update followed the first 1: loss ' in first
    assert 'at a learning rate of 1e+30' in first
    assert 'Lower the learning rate' in advice
    assert verdict.steps[0].text.startswith('lower the learning rate')


def test_an_unknown_origin_is_called_unknown(tmp_path):
    _, story, verdict = story_of(tmp_path, '1/0', hooks=())
    first, advice = parts(story)
    assert 'where it begins is not known' in first
    assert 'AutopsyHook (in --guard full) names the operation' in advice
    assert 'AutopsyHook' in verdict.steps[0].text


def fp16(**keys):
    keys = dict(dtype='float16', loss_scale=8.0, lr=0.01, **keys)
    return dict(wrapper=dict(type_='NanGuardAmpOptimWrapper', **keys))


@needs_fp16
def test_cures_of_an_overflow_are_tried(tmp_path):
    runner, story, verdict = story_of(tmp_path, 'float16 forward', **fp16())
    (row,) = read_rows(runner, 'autopsy')
    assert row['is_pole'] is False
    assert row['tried'] == dict(
        module_fp32=True, fp32=True, bfloat16=True, lower_scale_grads=False
    )
    first, advice = parts(story)
    assert "made 'body.0' (Linear, aten.addmm" in first
    assert 'overflow in float16' in first
    assert 'tried: float32 for this module: finite' in story
    assert "Run 'body.0' in float32, which was tried" in advice
    assert verdict.steps[0].text == "run 'body.0' in float32"


@needs_fp16
def test_cures_can_be_left_out(tmp_path):
    hook = dict(type='mmnanguard.AutopsyHook', try_cures=False)
    runner, _, _ = story_of(
        tmp_path, '1/0', hooks=(), custom_hooks=[hook], **fp16()
    )
    (row,) = read_rows(runner, 'autopsy')
    assert row['tried'] == {}
    assert row['fp32_is_finite'] is False


@needs_fp16
def test_no_scale_cures_a_pole_in_backward(tmp_path):
    # Without it, the first lowerings are routine, up to the lowest scale.
    keys = dict(guard=dict(proven_after=0), **fp16())
    runner, story, _ = story_of(tmp_path, 'sqrt(0)', **keys)
    (row,) = read_rows(runner, 'autopsy')
    assert row['tried'] == dict(fp32=False, bfloat16=False, lower_scale=False)
    assert 'the lowest loss scale: still NaN or Inf' in story
    assert 'has a pole' in parts(story)[0]


@MODELS.register_module()
class Adversaries(BaseModel):
    """A generator, and a discriminator whose loss has a pole."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(4, 4)
        self.discriminator = nn.Linear(4, 1)

    def train_step(self, data, optim_wrapper):
        inputs = torch.stack(list(data['inputs']))
        losses = {}
        with optim_wrapper['discriminator'].optim_context(self):
            score = self.discriminator(self.generator(inputs).detach())
            losses['loss_d'] = (score * 0).log().mean()
        optim_wrapper['discriminator'].update_params(losses['loss_d'])
        with optim_wrapper['generator'].optim_context(self):
            losses['loss_g'] = self.generator(inputs).square().mean()
        optim_wrapper['generator'].update_params(losses['loss_g'])
        return losses

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.discriminator(self.generator(inputs))


def test_one_of_two_optimizers_is_named(tmp_path):
    model = Adversaries()
    wrappers = {}
    for name in ('generator', 'discriminator'):
        config = wrapper(lr=0.01)
        optimizer = torch.optim.SGD(getattr(model, name).parameters(), lr=0.01)
        config.update(optimizer=optimizer, guard=dict(max_consecutive_skips=4))
        wrappers[name] = OPTIM_WRAPPERS.build(config)
    _, story, verdict = story_of(
        tmp_path, model=model, optim_wrapper=OptimWrapperDict(**wrappers)
    )
    first, advice = parts(story)
    assert "optimizer 'discriminator'" in first
    assert 'aten.log, test_advice.py:' in first
    assert 'safe_log' in advice
    assert 'has a pole at log(0)' in verdict.sentence
