"""Runs that look odd and are well: the guard has to keep out of them."""

import math

import torch
from mmengine.hooks import Hook
from torch import nn
from torch.nn import functional as F

from .scenario import Scenario
from .tasks import Classify, Regress


class CausalMask(Classify):
    """A causal mask of -inf, which is a buffer of each attention."""

    source = 'tatp22/linformer-pytorch#19'
    is_healthy = True

    def network(self):
        return Attention()


class Attention(nn.Module):
    """A causal attention over eight positions."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 12)
        self.head = nn.Linear(4, 3)
        mask = torch.full((8, 8), float('-inf')).triu(1)
        self.register_buffer('mask', mask)

    def forward(self, inputs):
        query, key, value = self.embed(inputs[..., None]).chunk(3, -1)
        scores = query @ key.transpose(-1, -2) / 2 + self.mask
        return self.head((scores.softmax(-1) @ value)[:, -1])


class FrozenMaskParameter(Classify):
    """An attention mask of -inf, which is a frozen parameter."""

    source = 'pytorch/pytorch#41508'
    is_healthy = True

    def network(self):
        net = nn.Linear(8, 3)
        net.mask = nn.Parameter(
            torch.tensor([0.0, 0.0, float('-inf')]), requires_grad=False
        )
        return net

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['label'] = sample['inputs'][:2].argmax()
        return sample

    def loss(self, net, batch):
        return F.cross_entropy(net(batch.inputs) + net.mask, batch.label)


class MaskedActions(Classify):
    """Logits of invalid actions are -inf, so that they are never taken."""

    source = 'hill-a/stable-baselines#453'
    is_healthy = True

    def loss(self, net, batch):
        logits = net(batch.inputs)
        chosen = F.one_hot(batch.label, 3).bool()
        invalid = (batch.inputs[:, 3:6] > 0.5) & ~chosen
        logits = logits.masked_fill(invalid, float('-inf'))
        return F.cross_entropy(logits, batch.label)


class MaskedTargets(Regress):
    """Targets that the data set does not know are NaN, and masked."""

    source = 'lorenmt/mtan#13'
    is_healthy = True

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index % 3 == 0:
            sample['target'][2:] = float('nan')
        return sample

    def loss(self, net, batch):
        known = ~batch.target.isnan()
        target = batch.target.nan_to_num()
        error = F.smooth_l1_loss(net(batch.inputs), target, reduction='none')
        return (error * known).sum() / known.sum()


class TripletsSatisfied(Scenario):
    """A triplet loss that is exactly 0 in most batches."""

    source = 'KevinMusgrave/pytorch-metric-learning#268'
    is_healthy = True
    iters = 150

    def network(self):
        return nn.Linear(8, 4)

    def sample(self, index, generator):
        anchor = torch.randn(8, generator=generator)
        noise = torch.randn(2, 8, generator=generator)
        near = anchor + 0.1 * noise[0]
        return dict(inputs=torch.stack([anchor, near, noise[1] * 2]))

    def loss(self, net, batch):
        anchor, near, far = net(batch.inputs).unbind(1)
        return F.triplet_margin_loss(anchor, near, far, margin=0.2)


class EmptyImages(Regress):
    """Batches without objects whose loss is a sum that is multiplied by 0."""

    source = 'open-mmlab/mmdetection3d#496'
    is_healthy = True

    def loss(self, net, batch):
        boxes = net(batch.inputs)
        if batch.inputs[0, 0] > 0:
            return boxes.sum() * 0
        return F.smooth_l1_loss(boxes, batch.target)


class SummedLoss(Regress):
    """A loss that is summed over all pixels and is a billion by nature."""

    source = 'PKU-YuanGroup/WF-VAE#18'
    is_healthy = True
    optimizer = dict(type='Adam', lr=1e-2)

    def loss(self, net, batch):
        return (net(batch.inputs) - batch.target).square().sum() * 1e8


class NegativeLoss(Regress):
    """A Gaussian likelihood: the loss is negative once it fits."""

    source = 'barbararoessle/dense_depth_priors_nerf#26'
    is_healthy = True
    iters = 300
    optimizer = dict(type='Adam', lr=3e-2)

    def network(self):
        return nn.Linear(8, 5)

    def loss(self, net, batch):
        mean, log_var = net(batch.inputs).split([4, 1], 1)
        return F.gaussian_nll_loss(
            mean, batch.target, log_var.exp().expand_as(mean)
        )


class QueueFills(Scenario):
    """MoCo: the loss rises while noise in the queue gives way to features.

    Forward writes the key encoder and the queue.
    """

    source = 'facebookresearch/moco#9'
    is_healthy = True
    iters = 200
    optimizer = dict(type='SGD', lr=0.02, momentum=0.9)

    def network(self):
        return MomentumContrast()

    def sample(self, index, generator):
        image = torch.randn(8, generator=generator)
        views = torch.randn(2, 8, generator=generator) * 0.1
        return dict(inputs=image + views)

    def loss(self, net, batch):
        return net(batch.inputs)


class MomentumContrast(nn.Module):
    """A query encoder, its moving average and a queue of keys."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 4)
        self.key = nn.Linear(8, 4)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.register_buffer('queue', F.normalize(torch.randn(32, 4), dim=1))

    def forward(self, inputs):
        query = F.normalize(self.query(inputs[:, 0]), dim=1)
        with torch.no_grad():
            pairs = zip(self.query.parameters(), self.key.parameters())
            for source, average in pairs:
                if self.training:
                    average.lerp_(source, 0.01)
            key = F.normalize(self.key(inputs[:, 1]), dim=1)
        same = (query * key).sum(1, keepdim=True)
        logits = torch.cat([same, query @ self.queue.clone().T], 1) / 0.2
        if self.training:
            self.queue.copy_(torch.cat([key, self.queue[: -len(key)]]))
        label = torch.zeros(len(query), dtype=torch.long)
        return F.cross_entropy(logits, label)


