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

"""What policies would have done: every look of a bag given to each, kept on disk as it goes, and summed up.

One policy at a time is in memory. ``run.json`` says what was asked for, ``answers/`` has a file for each policy that
grows by a line per look; a replay that was cut short goes on behind the last whole one. In the end ``looks.jsonl`` has
it all, ``summary.json`` the figures, and ``overlays/`` what the first policy saw.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sqap_vla_ros.bags.answering import ANSWERS, Answerer, name_file
from sqap_vla_ros.bags.contract import Names, find_missing, list_wanted
from sqap_vla_ros.bags.looks import LookRecord, read_look
from sqap_vla_ros.bags.reading import Bag, open_bag
from sqap_vla_ros.bags.recorded import RecordedActions
from sqap_vla_ros.bags.replay_summary import summarize_replay
from sqap_vla_ros.bags.stepping import Stepper
from sqap_vla_ros.config import Config, build_config
from sqap_vla_ros.errors import ConfigError, InputError
from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions, write_json
from sqap_vla_ros.models.registry import hash_checkpoint

RUN_FILE, LOOKS_FILE, SUMMARY_FILE = "run.json", "looks.jsonl", "summary.json"
KIND = "replay"
# The robot stands still, so nothing is gained by not looking where it cannot be found.
REPLAY_KNOBS: Mapping[str, Any] = {"footprint.required": False}
Listener = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReplayRequest:
    """What to replay, and how.

    :param bag: folder or file
    :param out: folder of the results, created when missing
    :param policies: label and knobs by dotted name of each; the first is the one that is asked about
    :param knobs: of all policies, by dotted name
    :param instruction: given instead of the bag's own; empty for the bag's
    :param limit: looks at most; 0 for all
    :param namespace: of the node
    :param remap: topics to other names
    :param overlays: whether pictures of what the first policy saw are drawn
    """

    bag: Path
    out: Path
    policies: tuple[tuple[str, Mapping[str, Any]], ...]
    knobs: Mapping[str, Any] = field(default_factory=dict)
    instruction: str = ""
    limit: int = 0
    namespace: str = ""
    remap: Mapping[str, str] = field(default_factory=dict)
    overlays: bool = True

    @property
    def names(self) -> Names:
        """How topics are called in the bag."""
        return Names(self.namespace, self.remap)

    def config(self, knobs: Mapping[str, Any]) -> Config:
        """All knobs of one policy.

        :raises ConfigError: when one is not allowed
        """
        return build_config({**REPLAY_KNOBS, **self.knobs, **knobs})


def replay(request: ReplayRequest, on_step: Listener) -> dict[str, Any]:
    """Replay a bag, or go on where that was cut short.

    :param on_step: told of the stage, looks done, and looks in all, of which there may turn out to be fewer
    :return: what ``summary.json`` holds
    :raises InputError: when the bag cannot be used
    :raises ConfigError: when a knob is not allowed, or the folder holds a replay of something else
    :raises CheckpointError: when a policy cannot be loaded
    """
    began_s = time.monotonic()
    config, labels = request.config(request.policies[0][1]), [label for label, _ in request.policies]
    with open_bag(request.bag) as bag:
        complaints = [*_check_topics(bag, config, request), *bag.complaints]
        if config.control.ensemble_horizon > 1:
            complaints.append("control.ensemble_horizon blends answers in the node; here each is compared by itself")
        settings = describe_settings(request, bag)
        with _claim(request.out, settings):
            described, speed = {}, {}
            for number, (label, knobs) in enumerate(request.policies):
                answerer = Answerer(label, request.config(knobs), request.out,
                                    overlays=request.overlays and number == 0)
                speed[label] = _answer(bag, answerer, request, on_step)
                described[label] = answerer.described
                complaints += answerer.complaints
            recorded = RecordedActions(bag, config, request.names)
            looks = _merge(request, recorded)
            summary = summarize_replay(looks, config, labels)
            facts = {name: {"type": item.type_name, "count": item.count} for name, item in sorted(bag.topics.items())}
            summary |= {
                "bag": {"name": request.bag.name, "topics": facts,
                        "duration_s": round((bag.end_ns - bag.start_ns) * 1e-9, 3),
                        "pictures": count_sets(bag, config, request), "looks": len(looks),
                        "refused": dict(Counter(look.refused for look in looks if look.refused)),
                        "complaints": list(dict.fromkeys([*complaints, *recorded.complaints]))},
                "policies": described, "settings": settings, "versions": settings["versions"],
                "machine": describe_machine()}
            summary["timing"] |= {"wall_s": round(time.monotonic() - began_s, 1), "looks_per_s": speed}
            write_json(request.out / SUMMARY_FILE, summary)
    return summary


def is_replay(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    try:
        return bool(json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def read_looks(folder: Path) -> list[LookRecord]:
    """The looks of a finished replay.

    :raises InputError: when they cannot be read
    """
    try:
        lines = (folder / LOOKS_FILE).read_text(encoding="utf-8").splitlines()
        return [read_look(line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / LOOKS_FILE} cannot be read: {error}; replay the bag again") from error


def describe_settings(request: ReplayRequest, bag: Bag) -> dict[str, Any]:
    """Everything that decides what comes out, as plain JSON values."""
    held = {name: item.count for name, item in sorted(bag.topics.items())}
    asked = {**asdict(request), "bag": request.bag.name,
             "policies": {label: dict(knobs) for label, knobs in request.policies}}
    del asked["out"]
    settings = {"kind": KIND, **asked, "bag_messages": held, "bag_start_ns": bag.start_ns, "bag_end_ns": bag.end_ns,
                "versions": describe_versions(),
                "checkpoints": {label: hash_checkpoint(request.config(knobs).model.checkpoint)
                                for label, knobs in request.policies}}
    return dict(json.loads(json.dumps(settings, default=str)))


def _check_topics(bag: Bag, config: Config, request: ReplayRequest) -> list[str]:
    # What is done without, in sentences.
    missing = find_missing(list_wanted(config, request.names, request.instruction), bag.topics)
    vital = [f"{sentence}: {item.without}" for item, sentence in missing if item.required]
    if vital:
        raise InputError(f"{request.bag} cannot be replayed: {'; '.join(vital)}. It holds "
                         f"{', '.join(sorted(bag.topics))}; `sqap replay BAG --list` shows what is missing")
    return [f"{sentence}; {item.without}" for item, sentence in missing if item.without]


@contextmanager
def _claim(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    # The folder is this process's alone until the end.
    path = folder / RUN_FILE
    try:
        (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
        held = (folder / ANSWERS / "in_use").open("w")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}; take another folder") from error
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another process replays into {folder}; wait for it, or take another folder") from error
        if path.exists() and not is_replay(folder):
            raise ConfigError(f"{folder} holds something else than a replay; take another folder")
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
            raise ConfigError(f"{folder} holds another replay, as its {RUN_FILE} says; take another folder, or --fresh "
                              "to forget it")
        write_json(path, dict(settings))
        yield


def _answer(bag: Bag, answerer: Answerer, request: ReplayRequest, on_step: Listener) -> float | None:
    # Looks per second that reading and policy together made; None when nothing was left to do.
    total = count_sets(bag, answerer.config, request)
    done = answerer.finished
    on_step(answerer.label, done, total)
    if answerer.complete:
        return None
    answerer.open()
    began_s, index = time.monotonic(), -1
    try:
        stepper = Stepper(answerer.config, request.names, request.instruction, lambda kind, sentence: None)
        for index, look in enumerate(stepper.looks(bag)):
            if request.limit and index >= request.limit:
                break
            if index >= done:
                answerer.answer(index, look, stepper.finder)
                on_step(answerer.label, index + 1, total)
        answerer.finish([*bag.complaints, *stepper.complaints])
    finally:
        answerer.close()
    spent_s = time.monotonic() - began_s
    return round((index + 1 - done) / spent_s, 2) if spent_s > 0.0 else None


def count_sets(bag: Bag, config: Config, request: ReplayRequest) -> int:
    """How many looks there can be at most."""
    topics = {item.name for item in list_wanted(config, request.names, request.instruction)
              if item.type_name.endswith("Image")}
    counts = [bag.topics[name].count for name in topics if name in bag.topics]
    most = min(counts, default=0)
    return min(most, request.limit) if request.limit else most


def _merge(request: ReplayRequest, recorded: RecordedActions) -> list[LookRecord]:
    # One line for each look, with what all policies did and what was recorded.
    looks = []
    for parts in zip(*(_read_answers(request.out, label) for label, _ in request.policies), strict=True):
        first = parts[0]
        tool = None if first.tool is None else (np.array(first.tool[:3]), np.array(first.tool[3:]))
        looks.append(replace(first, refused=_join_refusals(request, parts),
                             recorded=recorded.action(first.stamp_ns, tool),
                             answers={label: answer for part in parts for label, answer in part.answers.items()}))
    text = "".join(f"{look.to_line()}\n" for look in looks)
    (request.out / LOOKS_FILE).write_text(text, encoding="utf-8")
    return looks


def _join_refusals(request: ReplayRequest, parts: Sequence[LookRecord]) -> str:
    reasons = {part.refused for part in parts}
    if len(reasons) == 1:
        return parts[0].refused
    return "; ".join(f"{label}: {part.refused}" for (label, _), part in zip(request.policies, parts, strict=True)
                     if part.refused)


def _read_answers(folder: Path, label: str) -> Iterator[LookRecord]:
    with (folder / ANSWERS / name_file(label)).open(encoding="utf-8") as lines:
        for line in lines:
            yield read_look(line)
