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

"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Engine:
    """One way to multiply integers. All engines give the same int32.

    :param name: what configuration calls it
    :param prepare: packed weight (see :func:`~sqap_vla_ros.quantization.integer.pack`), bits and K to the tensor that
        ``int_matmul`` takes, outputs along its first dimension, one by one or so many at a time; called once, when a
        layer is loaded
    :param int_matmul: activations (M, K) int8 and prepared weight to (M, N) int32, the exact sums over K
    """

    name: str
    prepare: Callable[[Tensor, int, int], Tensor]
    int_matmul: Callable[[Tensor, Tensor], Tensor]
