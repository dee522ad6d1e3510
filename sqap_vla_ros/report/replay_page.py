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

"""A replay as a page: how far each policy is from what was recorded and from the others, how fast, and what it saw."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sqap_vla_ros.data import ACTION_NAMES
from sqap_vla_ros.report.numbers import DASH, format_number, format_share
from sqap_vla_ros.report.page import Frame, Page, Plot, Scrubber, Section, Table, Tile
from sqap_vla_ros.report.replay_plots import (
    RECORDED,
    TOTAL,
    UNITS,
    measure_times,
    plot_actions,
    plot_deviation,
    plot_gripper_tokens,
    plot_kept_tokens,
    plot_latency,
)

MAX_PICTURES = 240
PICTURE_PX, PICTURE_QUALITY, PICTURE_BYTES = 360, 50, 4_800_000

Values = Mapping[str, Any]


def build_replay_page(summary: Values, looks: Sequence[Values], folder: Path) -> Page:
    """The page of a replay; what was not measured is left out, or the page says why it is not there.

    :param summary: content of ``summary.json``
    :param looks: lines of ``looks.jsonl`` in their order
    :param folder: where ``overlays`` lies, with a picture for some of the looks
    """
    bag, labels = _part(summary, "bag"), list(_part(summary, "policies"))
    sections = [_show_actions(looks, labels, folder), _compare(summary, looks, labels),
                _show_tokens(summary, looks, labels), _show_latency(summary, looks, labels), _show_motion(summary),
                _show_bag(summary), _show_settings(summary)]
    return Page(f"Replay of {bag.get('name') or 'a bag'}", _describe_run(bag, labels),
                list(_list_tiles(summary, labels)), [section for section in sections if section],
                [str(one) for one in bag.get("complaints") or ()])


def _part(values: Values, *names: str) -> Values:
    """What lies below these names, empty where there is nothing."""
    for name in names:
        values = values.get(name) or {}
    return values


def _describe_run(bag: Values, labels: Sequence[str]) -> str:
    facts = [" and ".join((", ".join(labels[:-1]), labels[-1]) if len(labels) > 1 else labels),
             f"{format_number(bag.get('looks'))} looks", format_number(bag.get("duration_s"), "s")]
    return " \u00b7 ".join(fact for fact in facts if fact and DASH not in fact)


def _list_tiles(summary: Values, labels: Sequence[str]) -> Iterator[Tile]:
    first = labels[0] if labels else ""
    yield from _tile_looks(_part(summary, "bag"))
    yield from _tile_headline(summary, first)
    yield from _tile_latency(_part(summary, "timing"), first, labels[1:])
    yield from _tile_tokens(_part(summary, "tokens", first))
    tf = _part(summary, "tf")
    if tf.get("hit_rate") is not None:
        yield Tile("TF hit rate", format_share(tf["hit_rate"]), f"of {format_number(tf.get('looks'))} looks")


def _tile_looks(bag: Values) -> Iterator[Tile]:
    refused = sum(count or 0 for count in _part(bag, "refused").values())
    if bag.get("looks") is not None:
        yield Tile("Looks", format_number(bag["looks"]), f"{format_number(refused)} refused" if refused
                   else f"in {format_number(bag.get('duration_s'), 's')}")


def _tile_headline(summary: Values, first: str) -> Iterator[Tile]:
    rows = [row for row in summary.get("compared") or () if row.get("policy") == first and row.get("looks")]
    # What compression costs is told by the other policy; what was recorded also differs for other reasons.
    row = min(rows, key=lambda row: row.get("with") == RECORDED, default=None)
    if row is None:
        return
    other, cosine = _name_reference(row["with"]), _part(row, "cosine")
    if cosine.get("mean") is not None:
        yield Tile(f"Cosine to {other}", format_number(cosine["mean"], digits=4),
                   f"least {format_number(cosine.get('min'), digits=4)}")
    if row.get("mae") is not None:
        yield Tile(f"MAE to {other}", format_number(row["mae"]), f"MSE {format_number(row.get('mse'))}")
    if row.get("gripper_agreement") is not None:
        yield Tile("Gripper agreement", format_share(row["gripper_agreement"]), f"with {other}")


def _tile_latency(timing: Values, first: str, others: Sequence[str]) -> Iterator[Tile]:
    total = _part(timing, first, "latency_ms", TOTAL)
    if total.get("p50") is not None:
        theirs = [f"{label} {format_number(median, 'ms')}" for label in others
                  if (median := _part(timing, label, "latency_ms", TOTAL).get("p50")) is not None]
        yield Tile("Latency, median", format_number(total["p50"], "ms"),
                   "; ".join((f"p99 {format_number(total.get('p99'), 'ms')}", *theirs)))
    if _part(timing, first).get("deadline_misses") is not None:
        yield Tile("Deadline misses", format_number(timing[first]["deadline_misses"]),
                   f"deadline {format_number(timing[first].get('deadline_ms'), 'ms')}")


def _tile_tokens(tokens: Values) -> Iterator[Tile]:
    kept, total = tokens.get("kept_mean"), tokens.get("total")
    if kept is not None:
        yield Tile("Tokens kept", format_number(kept), f"of {format_number(total)}"
                   + (f", {format_share(kept / total)}" if total else ""))
    if tokens.get("gripper_kept_mean") is not None:
        yield Tile("Gripper tokens kept", format_share(tokens["gripper_kept_mean"]),
                   f"mean of {format_number(tokens.get('gripper_looks'))} looks")


def _name_reference(name: str) -> str:
    return "the recording" if name == RECORDED else name


def _gather(title: str, note: str, *parts: Table | Plot | Scrubber | None) -> Section | None:
    there = [part for part in parts if part and not (isinstance(part, Table) and not part.rows)]
    return Section(title, note, there) if there else None


def _collect_pictures(looks: Sequence[Values], labels: Sequence[str], folder: Path) -> Scrubber | None:
    drawn = [(path, look, at_s) for look, at_s in zip(looks, measure_times(looks), strict=True)
             if (path := folder / "overlays" / f"{look['index']:06d}.jpg").is_file()]
    # Evenly spaced, the first and the last among them.
    count = min(len(drawn), MAX_PICTURES)
    chosen = [drawn[place * (len(drawn) - 1) // max(count - 1, 1)] for place in range(count)]
    frames = [Frame(_shrink(path), _describe_look(look, labels), at_s) for path, look, at_s in chosen]
    while sum(len(frame.jpeg) for frame in frames) > PICTURE_BYTES:
        frames = frames[::2]
    return Scrubber(frames) if frames else None


def _shrink(path: Path) -> bytes:
    # As large as the page shows it, so that the file stays small.
    shrunk = io.BytesIO()
    with Image.open(path) as picture:
        picture.thumbnail((PICTURE_PX, PICTURE_PX), Image.Resampling.LANCZOS)
        picture.save(shrunk, "JPEG", quality=PICTURE_QUALITY)
    return shrunk.getvalue()


def _describe_look(look: Values, labels: Sequence[str]) -> str:
    answer = look["answers"].get(labels[0]) if labels else None
    facts = [f"look {look['index']}", f"\u201c{look['instruction']}\u201d" if look.get("instruction") else "",
             f"{answer['kept']} of {answer['total']} tokens" if answer else "",
             f"TF {look['tf']}" if look.get("tf") not in (None, "exact") else "", look.get("refused") or ""]
    return " \u00b7 ".join(fact for fact in facts if fact)


def _show_actions(looks: Sequence[Values], labels: Sequence[str], folder: Path) -> Section | None:
    pictures, actions = _collect_pictures(looks, labels, folder), plot_actions(looks, labels)
    notes = []
    if actions:
        notes.append("The first step of each policy's chunk, beside what was recorded."
                     if any(look.get("recorded") for look in looks)
                     else "The first step of each policy's chunk; the bag holds no recorded commands.")
    if pictures:
        notes.append("Drag the slider, press Play, or use the left and right arrow keys; a dotted line in the plots "
                     "marks the moment, and a click there goes to it.")
    return _gather("Pictures and actions" if pictures else "Actions", " ".join(notes), pictures, actions)


def _compare(summary: Values, looks: Sequence[Values], labels: Sequence[str]) -> Section:
    rows = [row for row in summary.get("compared") or () if row.get("looks")]
    if not rows:
        return Section("Comparison", "Nothing could be compared: no look has both an answer of a policy and a recorded "
                       "command or the answer of another policy. Replay with a second policy, or record the commands.")
    overview = Table(("Policy", "With", "Looks", "MSE", "MAE", "Cosine, mean", "Cosine, least", "Gripper agreement"), [
        (row["policy"], row["with"], format_number(row["looks"]), format_number(row.get("mse")),
         format_number(row.get("mae")), format_number(_part(row, "cosine").get("mean"), digits=4),
         format_number(_part(row, "cosine").get("min"), digits=4), format_share(row.get("gripper_agreement")))
        for row in rows])
    return Section("Comparison", "Differences of actions on the same looks. A cosine near 1 can still add up to a "
                   "robot that is elsewhere: see the deviation.",
                   [part for part in (overview, plot_deviation(looks, labels, rows, summary.get("step_period_s")),
                                      *map(_list_dimensions, rows)) if part])


def _list_dimensions(row: Values) -> Table:
    return Table(("Dimension", "MSE", "MAE", "Drift"), [
        (f"{name} ({UNITS[name]})" if name in ACTION_NAMES[:-1] else name,
         *(format_number(_part(row, "dimensions", name).get(measure)) for measure in ("mse", "mae", "drift")))
        for name in _part(row, "dimensions")], f"{row['policy']} against {_name_reference(row['with'])}")


def _show_tokens(summary: Values, looks: Sequence[Values], labels: Sequence[str]) -> Section | None:
    table = Table(("Policy", "Kept, mean", "Of", "Gripper tokens kept", "Looks with gripper"), [
        (label, format_number(row.get("kept_mean")), format_number(row.get("total")),
         format_share(row.get("gripper_kept_mean")), format_number(row.get("gripper_looks")))
        for label, row in _part(summary, "tokens").items()])
    kept = plot_kept_tokens(looks, labels)
    return _gather("Visual tokens", "Which rule kept how many tokens, and whether those that show the gripper stayed."
                   if kept else "No policy prunes; every visual token stays.",
                   kept, plot_gripper_tokens(looks, labels) if kept else None, table)


def _show_latency(summary: Values, looks: Sequence[Values], labels: Sequence[str]) -> Section | None:
    tables = [Table(("Stage", "p50 (ms)", "p95 (ms)", "p99 (ms)", "max (ms)"), [
        (stage, *(format_number(row.get(level)) for level in ("p50", "p95", "p99", "max")))
        for stage, row in _part(summary, "timing", label, "latency_ms").items()],
        f"{label}{_describe_deadline(_part(summary, 'timing', label))}") for label in labels]
    return _gather("Latency", "Wall time on the machine of the replay, by stage.",
                   plot_latency(looks, labels), *tables)


def _describe_deadline(timing: Values) -> str:
    if timing.get("deadline_misses") is None:
        return ""
    return (f": {format_number(timing['deadline_misses'])} beyond the deadline of "
            f"{format_number(timing.get('deadline_ms'), 'ms')}")


def _show_motion(summary: Values) -> Section | None:
    return _gather("Motion", "How rough the commanded motion is, and how long its path.", Table(
        ("Commands", "Mean jerk (m/s\u00b3)", "Path (m)"),
        [(label, format_number(row.get("jerk_m_s3")), format_number(row.get("path_m")))
         for label, row in _part(summary, "motion").items() if row]))


def _show_bag(summary: Values) -> Section | None:
    bag, tf = _part(summary, "bag"), _part(summary, "tf")
    looks = tf.get("looks")
    known = [name for name in ("exact", "latest", "none", "unasked") if tf.get(name) is not None]
    return _gather("Bag", "What it holds, whether TF knew where the robot was, and what could not be used.", Table(
        ("Topic", "Type", "Messages"), [(topic, facts.get("type") or DASH, format_number(facts.get("count")))
                                        for topic, facts in _part(bag, "topics").items()]), Table(
        ("TF", "Looks", "Share"), [(name, format_number(tf[name]), format_share(tf[name] / looks if looks else None))
                                   for name in known]), Table(
        ("Refused because", "Looks"), [(reason, format_number(count))
                                       for reason, count in _part(bag, "refused").items()]))


def _show_settings(summary: Values) -> Section | None:
    policies = [Table(("Policy", label), _list_values(values)) for label, values in _part(summary, "policies").items()]
    # The bag's messages and each policy's latency are above.
    settings = {name: value for name, value in _part(summary, "settings").items() if name != "bag_messages"}
    speed = {name: value for name, value in _part(summary, "timing").items() if name not in _part(summary, "policies")}
    return _gather("How it was run", "To run it again.", *policies, *(
        Table((title, "Value"), _list_values(values)) for title, values in (
            ("Settings", settings), ("Versions", _part(summary, "versions")), ("Machine", _part(summary, "machine")),
            ("Speed", speed))))


def _list_values(values: Values, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _list_values(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return rows
