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

"""What `sqap bench` can compare, by name; light, so that its help needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchEngine:
    """One way to run a checkpoint.

    :param purpose: what it is, in words
    :param dtype: of a float model, by torch's name; empty for a quantized one
    :param kernel: engine of the quantized linears, by name; empty for a float model
    :param device: where it runs
    """

    purpose: str
    dtype: str = ""
    kernel: str = ""
    device: str = "cpu"

    @property
    def is_float(self) -> bool:
        """Whether it runs the float checkpoint with every token, as those do that others are measured against."""
        return not self.kernel


BENCH_ENGINES: dict[str, BenchEngine] = {
    "float32": BenchEngine("the float checkpoint in 32 bits", dtype="float32"),
    "bfloat16": BenchEngine("the float checkpoint in 16 bits", dtype="bfloat16"),
    "cpu": BenchEngine("quantized and pruned, multiplied in 8-bit integers", kernel="cpu"),
    "reference": BenchEngine("the same in plain integers, to compare numbers and not speed", kernel="reference"),
}