class WarmRestarts(Classify):
    """Cosine annealing with restarts: rate and loss jump up again."""

    source = 'wandb/senpai#967'
    is_healthy = True
    iters = 300
    optimizer = dict(type='SGD', lr=0.1, momentum=0.9)
    schedule = [
        dict(
            type='CosineRestartLR',
            by_epoch=False,
            periods=[60, 120, 120],
            restart_weights=[1, 1, 1],
            eta_min=1e-4,
        )
    ]


class Curriculum(Regress):
    """Samples that become harder: the loss rises by design."""

    source = 'deepspeedai/DeepSpeed#1307'
    is_healthy = True
    iters = 300
    num_samples = 1200
    optimizer = dict(type='SGD', lr=0.05)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        noise = torch.randn(4, generator=generator)
        sample['target'] = sample['target'] + noise * (index / 400)
        return sample


class AnnealedPrior(Regress):
    """A KL term whose weight grows: the loss rises by design."""

    source = 'asyml/texar#87'
    is_healthy = True
    iters = 300
    num_samples = 1200
    optimizer = dict(type='Adam', lr=1e-2)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['weight'] = torch.tensor(min(1.0, index / 800))
        return sample

    def loss(self, net, batch):
        latent = net(batch.inputs)
        loss_fit = (latent - batch.target).square().mean()
        loss_prior = batch.weight.mean() * latent.square().mean()
        return dict(loss_fit=loss_fit, loss_prior=loss_prior)


class LabelNoise(Classify):
    """A third of the labels is wrong: a loss that spikes in every batch."""

    source = 'VisualComputingInstitute/triplet-reid#4'
    is_healthy = True
    batch_size = 2
    optimizer = dict(type='SGD', lr=0.02)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index % 3 == 0:
            sample['label'] = (sample['label'] + 1) % 3
        return sample

    def loss(self, net, batch):
        return F.cross_entropy(net(batch.inputs) * 3, batch.label)


class SpikesThatPass(Regress):
    """Rare batches of large targets, which clipping takes care of."""

    source = 'facebookresearch/moco-v3#23'
    is_healthy = True
    iters = 200
    optimizer = dict(type='AdamW', lr=1e-2)
    wrapper = dict(clip_grad=dict(max_norm=1.0))

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index // 4 % 13 == 7:
            sample['target'] *= 300
        return sample

    def is_good(self, index):
        return index // 4 % 13 != 7


