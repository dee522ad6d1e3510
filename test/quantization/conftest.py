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

"""A demo policy small enough to rotate and quantize in milliseconds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sqap_vla_ros.models.demo import DemoConfig, DemoVla
from sqap_vla_ros.models.llama import LlamaConfig, PruneStep, RMSNorm
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.models.vla import ActionSpec

ACTION = ActionSpec(4, (-1.0,) * 7, (1.0,) * 7, (True,) * 6 + (False,))
WORDS = ("reach", "the", "red", "block")


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers for every test."""
    torch.manual_seed(0)


@pytest.fixture
def many_threads(monkeypatch) -> None:
    """All floats are torch's, and so the same to the bit; on one thread C sums some of them in another order."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


class Tiny:
    """A demo policy with uneven gains and outlier channels, and one fixed observation."""

    def __init__(self, hidden: int = 64, intermediate: int = 96, heads: int = 4, kv_heads: int = 2) -> None:
        torch.manual_seed(3)
        self.model = DemoVla(DemoConfig(VitConfig(64, 16, 16, 32, 1, 2),
                                        LlamaConfig(hidden, intermediate, 2, heads, kv_heads), WORDS, ACTION)).eval()
        self.pixels = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            for module in self.model.modules():
                if isinstance(module, RMSNorm):
                    module.weight.uniform_(0.2, 2.0)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.normal_()

    def add_outliers(self, factor: float) -> None:
        """Let a few channels behind every norm and inside every MLP outgrow the others, without changing the model."""
        with torch.no_grad():
            for reader in self.model.rotation_sites().readers[:-1]:
                reader.norm.weight[::32] *= factor
                for linear in reader.linears:
                    linear.weight[:, ::32] /= factor
            for layer in self.model.decoder.layers:
                layer.mlp.up_proj.weight[::96] *= factor
                layer.mlp.down_proj.weight[:, ::96] /= factor

    def calibration(self, model: DemoVla, count: int = 6) -> list[Callable[[], Tensor]]:
        """Observations of a model with other pictures and instructions of one to three words."""
        generator = torch.Generator().manual_seed(8)
        dtype = model.embed_tokens.weight.dtype

        def observation(pixels: Tensor, text: str) -> Callable[[], Tensor]:
            def run() -> Tensor:
                sequence = model.build_sequence(model.encode_images(pixels), model.tokenize(text))
                return model.predict_actions(model.decoder(sequence.embeddings, sequence.positions))

            return run

        return [observation(torch.randn(1, 3, 64, 64, generator=generator).to(dtype), " ".join(WORDS[:1 + index % 3]))
                for index in range(count)]

    def hidden(self, model: nn.Module, prune: PruneStep | None = None) -> Tensor:
        """What the head reads, in a basis that rotations do not change."""
        dtype = model.embed_tokens.weight.dtype
        with torch.inference_mode():
            sequence = model.build_sequence(model.encode_images(self.pixels.to(dtype)),
                                            model.tokenize("reach the red block"))
            return model.head_fc1(model.decoder(sequence.embeddings, sequence.positions, prune=prune))


@pytest.fixture
def tiny() -> Tiny:
    """64 wide, 96 inside, 4 heads that share 2 pairs of keys and values."""
    return Tiny()


@pytest.fixture
def build_tiny() -> type[Tiny]:
    """For other sizes."""
    return Tiny


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise in dB."""
    reference, other = reference.detach().double(), other.detach().double()
    return float(10.0 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


@pytest.fixture(name="sqnr_db")
def sqnr_db_fixture() -> object:
    """The function of that name."""
    return sqnr_db
