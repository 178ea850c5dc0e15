"""Layers whose parameters may carry leading axes: affine maps, norms, dropout; statistics are always of float32."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Products of fewer weights stay in float32 under autocast, which would not make them faster.
FEWEST_IN_BFLOAT16 = 128 * 128


def widened(x: Tensor) -> Tensor:
    """float32 for bfloat16."""
    return x.float() if x.dtype is torch.bfloat16 else x


class Linear(nn.Module):
    """Affine map with weight `[*lead, in, out]` and bias `[*lead, 1, out]`; PyTorch's own initialisation U(±1/√in).

    `exact`: whatever the precision, the product is of float32, as for values and actions. `noisy`: σ₀ of factorised
    noise (Fortunato et al. 2018): both have learned deviations, σ₀/√in at first, and a forward pass with noise
    `[in + out]` is of W + σ f(ε_in) f(ε_out)ᵀ and b + σ f(ε_out), f(x) = sgn(x)√|x|; one without is of W and b.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        lead: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        exact: bool = False,
        noisy: float | None = None,
    ):
        super().__init__()
        bound = n_in**-0.5
        self.weight = nn.Parameter(torch.empty(*lead, n_in, n_out).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(*lead, 1, n_out).uniform_(-bound, bound, generator=generator))
        self.autocast = not exact and n_in * n_out >= FEWEST_IN_BFLOAT16
        self.n_noise = n_in + n_out if noisy else 0
        if noisy:
            self.weight_std = nn.Parameter(torch.full_like(self.weight, noisy * bound))
            self.bias_std = nn.Parameter(torch.full_like(self.bias, noisy * bound))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        if self.autocast or not torch.is_autocast_enabled(x.device.type):
            return self.affine(x, noise)
        with torch.autocast(x.device.type, enabled=False):
            return self.affine(widened(x), noise)

    def affine(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """x W + b."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if noise is not None:
            noise = noise.sign() * noise.abs().sqrt()
            rows, columns = noise[..., : weight.shape[-2], None], noise[..., None, weight.shape[-2] :]
            weight, bias = weight + self.weight_std * rows * columns, bias + self.bias_std * columns
        if weight.dim() == 2 and x.dim() == 2:
            return torch.addmm(bias, x, weight)
        return x @ weight + bias


class LayerNorm(nn.Module):
    """Layer normalisation with gain and bias `[*lead, 1, n]` (Ba et al. 2016)."""

    def __init__(self, n: int, lead: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*lead, 1, n))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, n))

    def forward(self, x: Tensor, training: bool = False) -> Tensor:
        return F.layer_norm(widened(x), x.shape[-1:]) * self.weight + self.bias


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
