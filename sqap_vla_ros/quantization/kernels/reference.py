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
