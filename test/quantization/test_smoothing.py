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

"""Smoothing moves peaks from activations to weights and changes nothing else."""

import copy

import pytest
import torch

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.smoothing import observe_peaks, smooth_


def names_of(model):
    return {module: name for name, module in model.named_modules()}


def weight_peaks(reader):
    return torch.stack([linear.weight.detach().abs().amax(0) for linear in reader.linears]).amax(0)


def test_peaks_are_those_of_all_observations(tiny) -> None:
    readers = tiny.model.rotation_sites().readers
    runs = tiny.calibration(tiny.model)
    seen = []
    handle = tiny.model.decoder.layers[1].mlp.up_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][0]))
    peaks = observe_peaks(readers, runs, names_of(tiny.model))
    handle.remove()
    assert len(peaks) == 5 and all(peak.shape == (64,) for peak in peaks)
    assert torch.equal(peaks[3], torch.cat(seen).abs().amax(0).detach())
    assert not any(module._forward_pre_hooks for module in tiny.model.modules())


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_output_is_unchanged_and_peaks_are_where_alpha_says(tiny, strength: float) -> None:
    tiny.add_outliers(30.0)
    model = tiny.model.double()
    readers = model.rotation_sites().readers
    runs = tiny.calibration(model)
    before = tiny.hidden(model)
    old_weights = [weight_peaks(reader) for reader in readers]
    old = observe_peaks(readers, runs, names_of(model))
    smooth_(readers, old, strength)
    assert float((tiny.hidden(model) - before).norm() / before.norm()) < 1e-9
    for reader, acts, weights, new in zip(readers, old, old_weights, observe_peaks(readers, runs, names_of(model)),
                                          strict=True):
        assert torch.allclose(new, acts.pow(1.0 - strength) * weights.pow(1.0 - strength), rtol=1e-9)
        assert torch.allclose(weight_peaks(reader), acts.pow(strength) * weights.pow(strength), rtol=1e-9)


def test_silent_channels_stay_as_they_are(tiny) -> None:
    reader = tiny.model.rotation_sites().readers[0]
    with torch.no_grad():
        for linear in reader.linears:
            linear.weight[:, 7] = 0.0
    gain = reader.norm.weight.detach().clone()
    peak = torch.full((64,), 4.0)
    peak[5] = 0.0
    smooth_([reader], [peak], 0.5)
    changed = reader.norm.weight != gain
    assert not changed[5] and not changed[7] and int(changed.sum()) == 62
    assert torch.isfinite(reader.norm.weight).all()


def test_inputs_that_say_nothing_are_refused_by_name(tiny, build_tiny) -> None:
    readers = tiny.model.rotation_sites().readers
    other = build_tiny()
    with pytest.raises(ConfigError, match=r"runs 'decoder\.layers\.0\.self_attn\.q_proj'"):
        observe_peaks(readers, other.calibration(other.model, 1), names_of(tiny.model))
    broken = copy.deepcopy(tiny.model)
    with torch.no_grad():
        broken.decoder.layers[1].self_attn.o_proj.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"gives 'decoder\.layers\.1\.mlp\.gate_proj' inputs that are not finite"):
        observe_peaks(broken.rotation_sites().readers, tiny.calibration(broken, 1), names_of(broken))
