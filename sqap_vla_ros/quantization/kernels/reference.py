"""Plain integers: what the other engines are measured against, on any device that multiplies int32."""

from __future__ import annotations

import torch
from torch import Tensor

from sqap_vla_ros.quantization.integer import unpack
from sqap_vla_ros.quantization.kernels.engine import Engine


def int_matmul(activations: Tensor, weight: Tensor) -> Tensor:
    """(M, K) int8 times (N, K) int8 to (M, N) int32."""
    return activations.to(torch.int32) @ weight.to(torch.int32).T


ENGINE = Engine("reference", unpack, int_matmul)
