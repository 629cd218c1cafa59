"""The learning rates of 1.x.

The rules of mmcv 1.7.2's lr_config are given as formulas, and ``PINNED`` holds
numbers of its LrUpdaterHooks, written down from a run of mmcv 1.7.2. Nothing
here needs mmcv 1.7.2.
"""

from math import cos, pi

EPOCH = 10  # iterations
EPOCHS = 12
TOTAL = EPOCH * EPOCHS
BASE = 0.02
SAMPLES = (1, 5, 37, 60, 119)  # iterations that are pinned

EPOCHWISE = dict(runner=dict(type='EpochBasedRunner', max_epochs=EPOCHS))
ITERWISE = dict(runner=dict(type='IterBasedRunner', max_iters=TOTAL))
LINEAR = dict(warmup='linear', warmup_iters=8, warmup_ratio=0.001)
CONSTANT = dict(warmup='constant', warmup_iters=8, warmup_ratio=0.25)
EXP = dict(warmup='exp', warmup_iters=8, warmup_ratio=0.01)

# name: loop, lr_config
CASES = {
    'fixed': (EPOCHWISE, dict(policy='fixed')),
    'fixed-linear': (ITERWISE, dict(policy='fixed', **LINEAR)),
    'step': (EPOCHWISE, dict(policy='step', step=[8, 11])),
    'step-linear': (EPOCHWISE, dict(policy='step', step=[8, 11], **LINEAR)),
    'step-constant': (EPOCHWISE, dict(policy='step', step=[4], **CONSTANT)),
    'step-exp': (EPOCHWISE, dict(policy='step', step=[4], **EXP)),
    'step-long-warmup': (
        EPOCHWISE,
        dict(policy='step', step=[1, 4], **{**LINEAR, 'warmup_iters': 33}),
    ),
    'step-int': (EPOCHWISE, dict(policy='step', step=3, gamma=0.5)),
    'step-iter': (ITERWISE, dict(policy='step', step=[50, 90], gamma=0.3)),
    'step-iter-in-epochs': (
        EPOCHWISE,
        dict(policy='step', step=[55], by_epoch=False),
    ),
    'step-floor': (
        EPOCHWISE,
        dict(policy='step', step=[4, 8], gamma=0.5, min_lr=0.004),
    ),
    'exp': (EPOCHWISE, dict(policy='exp', gamma=0.9, **LINEAR)),
    'exp-iter': (ITERWISE, dict(policy='exp', gamma=0.98)),
    'poly': (EPOCHWISE, dict(policy='poly', power=0.9, min_lr=1e-4)),
    'poly-iter': (ITERWISE, dict(policy='poly', power=0.9, min_lr=1e-4)),
    'poly-iter-linear': (
        ITERWISE,
        dict(policy='poly', power=1.0, min_lr=0.0, **LINEAR),
    ),
    'cosine': (EPOCHWISE, dict(policy='CosineAnnealing', min_lr=1e-4)),
    'cosine-linear': (
        EPOCHWISE,
        dict(policy='CosineAnnealing', min_lr_ratio=1e-3, **LINEAR),
    ),
    'cosine-iter': (
        ITERWISE,
        dict(policy='CosineAnnealing', min_lr_ratio=0.05),
    ),
    'cosine-iter-exp': (
        ITERWISE,
        dict(policy='CosineAnnealing', min_lr=0, **EXP),
    ),
    'cosine-iter-in-epochs': (
        EPOCHWISE,
        dict(policy='CosineAnnealing', min_lr=0, by_epoch=False, **LINEAR),
    ),
    'flat-cosine': (
        EPOCHWISE,
        dict(policy='FlatCosineAnnealing', start_percent=0.4, min_lr=1e-3),
    ),
    'flat-cosine-iter': (
        ITERWISE,
        dict(policy='FlatCosineAnnealing', min_lr_ratio=0.1, **LINEAR),
    ),
    'linear-annealing': (
        ITERWISE,
        dict(policy='LinearAnnealing', min_lr=1e-4),
    ),
    'linear-annealing-ratio': (
        EPOCHWISE,
        dict(policy='LinearAnnealing', min_lr_ratio=0.01),
    ),
    'restart': (
        ITERWISE,
        dict(
            policy='CosineRestart',
            periods=[40, 40, 40],
            restart_weights=[1, 0.5, 0.25],
            min_lr=1e-3,
        ),
    ),
    'restart-ratio': (
        EPOCHWISE,
        dict(
            policy='CosineRestart',
            periods=[4, 8],
            restart_weights=[1, 0.6],
            min_lr_ratio=0.1,
        ),
    ),
    'one-cycle': (ITERWISE, dict(policy='OneCycle', max_lr=0.1)),
    'one-cycle-in-epochs': (
        EPOCHWISE,
        dict(policy='OneCycle', max_lr=0.1, pct_start=0.4, div_factor=10),
    ),
    'one-cycle-three-phases': (
        ITERWISE,
        dict(
            policy='OneCycle',
            max_lr=0.1,
            anneal_strategy='linear',
            three_phase=True,
        ),
    ),
    'cyclic': (
        ITERWISE,
        dict(policy='cyclic', target_ratio=(10, 1e-4), step_ratio_up=0.4),
    ),
    'cyclic-in-epochs': (
        EPOCHWISE,
        dict(policy='cyclic', target_ratio=(10, 1e-4), step_ratio_up=0.4),
    ),
    'cyclic-thrice': (
        ITERWISE,
        dict(
            policy='cyclic', target_ratio=(5, 0.01), cyclic_times=3, gamma=0.5
        ),
    ),
    'poly-iter-floor-linear': (
        ITERWISE,
        dict(policy='poly', power=0.9, min_lr=1e-4, **LINEAR),
    ),
    'cosine-iter-floor-linear': (
        ITERWISE,
        dict(policy='CosineAnnealing', min_lr_ratio=0.05, **LINEAR),
    ),
    'poly-iter-in-epochs': (
        EPOCHWISE,
        dict(policy='poly', min_lr=0.0, by_epoch=False),
    ),
    'cosine-warmup-by-epoch': (
        EPOCHWISE,
        dict(
            policy='CosineAnnealing',
            by_epoch=False,
            min_lr=0.0,
            warmup='linear',
            warmup_iters=2,
            warmup_ratio=0.01,
            warmup_by_epoch=True,
        ),
    ),
}