class ZeroRate(Classify):
    """A warm-up that begins at a learning rate of exactly 0."""

    source = 'verl-project/verl#3674'
    is_healthy = True

    def hooks(self):
        return [LinearFromZero()]


class LinearFromZero(Hook):
    """A schedule whose first rates are 0."""

    priority = 'LOW'

    def before_train_iter(self, runner, *args, **kwargs):
        for group in runner.optim_wrapper.param_groups:
            group['lr'] = 0.1 * max(0.0, min(1.0, (runner.iter - 10) / 20))


class FrozenBackbone(Classify):
    """Frozen layers, and a head that only some batches use."""

    source = 'open-mmlab/mmdetection#9899'
    is_healthy = True

    def network(self):
        net = nn.ModuleDict(
            dict(
                backbone=nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)),
                head=nn.Linear(16, 3),
                auxiliary=nn.Linear(16, 3),
                unused=nn.Linear(16, 3),
            )
        )
        net.backbone.requires_grad_(False)
        return net

    def loss(self, net, batch):
        features = net.backbone(batch.inputs).relu()
        losses = dict(
            loss_cls=F.cross_entropy(net.head(features), batch.label)
        )
        if batch.inputs[0, 0] > 0:
            logits = net.auxiliary(features)
            losses['loss_aux'] = F.cross_entropy(logits, batch.label)
        return losses


class SmallBatchesAccumulated(Classify):
    """Gradient accumulation in float16 with GroupNorm."""

    source = 'open-mmlab/mmsegmentation#1905'
    is_healthy = True
    precision = 'float16'
    wrapper = dict(loss_scale=512.0, accumulative_counts=4)

    def network(self):
        return nn.Sequential(
            nn.Linear(8, 16), nn.GroupNorm(4, 16), nn.ReLU(), nn.Linear(16, 3)
        )


class ScaleFindsItsWay(Classify):
    """A dynamic loss scale, whose first updates overflow by design."""

    source = 'LEEYOONHYUNG/BVAE-TTS#3'
    is_healthy = True
    precision = 'float16'
    wrapper = dict(loss_scale=dict(init_scale=2.0**24))


class AccuracyOfNothing(Classify):
    """A logged accuracy that is NaN for batches without positives."""

    source = 'cardwing/Codes-for-Lane-Detection#101'
    is_healthy = True
    may_warn = "logs '(acc|perplexity)' as"

    def loss(self, net, batch):
        logits = net(batch.inputs)
        chosen = batch.label == 2
        hits = logits[chosen].argmax(1) == batch.label[chosen]
        loss = F.cross_entropy(logits, batch.label)
        return dict(
            loss_cls=loss,
            acc=hits.float().mean(),
            perplexity=loss.detach().mul(1e4).exp(),
        )


class ShortTargetsZeroed(Scenario):
    """CTC with zero_infinity: impossible targets count as a loss of 0."""

    source = 'wenet-e2e/wenet#2299'
    is_healthy = True
    zero_infinity = True

    def network(self):
        return nn.Linear(6, 5)

    def sample(self, index, generator):
        labels = torch.randint(1, 5, (3,), generator=generator)
        frames = F.one_hot(labels, 6).float().repeat_interleave(2, 0)
        frames += 0.1 * torch.randn(6, 6, generator=generator)
        # Two frames cannot spell three labels.
        length = 2 if self.is_short(index) else 6
        return dict(inputs=frames, label=labels, length=torch.tensor(length))

    def is_short(self, index):
        return index % 4 == 1

    def loss(self, net, batch):
        return F.ctc_loss(
            net(batch.inputs).log_softmax(-1).transpose(0, 1),
            batch.label,
            batch.length,
            torch.full((len(batch.label),), 3),
            zero_infinity=self.zero_infinity,
        )


