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

"""Several replays as policies times bags: whose answers belong together, and how each policy compares with the first.

What is asked of a policy is its first action at each look, as in a replay's own summary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sqap_vla_ros.errors import InputError
from sqap_vla_ros.evaluation.methods import FLOAT
from sqap_vla_ros.evaluation.resampling import resample_ratio
from sqap_vla_ros.report.pairing import LEAST_UNITS, MEASURES, Actions, Difference, Key, compare_errors, measure_errors
from sqap_vla_ros.report.runs import Run, read_looks

RECORDED = "recorded"
_MOTION_NUMBERS = 6
_MOTIONS = ("jerk_m_s3", "path_m")


@dataclass
class Track:
    """What one policy did on one bag.

    :param runs: names of the runs that it is from
    :param actions: (6,) by index and stamp of the look
    :param motion: ``jerk_m_s3`` and ``path_m`` as the run's summary has them; None where there is none
    """

    runs: list[str]
    actions: dict[Key, np.ndarray]
    motion: Mapping[str, float | None]


@dataclass
class Replays:
    """Replays sorted by what they have in common.

    :param policies: tracks by policy and bag, policies in the order of the runs
    :param labels: what each policy is called in its run
    :param recorded: actions by bag and look, NaN where nothing was recorded
    :param remarks: sentences on what was found to be the same or not
    """

    policies: dict[str, dict[str, Track]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    recorded: dict[str, dict[Key, np.ndarray]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> str:
        """What the others are compared with: the float policy where there is one, else the first."""
        return next((name for name, label in self.labels.items() if label == FLOAT), next(iter(self.policies)))


@dataclass(frozen=True)
class LookComparison:
    """Two policies on the same looks.

    :param yardstick: what both errors are measured from: ``RECORDED`` or a policy
    :param measure: one of :data:`~.pairing.MEASURES`
    :param first: the one compared with
    :param other: the one compared
    :param result: what it changes
    """

    yardstick: str
    measure: str
    first: str
    other: str
    result: Difference


@dataclass(frozen=True)
class MotionComparison:
    """How two policies would have moved over the same bags.

    :param quantity: ``jerk_m_s3`` or ``path_m``
    :param ratio: the other's mean over the first's
    :param interval: low and high, 95 %; None for too few bags
    :param bags: that both have
    """

    quantity: str
    first: str
    other: str
    ratio: float
    interval: tuple[float, float] | None
    bags: int


def sort_replays(runs: Sequence[Run]) -> Replays:
    """Find out which runs replayed the same bag, and which answers are those of one policy.

    Policies of one label are one policy where their answers to the same looks are the same to the last digit, as of a
    float policy that several were compared with, and are told apart by their runs otherwise.

    :raises InputError: when a run's looks cannot be read
    """
    sorted_ = Replays()
    bags: dict[str, str] = {}
    tracks: dict[tuple[str, int], dict[str, Track]] = {}
    identities: dict[tuple[str, int], str] = {}
    for run in runs:
        bag = _name_bag(run, bags)
        recorded, answers = _read_actions(run)
        _merge_recorded(sorted_, bag, recorded, run)
        for label, actions in answers.items():
            motion = run.summary["motion"].get(label) or {}
            _add_track(sorted_, tracks, identities, bag, (label, _identify(run, label)),
                       Track([run.name], actions, motion))
    _name_policies(sorted_, tracks, several_bags=len(set(bags.values())) > 1)
    _remark_single(sorted_)
    return sorted_


def compare_looks(replays: Replays) -> Iterator[LookComparison]:
    """Every policy against the baseline by what was recorded, and the others with each other by the baseline.

    The first of the others is the one that the further ones are compared with by their distance from the baseline.
    """
    baseline = replays.baseline
    others = [name for name in replays.policies if name != baseline]
    actions = {name: {bag: track.actions for bag, track in tracks.items()} for name, tracks in replays.policies.items()}
    yield from _compare(RECORDED, replays.recorded, baseline, others, actions)
    if others:
        yield from _compare(baseline, actions[baseline], others[0], others[1:], actions)


def compare_motions(replays: Replays) -> Iterator[MotionComparison]:
    """Jerk and path of every policy over those of the baseline, bag by bag."""
    first = replays.policies[replays.baseline]
    for name, tracks in replays.policies.items():
        for quantity in _MOTIONS if name != replays.baseline else ():
            pairs = [(first[bag].motion.get(quantity), track.motion.get(quantity))
                     for bag, track in tracks.items() if bag in first]
            known = [(one, two) for one, two in pairs if one and two is not None]
            if known:
                ones, twos = zip(*known, strict=True)
                found = resample_ratio(ones, twos) if len(known) >= LEAST_UNITS else None
                yield MotionComparison(quantity, replays.baseline, name, sum(twos) / sum(ones),
                                       found and found[1:], len(known))


def _compare(yardstick: str, wanted: Mapping[str, Actions], first: str, others: Sequence[str],
             actions: Mapping[str, Mapping[str, Actions]]) -> Iterator[LookComparison]:
    for measure in MEASURES:
        def measure_bags(policy: str, measure: str = measure) -> dict[str, dict[Key, float]]:
            return {bag: measure_errors(found, wanted[bag], measure)
                    for bag, found in actions[policy].items() if bag in wanted}

        errors = measure_bags(first)
        for other in others:
            result = compare_errors(errors, measure_bags(other))
            if result is not None:
                yield LookComparison(yardstick, measure, first, other, result)


def _name_bag(run: Run, bags: dict[str, str]) -> str:
    # By its name, what it holds and when it was recorded; bags of a simulated clock may all begin at 0.
    facts = run.summary["bag"]
    name = str(facts.get("name") or run.name)
    key = json.dumps([name, facts.get("topics"), facts.get("duration_s"), run.summary["settings"].get("bag_start_ns")],
                     sort_keys=True)
    if key not in bags:
        bags[key] = f"{name} of {run.name}" if name in bags.values() else name
    return bags[key]


def _read_actions(run: Run) -> tuple[dict[Key, np.ndarray], dict[str, dict[Key, np.ndarray]]]:
    recorded: dict[Key, np.ndarray] = {}
    answers: dict[str, dict[Key, np.ndarray]] = {label: {} for label in run.summary["policies"]}
    for look in read_looks(run):
        key = (look["index"], look["stamp_ns"])
        try:
            if look.get("recorded"):
                recorded[key] = np.array(look["recorded"][:_MOTION_NUMBERS], dtype=np.float64)
            for label in look["answers"].keys() & answers.keys():
                answers[label][key] = np.array(look["answers"][label]["steps"][0][:_MOTION_NUMBERS], dtype=np.float64)
        except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise InputError(f"look {key[0]} of {run.folder} has no actions that can be read: {error}; run "
                             "`sqap replay` again with --fresh, or leave the folder out") from error
    return recorded, answers


def _merge_recorded(replays: Replays, bag: str, recorded: Mapping[Key, np.ndarray], run: Run) -> None:
    known = replays.recorded.setdefault(bag, {})
    others = sum(not np.array_equal(known[key], action, equal_nan=True)
                 for key, action in recorded.items() if key in known)
    if others:
        replays.remarks.append(f"{run.name} takes other actions as recorded at {others} looks of {bag} than the runs "
                               "before it, whose are taken; replay with the same command topics and rates.")
    for key, action in recorded.items():
        known.setdefault(key, action)


def _identify(run: Run, label: str) -> str:
    # All that decides a policy's answers but the bag: two checkpoints may bear the same label.
    settings = run.summary["settings"]
    knobs = dict((settings.get("policies") or {}).get(label) or {})
    # Where a checkpoint lies does not matter, but what it holds.
    knobs.pop("model.checkpoint", None)
    return json.dumps([(settings.get("checkpoints") or {}).get(label), knobs, settings.get("knobs"),
                       settings.get("instruction")], sort_keys=True)


def _add_track(replays: Replays, tracks: dict[tuple[str, int], dict[str, Track]],
               identities: dict[tuple[str, int], str], bag: str, policy: tuple[str, str], new: Track) -> None:
    # To the policy of its label that has answered this bag the same, or that is the same and has not answered it yet.
    label, identity = policy
    places = [place for name, place in tracks if name == label]
    for place in places:
        known = tracks[label, place].get(bag)
        shared = known.actions.keys() & new.actions.keys() if known else ()
        if known and shared and all(np.array_equal(known.actions[key], new.actions[key]) for key in shared):
            if label != FLOAT:
                both = " and ".join([*known.runs, *new.runs])
                replays.remarks.append(f"{label} gave the same answers on {bag} in {both}, to the last digit; they are "
                                       "shown as one.")
            known.runs.extend(new.runs)
            known.actions.update(new.actions)
            return
    free = (place for place in places if identities[label, place] == identity and bag not in tracks[label, place])
    place = next(free, len(places))
    identities[label, place] = identity
    tracks.setdefault((label, place), {})[bag] = new


def _name_policies(replays: Replays, tracks: Mapping[tuple[str, int], dict[str, Track]], *,
                   several_bags: bool) -> None:
    counts: dict[str, int] = {}
    for label, _ in tracks:
        counts[label] = counts.get(label, 0) + 1
    for (label, place), found in tracks.items():
        name = label
        if counts[label] > 1:
            name = f"{label} ({place + 1})" if several_bags else f"{label} of {next(iter(found.values())).runs[0]}"
        replays.policies[name], replays.labels[name] = found, label


def _remark_single(replays: Replays) -> None:
    bags: dict[str, set[str]] = {}
    for name, tracks in replays.policies.items():
        for bag, track in tracks.items():
            if track.actions:
                bags.setdefault(bag, set()).add(name)
    lonely = [bag for bag, names in bags.items() if len(names) < 2]
    if lonely:
        replays.remarks.append(f"Only one policy has replayed {', '.join(lonely)}; looks of different bags cannot be "
                               "paired. Replay the same bag with each policy.")
