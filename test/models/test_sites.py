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

"""Whatever stands around a decoder, rotating its residual stream leaves what comes out as it was."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sqap_vla_ros.models.diffusion import ActionModel, ddim_schedule, read_action_model
from sqap_vla_ros.models.dit import Dit, DitConfig
from sqap_vla_ros.models.film import Modulation
from sqap_vla_ros.models.llama import LlamaConfig, LlamaDecoder
from sqap_vla_ros.models.oft_diffusion import make_timesteps
from sqap_vla_ros.models.sites import decoder_linears, stream_sites
from sqap_vla_ros.quantization.rotation import rotate_


class Surroundings(nn.Module):
    """Words, a modulated picture and a time go into a decoder; a linear and a LayerNorm read it."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(5, 32)
        self.timesteps = make_timesteps(32)
        self.film = Modulation(32, 12)
        self.projector = nn.Linear(12, 32)
        self.decoder = LlamaDecoder(LlamaConfig(32, 48, 2, 4, 2))
        self.unfold = nn.Linear(32, 32, bias=False)
        self.norm = nn.LayerNorm(32)

    def forward(self, picture):
        words = self.words(torch.arange(5))[None]
        seen = self.projector(self.film(picture, words.mean(1)))
        x = torch.cat((seen, self.timesteps(torch.tensor([[7]])), words), dim=1)
        return self.norm(self.unfold(self.decoder(x, torch.arange(x.shape[1])[None], causal=False)))

    def sites(self):
        return stream_sites(self.decoder, (self.words.weight, self.timesteps.weight), (self.projector,), (self.unfold,),
                            (self.film.scale, self.film.shift))


def make_random(module):
    torch.manual_seed(0)
    module.double().eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    return module


def make_surroundings():
    model = make_random(Surroundings())
    model.timesteps.weight.copy_(make_timesteps(32).weight)
    model.unfold.weight.copy_(torch.eye(32))
    return model, torch.randn(1, 6, 12, dtype=torch.float64)


def relative_error(before, after):
    return ((before - after).norm() / before.norm()).item()


def test_everything_around_a_decoder_turns_with_it():
    model, picture = make_surroundings()
    before, gain = model(picture), model.decoder.norm.weight.clone()
    rotate_(model.sites(), 3)
    assert relative_error(before, model(picture)) < 1e-9
    # What undoes the rotation is the final gain in another basis: rows as long as the gains are large.
    assert model.decoder.norm.weight.eq(1).all()
    torch.testing.assert_close(model.unfold.weight.norm(dim=1), gain.abs(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("forgotten", ["plain_readers", "timesteps"])
def test_what_is_forgotten_is_noticed(forgotten):
    model, picture = make_surroundings()
    before, sites = model(picture), model.sites()
    rotate_(replace(sites, plain_readers=()) if forgotten == "plain_readers"
            else replace(sites, embeddings=sites.embeddings[:1]), 3)
    assert relative_error(before, model(picture)) > 1e-2


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_guidance_survives_gain_and_rotation(guidance):
    config = DitConfig(1, 16, 2, chunk_steps=3, action_size=2, cognition_size=32)
    net = make_random(Dit(config))
    vector = torch.randn(1, 32, dtype=torch.float64)
    head = read_action_model({f"net.{name}": tensor for name, tensor in net.state_dict().items()}
                             | {"net.z_embedder.uncondition": vector}, num_heads=2).requires_grad_(False)
    decoder, embedding = make_random(LlamaDecoder(LlamaConfig(32, 48, 2, 4, 4))), nn.Parameter(torch.randn(1, 7, 32))
    embedding = nn.Parameter(embedding.detach().double(), requires_grad=False)
    schedule = ddim_schedule(10)
    noise = head.draw_noise(schedule, torch.Generator().manual_seed(0)).double()

    def sample():
        hidden = decoder(embedding, torch.arange(7)[None], tail=1)
        return head.sample(hidden[:, -1], noise, schedule, guidance_scale=guidance)

    before, linear = sample(), head.net.z_embedder.linear
    embedded = linear(vector)
    rotate_(stream_sites(decoder, (embedding,), (), (linear,)), 5)
    assert relative_error(before, sample()) < 1e-9
    assert relative_error(embedded, head.nothing) < 1e-12 and relative_error(embedded, linear(vector)) > 1e-2
    assert isinstance(head, ActionModel) and before.dtype == torch.float64


def test_linears_of_a_decoder_are_seven_a_layer():
    decoder = LlamaDecoder(LlamaConfig(32, 48, 2, 4, 2))
    linears = decoder_linears(decoder)
    assert len(linears) == 14 and linears["decoder.layers.1.mlp.up_proj"] is decoder.blocks[1].mlp.up_proj
