# Copyright 2026 sqap_vla_ros maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The 8-bit product: codes are unpacked once to a byte each, the sums are exact.

The processor multiplies bytes at its narrowest, so 4-bit codes run at 8-bit speed; what they save here is storage.

Where the processor has AVX-512 VNNI, and one thread works, our own product takes a weight that was laid out when it was
loaded. Everywhere else it is oneDNN's by ``torch._int_mm``, which lays it out at every call.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sqap_vla_ros import fused_rows
from sqap_vla_ros.quantization.integer import unpack
from sqap_vla_ros.quantization.kernels.engine import Engine

# torch 2.13's _int_mm returns garbage for K = 1; a zero column more changes no sum.
_SMALLEST_K = 2


def prepare(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Unpack to (N, K) int8, the layout whose transpose oneDNN reads fastest, or to our own product's."""
    weight = unpack(packed, bits, columns)
    if (fused_rows.HAS_INTEGER_PRODUCT and torch.get_num_threads() == 1 and weight.device.type == "cpu"
            and weight.shape[0] % fused_rows.LANES == 0 and columns % 4 == 0):
        return fused_rows.lay_out_weight(weight)
    return F.pad(weight, (0, _SMALLEST_K - columns)) if columns < _SMALLEST_K else weight


def int_matmul(activations: Tensor, weight: Tensor) -> Tensor:
    """(M, K) int8 times what ``prepare`` made of (N, K) to (M, N) int32."""
    if weight.dim() > 2:
        return fused_rows.multiply_integers(activations, weight)
    if activations.shape[1] < _SMALLEST_K:
        activations = F.pad(activations, (0, _SMALLEST_K - activations.shape[1]))
    return torch._int_mm(activations, weight.t())


ENGINE = Engine("cpu", prepare, int_matmul)