# Where MMEngine cannot do the same: by how much of the base rate.
DIFFERS = {
    'poly-iter-floor-linear': 5e-4,
    'cosine-iter-floor-linear': 2e-3,
    'poly-iter-in-epochs': 1 / (TOTAL - 1),
    'cosine-warmup-by-epoch': 1 / (2 * EPOCH - 1),
}


def rate(loop, config, iteration, base=BASE, epoch=EPOCH):
    """Return the learning rate of an iteration; the first iteration is 0.

    Args:
        loop: The config's ``runner``, in a dict.
        config: The config's ``lr_config``.
        iteration: The iteration.
        base: The learning rate of the optimizer.
        epoch: The number of iterations in an epoch.
    """
    policy = config['policy'].lower()
    is_iter = 'max_iters' in loop['runner'] or policy in ('onecycle', 'cyclic')
    by_epoch = config.get('by_epoch', not is_iter)
    now = iteration // epoch if by_epoch else iteration
    if 'max_iters' in loop['runner']:
        end = loop['runner']['max_iters']
    else:
        end = loop['runner']['max_epochs'] * (1 if by_epoch else epoch)
    regular = RULES[policy](config, now, end, base)
    length = config.get('warmup_iters', 0) if config.get('warmup') else 0
    if config.get('warmup_by_epoch'):
        length *= epoch
    if iteration >= length:
        return regular
    ratio, share = config.get('warmup_ratio', 0.1), iteration / length
    return (
        regular
        * {
            'constant': ratio,
            'linear': ratio + (1 - ratio) * share,
            'exp': ratio ** (1 - share),
        }[config['warmup']]
    )


def floor(config, base):
    ratio = config.get('min_lr_ratio')
    return config.get('min_lr', 0.0) if ratio is None else base * ratio


def cosine(start, end, share):
    return end + (start - end) * (1 + cos(pi * share)) / 2


def linear(start, end, share):
    return start + (end - start) * share


def step(config, now, end, base):
    steps = config['step']
    if isinstance(steps, int):
        passed = now // steps
    else:
        passed = sum(now >= milestone for milestone in steps)
    lr = base * config.get('gamma', 0.1) ** passed
    return max(lr, config.get('min_lr', 0))


def poly(config, now, end, base):
    share = (1 - now / end) ** config.get('power', 1)
    return linear(floor(config, base), base, share)


def flat(config, now, end, base):
    start = round(end * config.get('start_percent', 0.75))
    if now < start:
        return base
    return cosine(base, floor(config, base), (now - start) / (end - start))


def restart(config, now, end, base):
    weights = config.get('restart_weights', [1])
    for weight, period in zip(weights, config['periods']):
        if now < period:
            low = floor(config, base)
            return cosine(low + weight * (base - low), low, now / period)
        now -= period
    raise AssertionError('after the last period')


