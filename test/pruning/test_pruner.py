"""The pruner keeps exactly K, is the identity at K = N, and refuses what does not fit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sqap_vla_ros.config import PruneKnobs
from sqap_vla_ros.data import TokenRule
from sqap_vla_ros.errors import ConfigError, InferenceError
from sqap_vla_ros.models.llama import LlamaConfig, LlamaDecoder, PruneStep
from sqap_vla_ros.pruning.pruner import Pruner


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 256), (0.4, 154), (0.6, 102), (0.7, 77), (0.95, 13)])
def test_kept_count_follows_from_the_ratio(ratio: float, kept: int) -> None:
    pruner = Pruner(PruneKnobs(pruned_ratio=ratio), (16, 16))
    assert pruner.kept_count == kept and pruner.total_count == 256
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for mask in (None, torch.rand(256, generator=generator) < 0.2, torch.ones(256, dtype=torch.bool)):
            selection = pruner.select(torch.rand(1, 256, generator=generator), mask)
            assert selection.kept.unique().shape == (kept,) and selection.rules.shape == (kept,)


def test_at_least_one_token_stays() -> None:
    assert Pruner(PruneKnobs(pruned_ratio=0.95), (2, 2)).kept_count == 1


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_attention_may_choose_none_or_all(ratio: float) -> None:
    pruner = Pruner(PruneKnobs(pruned_ratio=0.5, attention_ratio=ratio), (8, 8))
    scores = torch.rand(1, 64)
    use = pruner.select(scores, None).token_use((8, 8))
    assert use.count(TokenRule.ATTENTION) == 32 * ratio
    if ratio == 1.0:
        assert np.array_equal(use.kept, scores[0].topk(32).indices.sort().values.numpy())


@pytest.mark.parametrize("knobs", [PruneKnobs(rule="none"), PruneKnobs(pruned_ratio=0.0)])
def test_keeping_all_is_the_identity_to_the_bit(knobs: PruneKnobs) -> None:
    torch.manual_seed(0)
    decoder = LlamaDecoder(LlamaConfig(32, 64, 3, 4, 2)).eval()
    pruner = Pruner(knobs, (4, 4))
    x, positions = torch.randn(1, 22, 32), torch.arange(22)[None]

    def select(scores: Tensor) -> Tensor:
        selection = pruner.select(scores, None)
        assert selection.token_use((4, 4)).count(TokenRule.UNPRUNED) == 16
        return selection.kept[None]

    with torch.inference_mode():
        whole = decoder(x, positions)
        assert torch.equal(decoder(x, positions, prune=PruneStep(1, slice(1, 17), select)), whole)


def test_pruned_decoder_sees_only_the_kept_tokens() -> None:
    torch.manual_seed(0)
    decoder = LlamaDecoder(LlamaConfig(32, 64, 3, 4, 2)).eval()
    pruner = Pruner(PruneKnobs(pruned_ratio=0.5), (4, 4))
    x, positions = torch.randn(1, 22, 32), torch.arange(22)[None]
    prune = PruneStep(0, slice(1, 17), lambda scores: pruner.select(scores, None).kept[None])
    with torch.inference_mode():
        assert decoder(x, positions, prune=prune).shape == (1, 22 - 8, 32)


def test_layer_beyond_the_decoder_is_refused() -> None:
    pruner = Pruner(PruneKnobs(layer=8), (16, 16))
    pruner.check_depth(9)
    with pytest.raises(ConfigError, match=r"prune.layer is 8 and the decoder has 8 layers; give 0 to 7"):
        pruner.check_depth(8)


def test_scores_and_mask_of_another_grid_are_refused() -> None:
    pruner = Pruner(PruneKnobs(), (16, 16))
    with pytest.raises(InferenceError, match=r"scores has shape \(1, 255\) for a grid of 16 x 16"):
        pruner.select(torch.rand(1, 255), None)
    with pytest.raises(InferenceError, match="robot mask"):
        pruner.select(torch.rand(1, 256), torch.zeros(64, dtype=torch.bool))