class WassersteinCritic(Scenario):
    """A critic and a generator that pull the loss back and forth."""

    source = 'DegardinBruno/Kinetic-GAN#1'
    is_healthy = True
    iters = 200
    optimizer = dict(type='RMSprop', lr=5e-3)

    def network(self):
        return nn.ModuleDict(
            dict(
                generator=nn.Linear(4, 4),
                critic=nn.Sequential(
                    nn.Linear(4, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1)
                ),
            )
        )

    def sample(self, index, generator):
        return dict(
            inputs=torch.randn(4, generator=generator) + 3,
            noise=torch.randn(4, generator=generator),
        )

    def loss(self, net, batch):
        fake = net.generator(batch.noise)
        loss_critic = (
            net.critic(fake.detach()).mean() - net.critic(batch.inputs).mean()
        )
        frozen = [parameter.detach() for parameter in net.critic.parameters()]
        hidden = F.leaky_relu(F.linear(fake, frozen[0], frozen[1]), 0.2)
        loss_generator = -F.linear(hidden, frozen[2], frozen[3]).mean()
        return dict(loss_critic=loss_critic, loss_generator=loss_generator)


class PolicyGradient(Classify):
    """REINFORCE: the loss is noise around zero and says little."""

    source = 'DLR-RM/stable-baselines3#1943'
    is_healthy = True
    iters = 200
    optimizer = dict(type='Adam', lr=1e-2)

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        action = torch.randint(0, 3, (), generator=generator)
        right = action == sample['label']
        sample['action'] = action
        sample['advantage'] = torch.where(right, 1.0, -0.5)
        return sample

    def loss(self, net, batch):
        log_prob = net(batch.inputs).log_softmax(1)
        taken = log_prob.gather(1, batch.action[:, None])[:, 0]
        return -(taken * batch.advantage).clamp(min=-math.inf, max=4).mean()


class MissingValues(Regress):
    """Inputs that are NaN where a station did not measure; a mask goes along.

    The model replaces them before any layer sees them.
    """

    source = 'meteofrance/py4cast#166'
    is_healthy = True

    def network(self):
        return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        missing = torch.rand(8, generator=generator) < 0.2
        sample['inputs'] = sample['inputs'].masked_fill(missing, math.nan)
        return sample

    def loss(self, net, batch):
        known = ~batch.inputs.isnan()
        inputs = torch.cat([batch.inputs.nan_to_num(), known.float()], 1)
        return F.smooth_l1_loss(net(inputs), batch.target)


class ObserverRange(Regress):
    """The range of an observer begins at Inf and -Inf, in buffers.

    The observer of a layer that is used late keeps them for a while.
    """

    source = 'pytorch/pytorch#23191'
    is_healthy = True

    def network(self):
        net = super().network()
        net.register_buffer('lowest', torch.full((2,), math.inf))
        net.register_buffer('highest', torch.full((2,), -math.inf))
        net.register_buffer('num_batches', torch.zeros(()))
        return net

    def loss(self, net, batch):
        boxes = net(batch.inputs)
        if net.training:
            net.num_batches += 1
            used = 2 if net.num_batches > 20 else 1
            values = boxes.detach()[:, :used]
            for buffer, name in ((net.lowest, 'amin'), (net.highest, 'amax')):
                extreme = getattr(values, name)(0)
                is_less = name == 'amin'
                choose = torch.minimum if is_less else torch.maximum
                buffer[:used] = choose(buffer[:used], extreme)
        return F.smooth_l1_loss(boxes, batch.target)


class WeightOfAbsentClass(Classify):
    """The weight of a class is 1 / 0 where no sample has that class."""

    source = 'longcw/faster_rcnn_pytorch#53'
    is_healthy = True

    def network(self):
        net = nn.Linear(8, 4)
        counts = torch.tensor([20.0, 20.0, 20.0, 0.0])
        net.register_buffer('class_weight', 20 / counts)
        return net

    def loss(self, net, batch):
        return F.cross_entropy(
            net(batch.inputs), batch.label, weight=net.class_weight
        )


class OutOfMemoryCaught(Classify):
    """The user's loop catches an error in forward and leaves the batch out."""

    source = 'facebookresearch/fairseq#869'
    is_healthy = True
    catches = (MemoryError,)

    def loss(self, net, batch):
        loss = super().loss(net, batch)
        if net.training and batch.inputs[0, 0] > 1.5:
            raise MemoryError('out of memory')
        return loss
