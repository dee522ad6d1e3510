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

"""`sqap VERB`: one thin module per verb, imported only when it is asked for.

Results are files, and one line of JSON as the last line of stdout; prose and progress go to stderr. Exit codes:
0 done, 1 fell short or failed, 2 wrong use, 130 ended by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence

from sqap_vla_ros.errors import SqapError

INTERRUPTED = 130
# Verb to its module below sqap_vla_ros.cli and what it does.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "watch the simulated robot follow instructions, float and compressed"),
    "evaluate": ("evaluate", "measure success in closed loop, without ROS, on all cores"),
    "report": ("report", "write a run's page once more, or compare several runs in pairs on one page"),
    "infer": ("infer", "look at pictures once: the action, the tokens that stay, the time it takes"),
    "bench": ("bench", "measure how long an inference takes, float and compressed, stage by stage"),
    "soak": ("soak", "let faults loose on the node for minutes or nights, and judge every command it sends"),
    "overhead": ("overhead", "measure what ROS 2 adds to an inference: picture in, command out, and at rest"),
    "compress": ("compress", "quantize a checkpoint once and store it, to load without the float one"),
    "make-random": ("make_random", "write a checkpoint with random weights, to test a published model without its own"),
    "replay": ("replay", "let policies look at a recorded bag: what they would have done, how fast, how far apart"),
    "record-demo": ("record_demo", "record a bag of the simulated robot following instructions"),
    "observe": ("observe", "take pictures of the simulated robot at work, to calibrate a recipe on"),
    "train-demo": ("train_demo", "train the demo policy from nothing"),
    "activations": ("activations", "measure the decoder's outliers, and what rotation makes of them"),
    "sweep": ("sweep", "replay bags with many methods, pruned ratios and seeds, on all cores or a Ray cluster"),
    "info": ("info", "tell what a checkpoint is, or what this installation can run"),
}
_EPILOG = """Results are files and one line of JSON, the last on stdout; progress and prose go to stderr.
Exit codes: 0 done, 1 fell short or failed, 2 wrong use, 130 ended by Ctrl-C.

  sqap demo --help      flags and examples of a verb
"""


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser with every verb's name and one verb's flags.

    :param verb: the verb asked for, whose module is imported; None or an unknown one imports nothing
    """
    parser = argparse.ArgumentParser(
        prog="sqap", description="Quantized, token-pruned vision-language-action models on ROS 2.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (module, purpose) in VERBS.items():
        child = verbs.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.",
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == verb:
            implementation = importlib.import_module(f"sqap_vla_ros.cli.{module}")
            implementation.add_arguments(child)
            child.set_defaults(run=implementation.run)
    return parser


def end_politely() -> None:
    """Let a polite kill end the process as Ctrl-C does, which a shell ignores for what it starts in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((word for word in words if not word.startswith("-")), None)
    try:
        args = build_parser(verb).parse_args(words)
        return int(args.run(args))
    except SqapError as error:
        print(f"sqap {verb}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sqap_vla_ros"):
            raise
        print(f"sqap {verb}: the Python module '{error.name}' is not installed; source your ROS 2 installation, or run "
              "`make` in the repository, which installs everything into .venv", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sqap {verb}: ended by Ctrl-C", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
