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

"""How uneven a decoder's activations are, and what four bits cost them, before and after rotation.

A linear rounded to W4A4 gives each token one scale, taken from its largest value; the larger that value beside the
others, the fewer of the 15 codes are left for them. A site is a tensor that linears read: they share its rounding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sqap_vla_ros.models.llama import LlamaDecoder
from sqap_vla_ros.models.vla import VlaModel
from sqap_vla_ros.policy.preprocess import prepare_pictures, prepare_state
from sqap_vla_ros.quantization.integer import quantize_tokens
from sqap_vla_ros.quantization.rotation import RotationPlan, RotationSites, rotate_

# Site to the linears of one layer that read it: (submodule of the layer, linear).
SITES: dict[str, tuple[tuple[str, str], ...]] = {
    "q/k/v": (("self_attn", "q_proj"), ("self_attn", "k_proj"), ("self_attn", "v_proj")),
    "o": (("self_attn", "o_proj"),),
    "gate/up": (("mlp", "gate_proj"), ("mlp", "up_proj")),
    "down": (("mlp", "down_proj"),),
}
ACT_BITS = 4
# What recipes rotate: Q and K stay as they are, since no linear reads them.
PLAN = RotationPlan(queries_keys=False)
_TOP_CHANNELS_RATIO = 0.01
# Noise below this share of the signal counts as none, so that every figure can be written as JSON.
_SMALLEST_MEDIAN = 1e-30  # more than half of the values may be zero
_SMALLEST_NOISE_RATIO = 1e-12


@dataclass(frozen=True)
class Unevenness:
    """Figures of one site.

    :param kurtosis: fourth central moment over the squared variance, of all values; 3 for a Gaussian
    :param peak_ratio: largest magnitude over the median magnitude, of all values
    :param token_peak_ratio: the same within each token, median over the tokens
    :param top_channels_share: energy of the 1 % strongest channels, rounded up, over that of all, 0 to 1
    :param input_sqnr_db: signal to noise of the tokens rounded to 4 bits each
    :param output_sqnr_db: the same behind the linears that read the site, with float weights
    """

    kurtosis: float
    peak_ratio: float
    token_peak_ratio: float
    top_channels_share: float
    input_sqnr_db: float
    output_sqnr_db: float


FIGURES = tuple(entry.name for entry in fields(Unevenness))


@dataclass(frozen=True)
class SiteReport:
    """One site of one layer.

    :param layer: from 0
    :param site: a key of ``SITES``
    :param trained: the model as it is
    :param rotated: after Hadamard rotation, which changes nothing else
    """

    layer: int
    site: str
    trained: Unevenness
    rotated: Unevenness


@dataclass(frozen=True)
class ModelReport:
    """One model.

    :param name: for tables
    :param inputs: what it was shown, in words
    :param tokens: how many tokens were measured
    :param sites: layer by layer
    """

    name: str
    inputs: str
    tokens: int
    sites: tuple[SiteReport, ...]

    def of_site(self, site: str) -> tuple[SiteReport, ...]:
        """All layers of a site, in order."""
        return tuple(entry for entry in self.sites if entry.site == site)


@torch.inference_mode()
def measure_unevenness(x: Tensor, weights: Sequence[Tensor]) -> Unevenness:
    """Measure one site.

    :param x: (T, C) tokens
    :param weights: (N, C) each, of the linears that read them
    """
    wide = x.double()
    centered = wide - wide.mean()
    magnitude = wide.abs()
    channels = wide.square().sum(0).sort(descending=True).values
    top = channels[:math.ceil(_TOP_CHANNELS_RATIO * len(channels))]
    noise = quantize_tokens(wide, ACT_BITS).dequantize() - wide
    readers = torch.cat(list(weights)).double().T
    return Unevenness(
        kurtosis=float(centered.pow(4).mean() / centered.square().mean().square()),
        peak_ratio=float(magnitude.max() / magnitude.median().clamp_min(_SMALLEST_MEDIAN)),
        token_peak_ratio=float((magnitude.amax(1) / magnitude.median(1).values.clamp_min(_SMALLEST_MEDIAN)).median()),
        top_channels_share=float(top.sum() / channels.sum()),
        input_sqnr_db=_token_sqnr_db(wide, noise),
        output_sqnr_db=_token_sqnr_db(wide @ readers, noise @ readers))


def _token_sqnr_db(signal: Tensor, noise: Tensor) -> float:
    # Relative noise is averaged over the tokens: pooled, the few largest tokens would drown what the others lose.
    ratio = noise.square().sum(1) / signal.square().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    return -10.0 * math.log10(max(float(ratio.mean()), _SMALLEST_NOISE_RATIO))


@torch.inference_mode()
def measure_decoder(decoder: LlamaDecoder, run: Callable[[], object]) -> dict[tuple[int, str], Unevenness]:
    """Measure every site of a float decoder.

    :param run: runs the decoder on its inputs, once or several times
    :return: by layer and site
    """
    seen: dict[tuple[int, str], list[Tensor]] = {}
    hooks = []
    for layer, block in enumerate(decoder.blocks):
        for site in SITES:
            seen[layer, site] = []
            hooks.append(_readers(block, site)[0].register_forward_pre_hook(_keep_input(seen[layer, site])))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {(layer, site): measure_unevenness(torch.cat(seen.pop((layer, site))),
                                              [linear.weight for linear in _readers(decoder.blocks[layer], site)])
            for layer, site in list(seen)}


def _readers(block: nn.Module, site: str) -> list[nn.Linear]:
    return [getattr(getattr(block, part), name) for part, name in SITES[site]]


def _keep_input(into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        into.append(inputs[0].flatten(0, -2).clone())

    return keep


def measure_model(name: str, inputs: str, decoder: LlamaDecoder, sites: RotationSites, run: Callable[[], int],
                  seed: int = 0) -> ModelReport:
    """Measure a float model as it is, rotate it in place, and measure it again.

    :param name: for tables
    :param inputs: what ``run`` shows it, in words
    :param sites: of the model that ``decoder`` belongs to
    :param run: runs the decoder and returns how many tokens it read
    :param seed: of the rotation's signs
    :raises ConfigError: when the model cannot be rotated
    """
    tokens: list[int] = []
    trained = measure_decoder(decoder, lambda: tokens.append(run()))
    rotate_(sites, seed, PLAN)
    rotated = measure_decoder(decoder, run)
    return ModelReport(name, inputs, tokens[0], tuple(SiteReport(layer, site, trained[layer, site],
                                                                 rotated[layer, site]) for layer, site in trained))


def measure_vla(name: str, inputs: str, model: VlaModel, frames: Iterable[tuple[np.ndarray, str]]) -> ModelReport:
    """Measure a vision-language-action model on pictures with instructions; it is rotated in place.

    All visual tokens stay in, so that every layer is measured on the same tokens.

    :param frames: (H, W, 3) uint8 pictures and their instructions
    :raises InputError: when a picture or instruction cannot be used
    """
    state = prepare_state(None, model)
    prepared = [(prepare_pictures((rgb,), model)[0], model.tokenize(instruction)) for rgb, instruction in frames]

    def run() -> int:
        tokens = 0
        for pixels, ids in prepared:
            sequence = model.build_sequence(model.encode_images(pixels, ids), ids, state)
            model.decoder(sequence.embeddings, sequence.positions, causal=sequence.causal)
            tokens += sequence.embeddings.shape[1]
        return tokens

    return measure_model(name, inputs, model.decoder, model.rotation_sites(), run)


def measure_gaussian(tokens: int, width: int, seed: int = 0) -> Unevenness:
    """The figures of Gaussian noise, for scale: what a perfect rotation of long tokens would give.

    Its readers are Gaussian too, 256 of them.
    """
    generator = torch.Generator().manual_seed(seed)
    return measure_unevenness(torch.randn(tokens, width, generator=generator),
                              [torch.randn(256, width, generator=generator)])


def summarize_site(entries: Sequence[SiteReport]) -> dict[str, dict[str, dict[str, float]]]:
    """Median and worst over the layers of a site: by figure, then 'trained' or 'rotated', then 'median' or 'worst'.

    Of a signal-to-noise ratio the lowest is the worst, of the others the highest.
    """
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for figure in FIGURES:
        worst = min if figure.endswith("_db") else max
        summary[figure] = {}
        for state in ("trained", "rotated"):
            values: list[Any] = [getattr(getattr(entry, state), figure) for entry in entries]
            summary[figure][state] = {"median": statistics.median(values), "worst": worst(values)}
    return summary
