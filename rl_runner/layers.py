"""What may stand between affine maps: norms and dropout, in float32 whatever the precision of products is."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def widened(x: Tensor) -> Tensor:
    """float32 for bfloat16."""
    return x.float() if x.dtype is torch.bfloat16 else x


class LayerNorm(nn.Module):
    """Layer normalisation with gain and bias `[*lead, 1, n]` (Ba et al. 2016)."""

    def __init__(self, n: int, lead: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*lead, 1, n))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, n))

    def forward(self, x: Tensor, training: bool = False) -> Tensor:
        return F.layer_norm(widened(x), x.shape[-1:]) * self.weight + self.bias


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) with a gain `[*lead, 1, n]` (Zhang & Sennrich 2019)."""

    EPSILON = 1e-6

    def __init__(self, n: int, lead: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*lead, 1, n))

    def forward(self, x: Tensor) -> Tensor:
        x = widened(x)
        return x * (x.square().mean(dim=-1, keepdim=True) + self.EPSILON).rsqrt() * self.weight


class BatchNorm(nn.Module):
    """Batch renormalisation over the batch axis, with gain, bias and running statistics `[*lead, 1, n]`.

    x̂ = (x - μ) / σ · r + d in training, r = σ / σ̄ and d = (μ - μ̄) / σ̄ without gradient and clipped (Ioffe 2017); the
    first `WARM_UP` calls are plain batch normalisation, r = 1 and d = 0 (Ioffe & Szegedy 2015). The running μ̄ and σ̄
    move in training and are what x is normalised by elsewhere. Variances are biased; numbers as in CrossQ (Bhatt et al.
    2024).
    """

    EPSILON, MOMENTUM, WARM_UP, MOST_R, MOST_D = 1e-3, 0.01, 100_000, 3.0, 5.0
    mean: Tensor
    var: Tensor
    calls: Tensor

    def __init__(self, n: int, lead: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*lead, 1, n))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, n))
        self.register_buffer("mean", torch.zeros(*lead, 1, n))
        self.register_buffer("var", torch.ones(*lead, 1, n))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, training: bool = False) -> Tensor:
        x = widened(x)
        if not training:
            return (x - self.mean) * ((self.var + self.EPSILON).rsqrt() * self.weight) + self.bias
        mean = x.mean(dim=-2, keepdim=True)
        centred = x - mean
        var = centred.square().mean(dim=-2, keepdim=True)  # torch.var_mean takes seven times as long on the CPU
        std = (var + self.EPSILON).sqrt()
        with torch.no_grad():
            warm, running = self.calls >= self.WARM_UP, (self.var + self.EPSILON).sqrt()
            r = torch.where(warm, (std / running).clamp(1 / self.MOST_R, self.MOST_R), 1.0)
            d = torch.where(warm, ((mean - self.mean) / running).clamp(-self.MOST_D, self.MOST_D), 0.0)
            self.mean.lerp_(mean.expand_as(self.mean), self.MOMENTUM)
            self.var.lerp_(var.expand_as(self.var), self.MOMENTUM)
            self.calls.add_(1)
        return centred * (r / std * self.weight) + (d * self.weight + self.bias)


NORMS = {"layer": LayerNorm, "batch": BatchNorm}


def dropped(x: Tensor, rate: float, seed: Tensor) -> Tensor:
    """x with each unit 0 with probability `rate`, the others divided by 1 - rate (Srivastava et al. 2014).

    Which ones is a hash of place and seed, a whole number below 2³²: the same in a graph and in eager code.
    """
    place = torch.arange(x.numel(), device=x.device).view(x.shape)
    kept = scrambled(place ^ scrambled(seed)) >= int(rate * 2**32)
    return x * (kept.to(x.dtype) / (1 - rate))


def scrambled(bits: Tensor) -> Tensor:
    """A permutation of the whole numbers below 2³² that leaves no pattern; products stay below 2⁶³."""
    for _ in range(2):
        bits = (((bits >> 16) ^ bits) * 0x45D9F3B) & 0xFFFFFFFF
    return (bits >> 16) ^ bits


@torch.no_grad()
def unit_norm_(weight: Tensor) -> None:
    """Divide the weights `[*lead, in, out]` by their norms over the inputs, in place."""
    weight.div_(torch.linalg.vector_norm(weight, dim=-2, keepdim=True))
