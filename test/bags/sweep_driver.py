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

"""A sweep whose work is a short sleep that leaves a trace; tests run it as a process of its own, and kill it.

``python sweep_driver.py OUT BAG,BAG... SECONDS [resume]``: six cells a bag, two at a time. A bag called ``broken`` or
``defect`` does what its name says; the first cell of one called ``deadly`` kills its worker.
"""

import os
import signal
import sys
import time
from pathlib import Path

from sqap_vla_ros.bags.sweep_folder import SweepFolder
from sqap_vla_ros.bags.sweep_plan import Sweep, plan_cells
from sqap_vla_ros.bags.sweeping import Crew, run_cells
from sqap_vla_ros.errors import InputError
from sqap_vla_ros.evaluation.methods import Method
from sqap_vla_ros.evaluation.summary import write_json

SECONDS = float(sys.argv[3])


def sleep(cell):
    """Write who works on the cell, wait, and write a summary as a replay does."""
    with (cell.folder.parents[1] / "begun.txt").open("a") as trace:
        trace.write(f"{cell.name} {os.getpid()}\n")
    time.sleep(SECONDS)
    if cell.bag_name == "broken.mcap":
        raise InputError("the bag is empty; record it again")
    if cell.bag_name == "defect.mcap":
        raise RuntimeError("no such sum")
    label = cell.method.name
    summary = {"kind": "replay", "bag": {"looks": 3}, "compared": [],
               "tokens": {label: {"kept_mean": 154.0, "total": 256, "gripper_kept_mean": None}},
               "timing": {label: {"latency_ms": {"total": {"p50": 10.0, "p95": 12.5}}, "deadline_misses": 0}}}
    write_json(cell.folder / "summary.json", summary)
    if cell.name == "float__deadly.mcap__seed0":
        # Finished, and nobody is told but the folder.
        os.kill(os.getpid(), signal.SIGKILL)
    return summary


def main():
    """Run the cells."""
    out, names = Path(sys.argv[1]), sys.argv[2].split(",")
    bags = {f"{name}.mcap": out.parent / f"{name}.mcap" for name in names}
    for bag in bags.values():
        bag.touch()
        os.utime(bag, (0, 0))
    sweep = Sweep("demo", (Method("float"), Method("w4a4", "sqap", 0.4)), bags, seeds=(0, 1, 2))
    cells = plan_cells(sweep, out / "cells", {}, {})
    with SweepFolder(out, sweep, cells, resume="resume" in sys.argv) as folder:
        finished = {landed.cell.name for landed in folder.landed}
        for landed in run_cells([cell for cell in cells if cell.name not in finished], sleep,
                                Crew(workers=2, log=out / "ray.log")):
            folder.add(landed)


if __name__ == "__main__":
    main()
