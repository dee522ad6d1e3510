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

"""What README.md and config/policy.yaml repeat of the code; ``python -m sqap_vla_ros.cli.reference`` renews them.

Run from the repository, with the path of a ``summary.json`` to renew the measured figures too. Whatever lies between
two markers is replaced; a test fails when it is out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.knobs import Knob
from sqap_vla_ros.ros.interface import POLICY_NODE, SIM_ROBOT, WATCHDOG_NODE, format_table
from sqap_vla_ros.ros.watchdog_node import PARAMETERS as WATCHDOG_PARAMETERS
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.parameters import PARAMETERS, RANGES

README, POLICY_YAML = Path("README.md"), Path("config/policy.yaml")
_HEADER = """# Every parameter of policy_node with its default. Written by `python -m sqap_vla_ros.cli.reference`.
/**/policy_node:
  ros__parameters:
    use_sim_time: false
    autostart: false
"""


def format_knobs() -> str:
    """Parameters of the policy's node as a Markdown table."""
    lines = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | `{_plain(value)}` | {_allowed(knob)} | {knob.description} |"
              for name, knob, value in iterate_knobs(Config())]
    return "\n".join(lines)


def format_robot() -> str:
    """Parameters of the simulated robot as a Markdown table."""
    lines = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | `{_plain(default)}` | | {text} |" for name, (default, text) in PARAMETERS.items()]
    texts = read_field_texts()
    for entry in fields(Layout):
        low, high = RANGES[entry.name]
        lines.append(f"| `layout.{entry.name}` | `{_plain(entry.default)}` | {low:g} to {high:g} | "
                     f"{texts[entry.name][0].upper()}{texts[entry.name][1:]}. |")
    return "\n".join(lines)


def format_watchdog() -> str:
    """Parameters of the watchdog as a Markdown table."""
    lines = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | `{_plain(default)}` | {low:g} to {high:g} | {text} |"
              for name, (default, low, high, text) in WATCHDOG_PARAMETERS.items()]
    return "\n".join(lines)


def read_field_texts() -> dict[str, str]:
    """What the docstring of :class:`Layout` says of each field."""
    texts = {}
    for part in (Layout.__doc__ or "").split(":param ")[1:]:
        name, _, text = part.partition(":")
        texts[name] = " ".join(text.split())
    return texts


def format_policy_yaml() -> str:
    """The parameter file of the policy's node, every knob with its meaning."""
    lines, section = [], ""
    for name, knob, value in iterate_knobs(Config()):
        group, _, leaf = name.partition(".")
        if group != section:
            lines.append(f"    {group}:")
            section = group
        allowed = _allowed(knob)
        lines.append(f"      # {knob.description}{f' Allowed: {allowed}.' if allowed else ''}")
        lines.append(f"      {leaf}: {_plain(value, quoted=True)}")
    return _HEADER + "\n".join(lines) + "\n"


def format_results(summary: dict[str, Any]) -> str:
    """What a demo measured, as a Markdown table with its conditions.

    :param summary: what ``summary.json`` holds
    """
    rows = [value for value in summary.values() if isinstance(value, dict) and "latency_ms" in value]
    count, machine, settings = rows[0]["episodes"], summary["machine"], summary["settings"]
    lines = [f"Measured by `sqap demo --episodes {count} --seed {settings['first_seed']}` on {machine['processor']}, "
             f"{machine['cores']} cores, torch {summary['versions']['torch']}:", "",
             "| | " + " | ".join(f"`{row['method']}`" for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    table = {"success": [f"{row['successes']} of {row['episodes']}" for row in rows],
             "95 % interval": [f"{row['interval'][0]:.0%} to {row['interval'][1]:.0%}" for row in rows]}
    for stage in rows[0]["latency_ms"]:
        times = [row["latency_ms"][stage] for row in rows]
        table[f"{stage}, ms p50 / p95"] = [f"{entry['p50']:.1f} / {entry['p95']:.1f}" for entry in times]
    table["visual tokens kept"] = [f"{row['kept_tokens']} of {row['total_tokens']}" for row in rows]
    table["decoder weights, MB"] = [f"{row['weight_bytes'] / 1e6:.2f}" for row in rows]
    return "\n".join(lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in table.items()])


def fill_markers(text: str, sections: dict[str, str]) -> str:
    """The README with sections renewed.

    :param sections: what belongs between the markers, by their name
    """
    for name, content in sections.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{README} lacks the markers '{begin}' and '{end}'")
        text = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return text


def format_sections() -> dict[str, str]:
    """Everything in the README that repeats the code."""
    return {"policy_node topics": format_table(POLICY_NODE), "sim_robot topics": format_table(SIM_ROBOT),
            "watchdog_node topics": format_table(WATCHDOG_NODE), "policy_node parameters": format_knobs(),
            "sim_robot parameters": format_robot(), "watchdog_node parameters": format_watchdog()}


def main(arguments: Sequence[str]) -> int:
    """Rewrite README.md and config/policy.yaml.

    :param arguments: path of the ``summary.json`` whose figures the README shall show; without one they stay
    """
    sections = format_sections()
    for path in arguments:
        sections["results"] = format_results(json.loads(Path(path).read_text(encoding="utf-8")))
    README.write_text(fill_markers(README.read_text(encoding="utf-8"), sections), encoding="utf-8")
    POLICY_YAML.write_text(format_policy_yaml(), encoding="utf-8")
    return 0


def _allowed(knob: Knob) -> str:
    if knob.choices:
        return knob.choices_text
    if knob.minimum is not None and knob.maximum is not None:
        return f"{knob.minimum:g} to {knob.maximum:g}"
    return ""


def _plain(value: Any, *, quoted: bool = False) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_plain(item, quoted=quoted) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"' if quoted or not value else value
    return str(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
