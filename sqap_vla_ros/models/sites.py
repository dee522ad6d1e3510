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

"""What rotation and rounding find in every family: a Llama decoder, with writers in front of it and readers behind."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sqap_vla_ros.models.llama import LlamaDecoder
from sqap_vla_ros.quantization.rotation import Reader, RotationSites


def stream_sites(decoder: LlamaDecoder, embeddings: Iterable[nn.Parameter], writers: Iterable[nn.Linear],
                 head_readers: Iterable[nn.Linear], plain_readers: Iterable[nn.Linear] = ()) -> RotationSites:
    """The residual stream of a decoder and of what a family puts around it.

    :param decoder: its layers read and write
    :param embeddings: parameters (..., C) that are copied into the stream
    :param writers: linears in front of the decoder whose output goes into the stream
    :param head_readers: linears that read the decoder's output, behind its final norm
    :param plain_readers: linears that read what is in the stream, behind no norm
    """
    all_writers = list(writers)
    readers = []
    for layer in decoder.blocks:
        attention, mlp = layer.self_attn, layer.mlp
        all_writers += [attention.o_proj, mlp.down_proj]
        readers += [Reader(layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                    Reader(layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj))]
    readers.append(Reader(decoder.norm, tuple(head_readers)))
    return RotationSites(decoder.config.hidden_size, tuple(embeddings), tuple(all_writers), tuple(readers),
                         tuple(layer.self_attn for layer in decoder.blocks),
                         tuple(layer.mlp for layer in decoder.blocks), tuple(plain_readers))


def decoder_linears(decoder: LlamaDecoder) -> dict[str, nn.Linear]:
    """Every linear of the decoder, by its name in a model that calls it ``decoder``."""
    return {f"decoder.{name}": module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
