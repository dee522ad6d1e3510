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

"""Blocks are run alone on exactly what they see within the model."""

import pytest
import torch
from torch import Tensor, nn

from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.quantization.calibration import BlockCall, catch_calls, observe_inputs


def test_first_blocks_inputs_are_caught_and_the_run_ends_there(tiny) -> None:
    later: list[nn.Module] = []
    for module in (tiny.model.decoder.layers[0].self_attn, tiny.model.decoder.layers[1], tiny.model.head_fc1):
        module.register_forward_pre_hook(lambda module, args: later.append(module))
    calls = catch_calls(tiny.model.blocks()[0], tiny.calibration(tiny.model))
    assert not later
    # BOS, 16 visual tokens, one to three words, ACT.
    assert [tuple(call.x.shape) for call in calls] == [(1, 18 + words, 64) for words in (1, 2, 3, 1, 2, 3)]
    assert not any(call.x.requires_grad for call in calls)
    words = tiny.model.embed_tokens.weight
    assert torch.equal(calls[0].x[0, 0], words[0]) and torch.equal(calls[2].x[0, -1], words[1])


def test_going_through_all_blocks_is_the_model(tiny) -> None:
    model = tiny.model
    hidden: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda module, args, out: hidden.append(out))
    runs = tiny.calibration(model)
    for run in runs:
        run()
    handle.remove()
    calls = catch_calls(model.blocks()[0], runs)
    for block in model.blocks():
        calls = [call.through(block) for call in calls]
    assert len(model.blocks()) == 2
    assert all(torch.equal(model.decoder.norm(call.x), out) for call, out in zip(calls, hidden, strict=True))
    assert not any(call.x.requires_grad for call in calls)


def test_blocks_may_return_hidden_states_alone_and_take_names() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor, offset: float, *, factor: float) -> Tensor:
            return x * factor + offset

    first, second = Block(), Block()

    def run() -> Tensor:
        return second(first(torch.ones(1, 2, 3), 1.0, factor=3.0), 1.0, factor=3.0)

    (call,) = catch_calls(first, [run])
    assert call.args == (1.0,) and call.kwargs == {"factor": 3.0}
    assert torch.equal(call.through(first).through(second).x, run())


def test_inputs_of_inference_mode_may_be_used(tiny) -> None:
    (run,) = tiny.calibration(tiny.model, 1)
    (call,) = catch_calls(tiny.model.blocks()[0], [torch.inference_mode()(run)])
    assert torch.isfinite(call.through(tiny.model.blocks()[0]).x).all()


def test_no_hook_stays_behind(tiny) -> None:
    block = tiny.model.blocks()[0]
    linear = block.self_attn.q_proj

    def fail() -> Tensor:
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        catch_calls(block, [fail])
    with pytest.raises(ValueError, match="no picture"), observe_inputs({linear: lambda x: None}):
        fail()
    assert not block._forward_pre_hooks and not linear._forward_pre_hooks


def test_an_observation_of_another_model_is_refused(tiny, build_tiny) -> None:
    other = build_tiny()
    runs = [*tiny.calibration(tiny.model, 1), *other.calibration(other.model, 2)]
    with pytest.raises(ConfigError, match="observation 2 of 3"):
        catch_calls(tiny.model.blocks()[0], runs)


def test_observers_see_what_the_modules_see() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    seen: dict[str, Tensor] = {}
    x = torch.randn(1, 5, 4)
    with observe_inputs({first: lambda x: seen.update(first=x), second: lambda x: seen.update(second=x)}):
        BlockCall(x, (), {}).through(nn.Sequential(first, second))
    assert torch.equal(seen["first"], x) and torch.equal(seen["second"], first(x))
