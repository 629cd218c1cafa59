"""Reports from language and speech."""

import torch
from torch import nn
from torch.nn import functional as F

from .healthy import ShortTargetsZeroed
from .scenario import Scenario
from .tasks import Classify


class PaddedAttention(nn.Module):
    """An attention that masks padding, which is marked by exact zeros."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 12)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        query, key, value = self.embed(inputs[..., None]).chunk(3, -1)
        scores = query @ key.transpose(-1, -2)
        padding = (inputs == 0)[:, None]
        scores = scores.masked_fill(padding, float('-inf'))
        return self.head((scores.softmax(-1) @ value).mean(1))


class NothingButPadding(Classify):
    """A sequence of padding only: softmax over a row of -inf."""

    source = 'pytorch/pytorch#24816'
    causes = ('loss_nonfinite',)
    culprit = r'softmax|052\.jpg'
    never_says = ('lower the learning rate',)

    def network(self):
        return PaddedAttention()

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 52:
            sample['inputs'] = torch.zeros(8)
        return sample

    def is_good(self, index):
        return index != 52


class TruncatedPrompts(Classify):
    """Prompts as long as the context leave no token to learn from."""

    source = 'OpenRLHF/OpenRLHF#583'
    batch_size = 2
    iters = 200
    causes = ('loss_nonfinite',)
    never_says = ('lower the learning rate', 'rolled back')

    def is_good(self, index):
        return index // 2 % 5 != 1

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if not self.is_good(index):
            sample['label'] = torch.tensor(-100)
        return sample


class AttentionScores(Classify):
    """Attention scores overflow float16 once the weights have grown."""

    source = 'karpathy/nanoGPT#167'
    iters = 150
    precision = 'float16'
    wrapper = dict(loss_scale='dynamic')
    optimizer = dict(type='AdamW', lr=1e-2)
    must_train = False
    causes = ('loss_nonfinite',)
    culprit = r'overflow'
    says_in_full = ('bfloat16|float32',)
    never_says = ('remove or repair', 'lower the learning rate')

    def network(self):
        net = PaddedAttention()
        nn.init.normal_(net.embed.weight, std=300)
        return net


class FeedForwardInHalf(Classify):
    """T5: the last layer of a feed-forward block exceeds 65504."""

    source = 'huggingface/transformers#5651'
    precision = 'float16'
    wrapper = dict(loss_scale=512.0)
    must_train = False
    causes = ('loss_nonfinite', 'grad_nonfinite')
    culprit = r'net\.2|net\.0'
    says_in_full = ('bfloat16|float32',)
    never_says = ('remove or repair', 'lower the learning rate')
    optimizer = dict(type='SGD', lr=1e-3)

    def network(self):
        net = nn.Sequential(
            nn.Linear(8, 16),
            nn.ReLU(),
            nn.Linear(16, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 3),
        )
        with torch.no_grad():
            net[0].weight.mul_(400)
            net[2].weight.mul_(400)
        return net


class FramesTooFew(ShortTargetsZeroed):
    """CTC without zero_infinity: a clip too short for its transcript."""

    source = 'meijieru/crnn.pytorch#235'
    is_healthy = False
    causes = ('loss_nonfinite',)
    culprit = r'029\.jpg|ctc'
    never_says = ('lower the learning rate',)
    zero_infinity = False

    def is_short(self, index):
        return index == 29

    def is_good(self, index):
        return index != 29


class RateOfTwo(Classify):
    """A learning rate of 2 where 0.00025 was meant."""

    source = 'OpenNMT/OpenNMT-tf#744'
    iters = 200
    optimizer = dict(type='SGD', lr=20.0, momentum=0.9)
    must_train = False
    causes = ('loss_nonfinite', 'norm_overflow', 'grad_nonfinite')
    says = ('learning rate',)
    never_says = ('no clipping can help', 'remove or repair')

    def network(self):
        layers = []
        for _ in range(6):
            layers += [nn.Linear(16, 16), nn.ReLU()]
        return nn.Sequential(nn.Linear(8, 16), *layers, nn.Linear(16, 3))


class EpsilonTooSmall(Classify):
    """A norm with eps=1e-12, which float16 rounds to 0: 0/0 for a blank."""

    source = 'deepspeedai/DeepSpeed#581'
    precision = 'float16'
    wrapper = dict(loss_scale=512.0)
    causes = ('loss_nonfinite', 'grad_nonfinite')
    culprit = r'aten\.(div|rsqrt|sqrt|pow)|036\.jpg'
    never_says = ('lower the learning rate',)

    def network(self):
        return nn.Sequential(
            nn.Linear(8, 16, bias=False), HalfNorm(), nn.Linear(16, 3)
        )

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if index == 36:
            sample['inputs'] = torch.zeros(8)
        return sample

    def is_good(self, index):
        return index != 36


class HalfNorm(nn.Module):
    """A root mean square norm that stays in the precision of its input."""

    def forward(self, inputs):
        square = inputs.square().mean(-1, keepdim=True)
        return inputs / (square + 1e-12).sqrt()


class ScaleOfNothing(Classify):
    """NaN gradients in each batch drive the loss scale towards 1e-45."""

    source = 'NVIDIA/DeepLearningExamples#543'
    precision = 'float16'
    wrapper = dict(loss_scale='dynamic')
    must_train = False
    causes = ('grad_nonfinite',)
    culprit = r'sqrt'
    says_in_full = ('sqrt',)
    never_says = ('lower optim_wrapper.loss_scale', 'lower the learning rate')

    def loss(self, net, batch):
        logits = net(batch.inputs)
        loss_zero = (logits - logits.detach()).square().sum(1).sqrt().mean()
        loss_cls = F.cross_entropy(logits, batch.label)
        return dict(loss_cls=loss_cls, loss_zero=loss_zero)


class SmoothedMaskedLogits(Classify):
    """Label smoothing over logits that are masked by -inf."""

    source = 'facebookresearch/pytext#1698'
    causes = ('loss_nonfinite',)
    culprit = r'057\.jpg|aten\.(sum|mean|mul)'
    never_says = ('lower the learning rate', 'overflows in float32')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['is_masked'] = torch.tensor(index == 57)
        return sample

    def is_good(self, index):
        return index != 57

    def loss(self, net, batch):
        logits = net(batch.inputs)
        chosen = F.one_hot(batch.label, 3).bool()
        invalid = batch.is_masked[:, None] & ~chosen
        log_prob = logits.masked_fill(invalid, float('-inf')).log_softmax(1)
        loss = F.nll_loss(log_prob, batch.label)
        return 0.9 * loss - 0.1 * log_prob.mean()


class EnergyOfSilence(Scenario):
    """The energy of a silent clip is 0, and its log -inf."""

    source = 'csteinmetz1/auraloss#25'
    causes = ('loss_nonfinite',)
    culprit = r'014\.jpg|aten\.(log|div)'
    never_says = ('lower the learning rate',)
    optimizer = dict(type='SGD', lr=0.05)

    def network(self):
        return nn.Linear(8, 8)

    def sample(self, index, generator):
        clip = torch.randn(8, generator=generator)
        noise = torch.randn(8, generator=generator)
        if index == 14:
            clip = torch.zeros(8)
        return dict(inputs=clip + 0.1 * noise, clip=clip)

    def is_good(self, index):
        return index != 14

    def loss(self, net, batch):
        error = (net(batch.inputs) - batch.clip).square().sum(1)
        energy = batch.clip.square().sum(1)
        return (error / energy).log().mean() + 10


class IgnoredMicroBatches(Classify):
    """One micro-batch of each window has no token to learn from.

    Its loss is 0/0 and its gradients are zero, so that the run without a
    guard learns from the other micro-batches of the window.
    """

    source = 'nvidia-cosmos/cosmos-rl#155'
    iters = 400
    wrapper = dict(accumulative_counts=4)
    causes = ('loss_nonfinite',)
    never_says = ('lower the learning rate', 'rolled back')

    def is_good(self, index):
        return index // 4 % 4 != 2

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if not self.is_good(index):
            sample['label'] = torch.tensor(-100)
        return sample


class SumInHalf(Classify):
    """A loss that is summed in float16 is Inf, but its gradients are not.

    The run without a guard learns; only its log looks bad.
    """

    source = 'princeton-nlp/TRIME#3'
    precision = 'float16'
    wrapper = dict(loss_scale=1.0)
    causes = ('loss_nonfinite',)
    never_says = ('lower the learning rate', 'remove or repair')

    def loss(self, net, batch):
        loss = F.cross_entropy(net(batch.inputs).float(), batch.label)
        if not net.training:
            return loss
        # Tokens that were padded to the length of a book.
        padding = torch.full((70_000,), 1.0, dtype=torch.float16).sum()
        return loss + padding


class BadShard(Classify):
    """A corrupt shard: 30 batches in a row hold NaN, and then none does."""

    source = 'facebookresearch/metaseq#500'
    iters = 200
    num_samples = 800
    must_train = False
    must_reach = 0.7
    causes = ('loss_nonfinite', 'input_nonfinite')
    culprit = r'input|sample'
    says = ('input|sample',)
    never_says = ('lower the learning rate', 'clip_grad')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        if not self.is_good(index):
            sample['inputs'][index % 8] = float('nan')
        return sample

    def is_good(self, index):
        return not 400 <= index < 520


class FeatureOfZeros(Classify):
    """A feature that is always 0 is divided by its maximum: 0/0 everywhere.

    No sample is to blame, for each batch has it.
    """

    source = 'evandowning/deepreflect#11'
    must_train = False
    causes = ('loss_nonfinite',)
    culprit = r'aten\.div'
    says_in_full = ('division|div',)
    never_says = (
        'lower the learning rate',
        'remove or repair',
        'leave out sample',
        'culprit: sample',
    )

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        sample['inputs'][7] = 0
        return sample

    def loss(self, net, batch):
        scale = batch.inputs.abs().max(0).values
        return F.cross_entropy(net(batch.inputs / scale), batch.label)


class MostUpdatesSkipped(Classify):
    """Three of five batches have NaN gradients, and the scaler skips them.

    MMEngine learns from the other two.
    """

    source = 'espnet/espnet#3237'
    precision = 'float16'
    iters = 260
    wrapper = dict(loss_scale=512.0)
    must_train = True
    causes = ('grad_nonfinite',)
    culprit = 'derivative of sqrt'
    says = ('UPDATES WERE REJECTED',)
    never_says = ('lower the learning rate', 'leave out sample')

    def sample(self, index, generator):
        sample = super().sample(index, generator)
        number = index // self.batch_size % 5
        sample['is_silent'] = torch.tensor(number % 2 == 0)
        return sample

    def loss(self, net, batch):
        loss = super().loss(net, batch)
        if net.training and batch.is_silent.any():
            loss = loss + (net(batch.inputs) * 0).square().sum().sqrt()
        return loss
