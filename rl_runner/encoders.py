"""Encoders turn observations into the features that networks read; the critic trains one, the actor reads it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import yaml
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from rl_runner.config.targets import factory
from rl_runner.envs import Spec
from rl_runner.envs.spaces import SMALLEST
from rl_runner.errors import UserError
from rl_runner.notes import CONFIGS
from rl_runner.wiring import wire

LARGE = 40  # pixels from which the large kernels are the better choice


class EncoderFactory(Protocol):
    """What the group `encoder` composes to; it may ask for a `generator` besides."""

    def __call__(self, *, spec: Spec) -> nn.Module:
        """A module from observations `[B, *obs]` to features `[B, n_out]`, with `n_out` as an attribute."""


class Flat(nn.Module):
    """Observations `[B, *obs]` as features `[B, n_out]`: Discrete one-hot, bytes scaled to [0, 1], the rest flat."""

    def __init__(self, *, spec: Spec):
        super().__init__()
        self.spec = spec
        self.n_out = spec.num_states if spec.num_states is not None else torch.Size(spec.obs_shape).numel()

    def forward(self, obs: Tensor) -> Tensor:
        if self.spec.num_states is not None:
            return F.one_hot(obs, self.spec.num_states).float()
        if self.spec.obs_dtype == torch.uint8:
            obs = scaled(obs, self.spec)
        return obs.reshape(*obs.shape[: obs.dim() - len(self.spec.obs_shape)], -1)


class Conv(nn.Module):
    """Images `[B, *obs]` as features `[B, n_out]`: convolutions without padding, a ReLU after each, then flat.

    `channels`, `kernels`, `strides`: one number for each layer. Stacked frames and their colours are channels. Weights
    begin as PyTorch's own do: U(±1/√fan_in). Numbers beside an image follow its features as they are.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        generator: torch.Generator | None = None,
        channels: Sequence[PositiveInt],
        kernels: Sequence[PositiveInt],
        strides: Sequence[PositiveInt],
    ):
        super().__init__()
        if not len(channels) == len(kernels) == len(strides) > 0:
            raise UserError("encoder: channels, kernels and strides need one number for each layer")
        whole, spec = spec, pictured(spec)
        if (image := image_of(spec)) is None:
            raise UserError(
                f"encoder: convolutions read images, observations here have shape {list(spec.obs_shape)}: "
                "use encoder=flat"
            )
        self.spec, (n_in, *sides), self.channels_last = spec, image, _channels_last(spec)
        if min(sides) < (needed := smallest_side(kernels, strides)):
            raise UserError(
                f"encoder: kernels {list(kernels)} with strides {list(strides)} need images of {needed}x{needed} or "
                f"more, these are {sides[0]}x{sides[1]}: use encoder=minatar_cnn, or encoder=flat"
            )
        self.layers = nn.ModuleList()
        for n_out, kernel, stride in zip(channels, kernels, strides, strict=True):
            layer: Any = nn.utils.skip_init(nn.Conv2d, n_in, n_out, kernel, stride)
            bound = (n_in * kernel * kernel) ** -0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            self.layers.append(layer)
            n_in, sides = n_out, [(side - kernel) // stride + 1 for side in sides]
        self.num_pixels, self.image = math.prod(spec.obs_shape), whole.images[0] if whole.images else None
        self.n_out = n_in * sides[0] * sides[1] + math.prod(whole.obs_shape) - self.num_pixels

    def forward(self, obs: Tensor) -> Tensor:
        numbers = []
        if self.image:
            sizes = [self.image.start, math.prod(self.image.shape)]
            before, obs, after = obs.split([*sizes, obs.shape[-1] - sum(sizes)], dim=-1)
            numbers = [before.float().flatten(1), after.float().flatten(1)]
            obs = obs.unflatten(-1, self.image.shape)
        x = scaled(obs, self.spec) if self.spec.obs_dtype == torch.uint8 else obs
        if self.channels_last:
            x = x.movedim(-1, -3)
        x = x.unsqueeze(1) if x.dim() == 3 else x.flatten(1, -3)  # [B, C, H, W]
        for layer in self.layers:
            x = F.relu(convolved(layer, x))
        return torch.cat([x.flatten(1), *numbers], dim=1) if numbers else x.flatten(1)


def convolved(layer: Any, x: Tensor) -> Tensor:
    """`layer(x)`; where patches lie side by side as one matrix product, which is quicker on a CPU."""
    if layer.kernel_size != layer.stride:
        out: Tensor = layer(x)
        return out
    height, width = layer.stride
    rows, columns = x.shape[-2] // height, x.shape[-1] // width
    x = x[..., : rows * height, : columns * width].unflatten(-1, (columns, width)).unflatten(-3, (rows, height))
    patches = x.permute(0, 2, 4, 1, 3, 5).reshape(len(x) * rows * columns, -1)
    out = torch.addmm(layer.bias, patches, layer.weight.flatten(1).mT)
    return out.unflatten(0, (len(x), rows, columns)).movedim(-1, 1)


class Auto:
    """The encoder that `choice` names; in the config of a checked run that one stands itself."""

    def __new__(cls, *, spec: Spec, generator: torch.Generator | None = None) -> Any:
        return wire(factory("encoder", values_of(choice(spec))), {"spec": spec, "generator": generator})


class Shared:
    """Another network's encoder, read by an actor that does not train it; no part of the actor or of its copies."""

    def __init__(self, encoder: nn.Module):
        self.encoder, self.n_out = encoder, encoder.n_out

    def __call__(self, obs: Tensor) -> Tensor:
        return self.encoder(obs).detach()

    def __deepcopy__(self, memo: object) -> "Shared":
        return self


def choice(spec: Spec) -> str:
    """The name of the encoder for observations: images, which are of bytes, are convolved, all others stay flat.

    Numbers of other types may be an image or a table, and nothing tells which.
    """
    image = image_of(spec := pictured(spec))
    if image is None or spec.obs_dtype != torch.uint8 or min(image[1:]) < SMALLEST:
        return "flat"
    return "nature_cnn" if min(image[1:]) >= LARGE else "minatar_cnn"


def values_of(name: str) -> dict[str, Any]:
    """The content of configs/encoder/NAME.yaml."""
    values: dict[str, Any] = yaml.safe_load((CONFIGS / "encoder" / f"{name}.yaml").read_text("utf-8"))
    return values


def pictured(spec: Spec) -> Spec:
    """The observations that convolutions read: of a Dict, which is one array, the image in it."""
    if len(spec.images) > 1:
        first, *others = (image.key for image in spec.images)
        raise UserError(
            f"encoder: convolutions read one image, there are {first} and {', '.join(others)}: leave some out by "
            f"env.observation_keys=[{first},...], or use encoder=flat"
        )
    for _, _, shape, low, high in spec.images:
        shape = (*spec.obs_shape[:-1], *shape)
        return replace(spec, obs_shape=shape, obs_dtype=torch.uint8, low=low, high=high, images=())
    return spec


def image_of(spec: Spec) -> tuple[int, int, int] | None:
    """Channels, height and width of observations whose frames are [H, W], [H, W, C] or [C, H, W]; None of others.

    The channels come first only where they are fewer than either side. Those of stacked frames are counted together.
    """
    stack, frame = (spec.obs_shape[:1], spec.obs_shape[1:]) if spec.frame_stack > 1 else ((), spec.obs_shape)
    if len(frame) not in (2, 3):
        return None
    *colours, height, width = (frame[-1], *frame[:-1]) if _channels_last(spec) else frame
    return math.prod([*stack, *colours]), height, width


def _channels_last(spec: Spec) -> bool:
    frame = spec.obs_shape[1:] if spec.frame_stack > 1 else spec.obs_shape
    return len(frame) == 3 and frame[0] >= min(frame[1:])


def smallest_side(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """The least number of pixels on a side that leaves one after all layers."""
    side = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        side = (side - 1) * stride + kernel
    return side


def scaled(obs: Tensor, spec: Spec) -> Tensor:
    """Bytes as numbers in [0, 1], by the bounds of their space."""
    return (obs.float() - spec.low) / (spec.high - spec.low)
