"""Rotations as data: where a model can be rotated without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Reader:
    """Linears that read the residual stream behind one RMSNorm.

    :param norm: the norm whose gain is folded into the linears
    :param linears: what reads its output
    """

    norm: nn.Module
    linears: tuple[nn.Linear, ...]


@dataclass(frozen=True)
class RotationSites:
    """Everything that touches one residual stream, and the places where a rotation stays online.

    :param stream_size: width of the residual stream
    :param embeddings: parameters (..., stream_size) that are copied into the stream
    :param writers: linears whose output goes into the stream
    :param readers: linears that read it, by norm; the final norm and the head's first linear included
    :param attentions: modules with v_proj, o_proj, num_heads, num_kv_heads, head_dim and the online site ``qk_online``
    :param mlps: modules with down_proj and the online site ``down_online``
    """

    stream_size: int
    embeddings: tuple[nn.Parameter, ...]
    writers: tuple[nn.Linear, ...]
    readers: tuple[Reader, ...]
    attentions: tuple[nn.Module, ...]
    mlps: tuple[nn.Module, ...]
