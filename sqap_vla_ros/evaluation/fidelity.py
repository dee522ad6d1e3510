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

"""How near a compressed policy is to the float one when both look at the same.

Success in closed loop is what counts, and it takes hundreds of episodes to tell two methods apart; this takes seconds,
and says where the difference arises: in what attention calls important, or in the actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sqap_vla_ros.data import Observation, TokenRule
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.closed_loop import find_footprint
from sqap_vla_ros.knobs import FootprintKnobs
from sqap_vla_ros.models.registry import describe_checkpoint
from sqap_vla_ros.models.vla import ActionSpec
from sqap_vla_ros.policy.policy import Policy
from sqap_vla_ros.pruning.pruner import Pruner
from sqap_vla_ros.simulation.observing import mix_suites, visit_trials
from sqap_vla_ros.simulation.suite import SEED_RANGES

FIRST_SEED = SEED_RANGES["validation"].start


@dataclass(frozen=True)
class Fidelity:
    """What is left of the float policy, as means over observations.

    Scores are the attention that the last token gives to each visual token in layer ``prune.layer``, mean over the
    heads, from Q and K as the model multiplies them: rotated and rounded where its recipe does so. Pruning sees their
    order only, so what quantization does to it is told by Spearman's rank correlation: 1 where the order is the float
    model's, 0 where nothing of it is left. Tokens leave inside that layer, so both see every token in front of it.

    :param action_mse: mean squared error of the normalised actions, over steps and dimensions too
    :param action_cosine: cosine between the two chunks of normalised actions, each as one vector
    :param score_rank_correlation: Spearman's, -1 to 1, of the scores of all visual tokens; None where the decoder has
        no layer ``prune.layer``
    :param observations: how many
    :param top_overlap: of as many tokens as the policy's rule took for their attention, those with the highest scores
        of the float model: the share that is among those with the policy's highest, 0 to 1. None where attention
        chose none
    """

    action_mse: float
    action_cosine: float
    score_rank_correlation: float | None
    observations: int
    top_overlap: float | None = None


@dataclass(frozen=True)
class _Look:
    # actions (T, D) normalised; scores (N,), None without the layer; how many tokens attention chose.
    actions: np.ndarray
    scores: np.ndarray | None
    attention_count: int


def view_scenes(checkpoint: str, count: int, first_seed: int = FIRST_SEED, *,
                knobs: FootprintKnobs | None = None) -> list[Observation]:
    """Look at ``count`` scenes with the expert at a random stage of its task, in the groups of every suite.

    :param checkpoint: whose model is to read the instructions, see
        :func:`~sqap_vla_ros.models.registry.load_checkpoint`
    :param first_seed: of the first scene; the same arguments give the same observations
    :param knobs: which frames the footprints protect; None takes the defaults
    :raises ConfigError: for test scenes, by which nothing may be chosen, or frames that the robot does not have
    :raises CheckpointError: when the checkpoint cannot be used
    :raises InputError: for an instruction that the model cannot read
    """
    test = SEED_RANGES["test"]
    if first_seed < test.stop and first_seed + count > test.start:
        raise ConfigError(f"scenes {first_seed} to {first_seed + count - 1} are test scenes, or some are, and how near "
                          f"a policy is to float guides choices; take validation scenes, from {FIRST_SEED} on")
    trials = mix_suites(count, first_seed)
    model = describe_checkpoint(checkpoint).model
    for instruction in sorted({trial.task.instruction for trial in trials}):
        model.tokenize(instruction)
    protected = knobs or FootprintKnobs()
    return [Observation(0, (tabletop.render(),), trial.task.instruction, (find_footprint(tabletop, protected),))
            for tabletop, trial in visit_trials(trials)]


def measure_fidelity(reference: Policy, policy: Policy, observations: Sequence[Observation]) -> Fidelity:
    """Compare a policy with the float one of the same checkpoint.

    :param reference: float, with every visual token
    :param policy: compressed, or not
    :raises ConfigError: when there are no observations, the reference prunes, or the two are different models
    :raises InputError: for an observation that a policy cannot use
    :raises InferenceError: when an action is not finite
    """
    if not observations:
        raise ConfigError("there are no observations to compare the policies on; give at least one")
    if reference.pruner is not None:
        raise ConfigError(f"the reference drops tokens by the rule '{reference.config.prune.rule}'; build it with "
                          "prune.rule 'none'")
    if (reference.model.action_spec, reference.grids) != (policy.model.action_spec, policy.grids):
        raise ConfigError("the policies have different actions or token grids; compare those of one checkpoint")
    layer = policy.config.prune.layer
    pairs = list(zip(_look(reference, observations, layer), _look(policy, observations, layer), strict=True))
    correlations, overlaps = [], []
    for wanted, found in pairs:
        if wanted.scores is not None and found.scores is not None:
            correlations.append(correlate_ranks(wanted.scores, found.scores))
            if found.attention_count:
                overlaps.append(_share_top(wanted.scores, found.scores, found.attention_count))
    return Fidelity(
        action_mse=float(np.mean([np.square(found.actions - wanted.actions).mean() for wanted, found in pairs])),
        action_cosine=float(np.mean([_cosine(wanted.actions, found.actions) for wanted, found in pairs])),
        score_rank_correlation=float(np.mean(correlations)) if correlations else None,
        observations=len(pairs),
        top_overlap=float(np.mean(overlaps)) if overlaps else None)


def correlate_ranks(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation, equal values sharing a rank.

    :param first: (N,)
    :param second: (N,)
    :return: -1 to 1; 0 where one of them has only one value, and so no order
    """
    from scipy.stats import spearmanr  # here, since it takes a second to import

    if np.ptp(first) == 0.0 or np.ptp(second) == 0.0:
        return 0.0
    correlation, _ = spearmanr(first, second)  # by place, since releases differ in its name
    return float(correlation)


def _look(policy: Policy, observations: Sequence[Observation], layer: int) -> list[_Look]:
    # Where nothing is pruned, a pruner that keeps everything, which changes nothing, is told of the scores.
    pruner = policy.pruner or Pruner(replace(policy.config.prune, rule="none", layer=layer), policy.grids,
                                     policy.device)
    watched = Policy(policy.model, policy.config, pruner, policy.report, policy.device)
    looks = []
    for observation in observations:
        with pruner.record_scores() as record:
            inference = watched.infer(observation)
        looks.append(_Look(_normalize(inference.chunk.steps, policy.model.action_spec),
                           record[0][0].double().cpu().numpy() if record else None,
                           sum(tokens.count(TokenRule.ATTENTION) for tokens in inference.tokens)))
    return looks


def _normalize(steps: np.ndarray, spec: ActionSpec) -> np.ndarray:
    # (T, D) metres and radians back to what the model gave.
    low, span = np.array(spec.low), np.array(spec.high) - np.array(spec.low)
    # A dimension that never moved in training has no span, and nothing to compare.
    normal = np.where(span == 0.0, 0.0, 2.0 * (steps - low) / np.where(span == 0.0, 1.0, span) - 1.0)
    return np.where(np.array(spec.mask), normal, steps)


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.vdot(first, second) / (np.linalg.norm(first) * np.linalg.norm(second)))


def _share_top(wanted: np.ndarray, found: np.ndarray, count: int) -> float:
    tops = [set(np.argsort(-scores, kind="stable")[:count].tolist()) for scores in (wanted, found)]
    return len(tops[0] & tops[1]) / count
