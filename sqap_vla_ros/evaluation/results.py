"""Finished episodes to numbers: success by group, kind and colour; each method against the first, scene by scene."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqap_vla_ros.evaluation.statistics import difference_interval, summarize_counts, wilson_interval


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode; a line of ``episodes.jsonl``.

    :param method: what played, as on the command line
    :param seed: the scene
    :param group: what it counts for: a task of the base suite, a difficulty of the hard one
    :param task: kind of the task
    :param color: of the block that the task is about
    :param instruction: the task in words
    :param success: whether it was done in time
    :param steps: control steps until then, or all that were allowed
    :param jerk: mean commanded jerk, m/s^3; None for fewer than 3 steps
    :param nearest: block over which the gripper ended
    :param target: block that the instruction meant
    :param replaced: block that the scene's own task meant, when the instruction was exchanged; empty otherwise
    """

    method: str
    seed: int
    group: str
    task: str
    color: str
    instruction: str
    success: bool
    steps: int
    jerk: float | None
    nearest: str
    target: str
    replaced: str = ""


def summarize_records(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """Success with its interval, steps to success and jerk of some episodes.

    :return: ``success`` (0 to 1), ``interval``, ``successes``, ``episodes``, ``steps_to_success`` (median and p90 over
        successes), ``jerk_m_s3`` (mean over episodes), and, of exchanged instructions, ``went_to``
    """
    successes, episodes = sum(record.success for record in records), len(records)
    jerks = [record.jerk for record in records if record.jerk is not None]
    summary = {
        "success": round(successes / episodes, 4) if episodes else 0.0,
        "interval": [round(bound, 4) for bound in wilson_interval(successes, episodes)],
        "successes": successes,
        "episodes": episodes,
        "steps_to_success": summarize_counts([record.steps for record in records if record.success]),
        "jerk_m_s3": round(sum(jerks) / len(jerks), 3) if jerks else None,
    }
    if any(record.replaced for record in records):
        summary["went_to"] = {
            "named": sum(record.nearest == record.target for record in records),
            "replaced": sum(record.nearest == record.replaced for record in records),
            "elsewhere": sum(record.nearest not in (record.target, record.replaced) for record in records),
        }
    return summary


def summarize_method(records: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """One method's episodes as a whole, by group (``tasks``), by colour, and by kind and colour."""
    return {
        **summarize_records(records),
        "tasks": _split(records, lambda record: record.group, summarize_records),
        "colors": _split(records, lambda record: record.color, summarize_records),
        "kinds": _split(records, lambda record: record.task, lambda part: {
            **summarize_records(part), "colors": _split(part, lambda record: record.color, summarize_records)}),
    }


def summarize_methods(records: Sequence[EpisodeRecord], methods: Sequence[str]) -> dict[str, Any]:
    """Every method's numbers, and what each further method changes against the first.

    :param records: in any order
    :param methods: names in the order wanted; the first is what others are compared with
    :return: ``methods`` and ``compared``, by name
    """
    ordered = sorted(records, key=lambda record: record.seed)
    by_method = {name: [record for record in ordered if record.method == name] for name in methods}
    first = methods[0]
    return {
        "methods": {name: {"method": name, **summarize_method(part)} for name, part in by_method.items()},
        "compared": {name: {"with": first, **compare_records(by_method[first], by_method[name])}
                     for name in methods[1:]},
    }


def compare_records(first: Sequence[EpisodeRecord], other: Sequence[EpisodeRecord]) -> dict[str, Any]:
    """The other method's success rate minus the first's over the scenes that both have finished.

    :return: ``difference`` with its ``interval``, and McNemar's four counts: ``both``, ``only_first``, ``only_this``,
        ``neither``
    """
    outcomes = {record.seed: record.success for record in first}
    pairs = [(outcomes[record.seed], record.success) for record in other if record.seed in outcomes]
    both, only_first, only_this, neither = (
        pairs.count(outcome) for outcome in ((True, True), (True, False), (False, True), (False, False)))
    low, high = difference_interval(both, only_this, only_first, neither)
    return {
        "difference": round((only_this - only_first) / len(pairs), 4) if pairs else 0.0,
        "interval": [round(low, 4), round(high, 4)],
        "episodes": len(pairs),
        "both": both, "only_first": only_first, "only_this": only_this, "neither": neither,
    }


def _split(records: Sequence[EpisodeRecord], key: Callable[[EpisodeRecord], str],
           summarize: Callable[[Sequence[EpisodeRecord]], dict[str, Any]]) -> dict[str, Any]:
    # In the order of first appearance.
    parts: dict[str, list[EpisodeRecord]] = {}
    for record in records:
        parts.setdefault(key(record), []).append(record)
    return {name: summarize(part) for name, part in parts.items()}
