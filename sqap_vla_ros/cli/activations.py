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

"""`sqap activations`: how uneven the decoder's activations are, and what rotation makes of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sqap_vla_ros.cli.arguments import read_number
from sqap_vla_ros.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from sqap_vla_ros.evaluation.activations import ModelReport, Unevenness

DEFAULT_FRAMES = 24
# The first validation scene: figures may guide choices, so test scenes stay unseen.
DEFAULT_SEED = 2_000_000
# All activations are in memory at once, about 10 MB a picture.
_MOST_FRAMES = 100
_SHOWN = ("kurtosis", "peak_ratio", "input_sqnr_db", "output_sqnr_db")
_EPILOG = """examples:
  sqap activations                       the policy in the package
  sqap activations --compare smollm2     beside a language model trained by others

In DIR: activations.json, activations.png, activations.md (the tables, as Markdown).
Exit codes: 0 done, 1 failed, 2 wrong use, 130 ended by Ctrl-C.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.epilog = _EPILOG
    parser.add_argument("--checkpoint", default="demo", metavar="PATH",
                        help="folder of a checkpoint, or 'demo' for the one in the package (default: demo)")
    parser.add_argument("--frames", type=read_number(int, 1, _MOST_FRAMES), default=DEFAULT_FRAMES, metavar="N",
                        help=f"simulated pictures, each with its instruction (default: {DEFAULT_FRAMES})")
    parser.add_argument("--seed", type=read_number(int, 0, 10**9), default=DEFAULT_SEED, metavar="N",
                        help=f"first scene; each picture has the next (default: {DEFAULT_SEED})")
    parser.add_argument("--out", type=Path, default=Path("out/activations"), metavar="DIR",
                        help="where results go (default: out/activations)")
    parser.add_argument("--compare", choices=("smollm2",), help="also measure this model, on English text")


def run(args: argparse.Namespace) -> int:
    """Measure, report, print one line of JSON."""
    # torch, the simulator and the plots take a second to import, which nobody who asks for help should wait.
    from rich.console import Console

    from sqap_vla_ros.evaluation.activation_report import write_activations
    from sqap_vla_ros.evaluation.activations import SITES, measure_gaussian, measure_vla, summarize_site
    from sqap_vla_ros.evaluation.smollm2 import find_smollm2, load_smollm2, measure_smollm2
    from sqap_vla_ros.models.registry import checkpoint_folder, load_checkpoint

    console = Console(stderr=True)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {args.out} cannot be written: {error.strerror}; take another folder") from error
    other = None if args.compare is None else find_smollm2()
    loaded = load_checkpoint(args.checkpoint)
    if loaded.artifact is not None:
        raise ConfigError(f"--checkpoint {args.checkpoint} is compressed with the recipe "
                          f"'{loaded.artifact.recipe_name}', and activations are measured in a float model that can be "
                          f"rotated; give the one it was made from, '{loaded.artifact.origin.checkpoint}'")
    model = loaded.model
    console.print(f"measuring {args.checkpoint} on {args.frames} pictures", highlight=False, markup=False)
    reports = [measure_vla(checkpoint_folder(args.checkpoint).name, f"{args.frames} simulated pictures", model,
                           render_frames(args.frames, args.seed))]
    if other is not None:
        console.print(f"measuring {other.name}", highlight=False, markup=False)
        reports.append(measure_smollm2(load_smollm2(other)))
    gaussian = measure_gaussian(reports[0].tokens, model.decoder.config.hidden_size)
    command = f"sqap activations --frames {args.frames} --seed {args.seed}"
    command += f" --checkpoint {args.checkpoint}" if args.checkpoint != "demo" else ""
    command += f" --compare {args.compare}" if args.compare else ""
    files = write_activations(args.out, reports, gaussian, {
        "command": command, "checkpoint": args.checkpoint, "frames": args.frames, "first_seed": args.seed})
    console.print(build_table(reports, gaussian))
    print(json.dumps({"files": files, "models": {
        report.name: {site: {figure: {state: round(entry["median"], 3) for state, entry in states.items()}
                             for figure, states in summarize_site(report.of_site(site)).items()} for site in SITES}
        for report in reports}}))
    return 0


def render_frames(count: int, first_seed: int) -> Iterator[tuple[np.ndarray, str]]:
    """The first picture of each scene from ``first_seed`` on, with the instruction of a base task."""
    from sqap_vla_ros.simulation.parameters import build_tabletop
    from sqap_vla_ros.simulation.suite import choose_trials

    trials = choose_trials("base", count, first_seed)
    tabletop = build_tabletop(trials[0].layout)
    try:
        for trial in trials:
            tabletop.reset(trial.seed)
            yield tabletop.render(), trial.task.instruction
    finally:
        tabletop.close()


def build_table(reports: Sequence[ModelReport], gaussian: Unevenness) -> Table:
    """What matters most, for a terminal; the Markdown has every figure."""
    from rich.table import Table

    from sqap_vla_ros.evaluation.activation_report import HEADINGS, format_rows
    from sqap_vla_ros.evaluation.activations import FIGURES

    shown = [index for index, figure in enumerate(FIGURES) if figure in _SHOWN]
    table = Table(title="Median over the layers, as trained → rotated", title_justify="left")
    table.add_column("model")
    table.add_column("site")
    for index in shown:
        table.add_column(HEADINGS[FIGURES[index]], justify="right")
    previous = ""
    for name, site, *cells in format_rows(reports, gaussian, "median"):
        if previous and name != previous:
            table.add_section()
        previous = name
        table.add_row(name, site, *(cells[index] for index in shown))
    return table
