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

"""Build file of an ament_python package; pip and colcon both read it."""

import hashlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

NAME = "sqap_vla_ros"


def files_under(folder: str) -> list[str]:
    """Every file below ``folder``, relative to the package (older setuptools do not know ``**``)."""
    return sorted(str(path.relative_to(NAME)) for path in Path(NAME, folder).rglob("*") if path.is_file())


def shared(folder: str, pattern: str) -> tuple[str, list[str]]:
    """A row of ``data_files``: where a folder's files go below the prefix."""
    return f"share/{NAME}/{folder}".rstrip("/"), sorted(map(str, Path(folder).glob(pattern)))


# So that a library is never taken for that of other sources.
C_SOURCES = sorted(map(str, Path(NAME).glob("*.c")))
C_DIGEST = hashlib.sha256(b"".join(Path(path).read_bytes() for path in C_SOURCES)).hexdigest()[:16]

setup(
    name=NAME,
    version="0.1.0",
    description="Runs a quantized and token-pruned vision-language-action model as a ROS 2 node.",
    license="Apache-2.0",
    maintainer="sqap_vla_ros maintainers",
    maintainer_email="maintainers@sqap-vla.invalid",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: files_under("assets")},
    # Not a Python module but a library that ctypes opens; as an extension it is compiled by whatever installs this.
    ext_modules=[Extension(f"{NAME}._fused_rows", C_SOURCES, define_macros=[("FUSED_SOURCES", f'"{C_DIGEST}"')],
                           extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"])],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        shared("", "package.xml"),
        shared("launch", "*.launch.py"),
        shared("config", "*.*"),
        shared("config/sros2", "*.xml"),
        # Beside the package for `sqap`, and where a robot's launch files look.
        (f"share/{NAME}/config", [f"{NAME}/assets/fastdds.xml"]),
    ],
    zip_safe=False,
    python_requires=">=3.10",
    # rclpy and the message packages are not here: they come with ROS 2, or from the wheels that `make` installs.
    install_requires=[
        "backports.zstd>=1; python_version < '3.14'",
        "imageio-ffmpeg>=0.5",
        "lz4>=4",
        "matplotlib>=3.5",
        "mujoco>=3.3,<3.4",
        "numpy>=1.23",
        "opencv-python-headless>=4.8,<5",
        "pillow>=9",
        "plotly>=6",
        "pyyaml>=5.4",
        "rich>=13",
        "rosbags>=0.11",
        "safetensors>=0.4",
        "psutil>=5.8",
        "scipy>=1.8",
        "tokenizers>=0.19",
        "torch>=2.6",
        "tqdm>=4.60",
        "transformers>=4.45",
    ],
    extras_require={
        "test": ["pytest>=7", "pytest-timeout>=2"],
        # Reads what we write; apart from the others, since beside an older torch it cannot be installed.
        "formats": ["compressed-tensors>=0.20; python_version>='3.11'"],
        # For `sqap sweep`.
        "sweep": ["ray>=2.60"],
        "dev": ["pytest>=7", "pytest-timeout>=2", "pytest-xdist>=3.2", "colcon-common-extensions>=0.3",
                "flake8>=4", "mypy>=1.10", "pydocstyle>=6.1", "ray>=2.60", "ruff>=0.5", "selenium>=4.20",
                "types-PyYAML"],
    },
    entry_points={
        "console_scripts": [
            "sqap = sqap_vla_ros.cli.main:main",
            "policy_node = sqap_vla_ros.ros.policy_node:main",
            "watchdog_node = sqap_vla_ros.ros.watchdog_node:main",
            "sim_robot_node = sqap_vla_ros.simulation.robot_node:main",
        ],
    },
)
