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

"""SmoothQuant: outlier channels leave the activations for the weights (Xiao et al., arXiv 2211.10438).

A channel divided in the norm's gain and multiplied in every linear behind it changes nothing in float. How much, a
strength alpha says: 0 leaves the weights even, 1 the activations (section 4, equation 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.calibration import Calibration, observe_inputs
from sqap_vla_ros.quantization.rotation import Reader


@torch.no_grad()
def observe_peaks(readers: Sequence[Reader], calibration: Calibration, names: Mapping[nn.Module, str]) -> list[Tensor]:
    """Run the float model and keep the largest magnitude of every channel behind each norm.

    :param readers: norms and what reads them
    :param calibration: observations of the model
    :param names: of the readers' linears, for errors
    :return: (C,) for each reader
    :raises ConfigError: when no observation runs a reader, or its input is not finite
    """
    peaks: dict[nn.Module, Tensor] = {}

    def observer(linear: nn.Module) -> Callable[[Tensor], None]:
        def keep_peak(x: Tensor) -> None:
            peak = x.detach().abs().reshape(-1, x.shape[-1]).amax(0)
            peaks[linear] = torch.maximum(peaks[linear], peak) if linear in peaks else peak

        return keep_peak

    with observe_inputs({reader.linears[0]: observer(reader.linears[0]) for reader in readers}):
        for run in calibration:
            run()
    for reader in readers:
        linear = reader.linears[0]
        if linear not in peaks:
            raise ConfigError(f"no observation of the calibration runs '{names[linear]}'; give functions that run the "
                              "model object that is quantized")
        if not torch.isfinite(peaks[linear]).all():
            raise ConfigError(f"the calibration gives '{names[linear]}' inputs that are not finite; leave out the "
                              "observation that does, or mend the checkpoint")
    return [peaks[reader.linears[0]] for reader in readers]


@torch.no_grad()
def smooth_(readers: Sequence[Reader], peaks: Sequence[Tensor], strength: float) -> None:
    """Move each channel's peak from what a norm gives to the linears that read it, in float64.

    A channel that is silent, or that no linear reads, stays as it is: nothing says how far to move it.

    :param readers: norms and what reads them; a linear stands behind one norm only
    :param peaks: (C,) for each reader, see :func:`observe_peaks`
    :param strength: alpha, 0 to 1
    """
    for reader, peak in zip(readers, peaks, strict=True):
        weight_peak = torch.stack([linear.weight.abs().amax(0) for linear in reader.linears]).amax(0).double()
        moved = peak.double().pow(strength) / weight_peak.pow(1.0 - strength)
        moved = torch.where((peak > 0) & (weight_peak > 0), moved, 1.0)
        reader.norm.weight.copy_(reader.norm.weight.double() / moved)
        for linear in reader.linears:
            linear.weight.copy_(linear.weight.double() * moved)
