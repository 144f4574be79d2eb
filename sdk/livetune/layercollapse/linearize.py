"""The prepared activation: an activation that a single slope turns continuously into a line."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


class LinearizedActivation(nn.Module):
    """s_a(z) = (1 - a) s(z) + a (k z + t), with the slope a as a parameter.

    At a = 0 it computes what the activation s does, bit for bit; at a = 1 it is the line k z + t, exactly, and the two
    linear layers around it have a product. With k = 1, t = 0 and s = ReLU it is PReLU with slope a, the form of
    LayerCollapse (arXiv 2311.17943, section 3) and of Layer Folding (Ben Dror et al., 2021).

    Shapes: any input (..., h), the same output. Slopes are only meaningful from 0 to 1; `clamp_slopes_` keeps them.

    Args:
        activation: The elementwise activation s. It becomes a submodule; one that works in place is given a copy.
        slope: Starting value of a.
        gain: k, one number or one per channel, shape () or (h,); None stands for 1.
        offset: t, likewise; None stands for 0.
        device: Device of the slope.
        dtype: Type of the slope.
    """

    slope: nn.Parameter
    gain: Tensor | None
    offset: Tensor | None

    def __init__(
        self,
        activation: nn.Module,
        *,
        slope: float = 0.0,
        gain: Tensor | None = None,
        offset: Tensor | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.slope = nn.Parameter(torch.full((), slope, device=device, dtype=dtype))
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)
        self.training = activation.training

    def line(self, z: Tensor) -> Tensor:
        """Return k z + t, the line that the activation becomes at a = 1."""
        if self.gain is not None:
            z = z * self.gain
        return z if self.offset is None else z + self.offset

    def forward(self, z: Tensor) -> Tensor:
        """Return s_a(z), of the shape of z."""
        # An activation that works in place would overwrite z, which the line needs.
        curved: Tensor = self.activation(z.clone() if getattr(self.activation, "inplace", False) else z)
        # lerp is exact at both ends. Under autocast z is narrower than the parameter.
        return torch.lerp(curved, self.line(z).to(curved.dtype), self.slope.to(curved.dtype))

    def extra_repr(self) -> str:
        """Show the slope in the model's printout; a model on the meta device has none to show."""
        return "slope=?" if self.slope.is_meta else f"slope={self.slope.item():.4g}"


@contextmanager
def forced_linear(layers: Iterable[LinearizedActivation]) -> Iterator[None]:
    """Within the block the given activations are lines (a = 1); afterwards they are as they were.

    The parameter is set aside rather than written to, so that a graph that saved it stays valid.
    """
    with ExitStack() as restore:
        for layer in layers:
            original = layer.slope
            restore.callback(setattr, layer, "slope", original)
            layer.slope = nn.Parameter(torch.ones_like(original), requires_grad=False)
        yield
