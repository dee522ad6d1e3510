"""`sqap info`: what is installed, and what each knob is."""

from __future__ import annotations

import argparse
import json
import sys

from sqap_vla_ros.config import Config, iterate_knobs
from sqap_vla_ros.evaluation.summary import describe_machine, describe_versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--knobs", action="store_true", help="list every knob with its value and meaning")


def run(args: argparse.Namespace) -> int:
    """Print machine and versions."""
    machine, versions = describe_machine(), describe_versions()
    for name, value in {**machine, **versions}.items():
        print(f"{name:14}{value if value is not None else 'not installed'}", file=sys.stderr)
    knobs = {name: value for name, _, value in iterate_knobs(Config())}
    if args.knobs:
        for name, knob, value in iterate_knobs(Config()):
            print(f"{name:32}{value!s:24}{knob.description}", file=sys.stderr)
    print(json.dumps({"machine": machine, "versions": versions, "knobs": knobs}))
    return 0