def one_cycle(config, now, end, base):
    top, share = config['max_lr'], config.get('pct_start', 0.3)
    end = config.get('total_steps', end)
    bottom = top / config.get('div_factor', 25)
    knots = [(0, bottom), (share * end - 1, top)]
    if config.get('three_phase'):
        knots.append((2 * share * end - 2, bottom))
    knots.append((end - 1, bottom / config.get('final_div_factor', 1e4)))
    curve = linear if config.get('anneal_strategy') == 'linear' else cosine
    for (begin, first), (until, last) in zip(knots, knots[1:]):
        if now <= until:
            return curve(first, last, (now - begin) / (until - begin))
    raise AssertionError('after the last phase')


def cyclic(config, now, end, base):
    period = end // config.get('cyclic_times', 1)
    rise = int(period * config.get('step_ratio_up', 0.4))
    high, low = config.get('target_ratio', (10, 1e-4))
    scale = config.get('gamma', 1) ** (now // period)
    top = 1 + scale * (high - 1)
    now %= period
    if now < rise:
        return base * cosine(1, top, now / rise)
    return base * cosine(top, low, (now - rise) / (period - rise))


RULES = {
    'fixed': lambda config, now, end, base: base,
    'step': step,
    'exp': lambda config, now, end, base: base * config['gamma'] ** now,
    'poly': poly,
    'linearannealing': lambda config, now, end, base: linear(
        base, floor(config, base), now / end
    ),
    'cosineannealing': lambda config, now, end, base: cosine(
        base, floor(config, base), now / end
    ),
    'flatcosineannealing': flat,
    'cosinerestart': restart,
    'onecycle': one_cycle,
    'cyclic': cyclic,
}

# Case, and the rate at each of SAMPLES, to six digits.
PINNED = """
fixed 0.02 0.02 0.02 0.02 0.02
fixed-linear 0.0025175 0.0125075 0.02 0.02 0.02
step 0.02 0.02 0.02 0.02 0.0002
step-linear 0.0025175 0.0125075 0.02 0.02 0.0002
step-constant 0.005 0.005 0.02 0.002 0.002
step-exp 0.000355656 0.00355656 0.02 0.002 0.002
step-long-warmup 0.000625455 0.00304727 0.002 0.0002 0.0002
step-int 0.02 0.02 0.01 0.005 0.0025
step-iter 0.02 0.02 0.02 0.006 0.0018
step-iter-in-epochs 0.02 0.02 0.02 0.002 0.002
step-floor 0.02 0.02 0.02 0.01 0.005
exp 0.0025175 0.0125075 0.01458 0.0106288 0.00627621
exp-iter 0.0196 0.0180784 0.00947098 0.00595106 0.0018069
poly 0.02 0.02 0.0154606 0.0107641 0.00222613
poly-iter 0.0198507 0.0192522 0.0143811 0.0107641 0.000367664
poly-iter-linear 0.00249652 0.0119864 0.0138333 0.01 0.000166667
cosine 0.02 0.02 0.0170857 0.01005 0.000439038
cosine-linear 0.0025175 0.0125075 0.017074 0.01001 0.000360401
cosine-iter 0.0199967 0.0199187 0.0158809 0.0105 0.00100326
cosine-iter-exp 0.000355595 0.00354135 0.0156641 0.01 3.42675e-06
cosine-iter-in-epochs 0.00251707 0.012454 0.0156641 0.01 3.42675e-06
flat-cosine 0.02 0.02 0.02 0.0190592 0.0019408
flat-cosine-iter 0.0025175 0.0125075 0.02 0.02 0.0020493
linear-annealing 0.0198342 0.0191708 0.0138642 0.01005 0.000265833
linear-annealing-ratio 0.02 0.02 0.01505 0.0101 0.00185
restart 0.0199707 0.0192769 0.00126249 0.00575 0.00100732
restart-ratio 0.02 0.02 0.00463604 0.0112184 0.00241105
one-cycle 0.00419323 0.00875349 0.0998602 0.0796911 4e-07
one-cycle-in-epochs 0.0101005 0.0124899 0.090316 0.0921697 1e-06
one-cycle-three-phases 0.00674286 0.0177143 0.0945143 0.0314286 4e-07
cyclic 0.0201927 0.0247763 0.177666 0.186603 9.71769e-05
cyclic-in-epochs 0.0201927 0.0247763 0.177666 0.186603 9.71769e-05
cyclic-thrice 0.0207686 0.0377772 0.00399841 0.0559942 0.000370247
poly-iter-floor-linear 0.00249871 0.0120398 0.0143811 0.0107641 0.000367664
cosine-iter-floor-linear 0.00251709 0.0124567 0.0158809 0.0105 0.00100326
poly-iter-in-epochs 0.0198333 0.0191667 0.0138333 0.01 0.000166667
cosine-warmup-by-epoch 0.0011898 0.00512797 0.0156641 0.01 3.42675e-06
"""
