"""Checkpoints: a folder with config.json, which names the family, and model.safetensors.

Tensors may be stored in half precision; a loaded model computes in float32. A compressed checkpoint, told by its
config.json, is read without the float one it was made from; see :mod:`~sqap_vla_ros.quantization.artifact`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import sqap_vla_ros
from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.demo import DemoConfig, DemoVla
from sqap_vla_ros.models.vla import VlaModel
from sqap_vla_ros.quantization.artifact import (
    CONFIG_FILE,
    TENSOR_FILE,
    Artifact,
    is_artifact,
    read_artifact,
    restore_artifact_,
)
from sqap_vla_ros.quantization.report import QuantizationReport
from sqap_vla_ros.quantization.stored_tensors import list_stored

STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ASSETS = Path(sqap_vla_ros.__file__).parent / "assets"
PACKAGED = ("demo",)


@dataclass(frozen=True)
class Family:
    """How a family's checkpoint becomes a model.

    :param read_config: the values of config.json to the model's configuration; raises CheckpointError
    :param build: a configuration to a model with unset weights
    """

    read_config: Callable[[dict[str, Any]], Any]
    build: Callable[[Any], nn.Module]


FAMILIES = {"demo": Family(DemoConfig.from_json, DemoVla)}


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds.

    :param model: ready for inference on the CPU
    :param artifact: what a compressed checkpoint tells of itself; None for a float one
    :param report: what its linears are; None for a float one
    """

    model: VlaModel
    artifact: Artifact | None
    report: QuantizationReport | None


@dataclass(frozen=True)
class CheckpointFacts:
    """What can be told of a checkpoint without reading its weights.

    :param folder: where it is
    :param family: of models
    :param model: without weights, as its configuration describes it; float also where the checkpoint is compressed
    :param artifact: what a compressed checkpoint tells of itself; None for a float one
    :param tensors: safetensors' type, and shape, of each tensor in the file
    :param file_bytes: size of each file
    """

    folder: Path
    family: str
    model: VlaModel
    artifact: Artifact | None
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    file_bytes: dict[str, int]


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """Folder of a checkpoint; a name in ``PACKAGED`` is one that comes with the package."""
    return ASSETS / str(checkpoint) if str(checkpoint) in PACKAGED else Path(checkpoint)


def load_model(folder: str | Path, *, engine: str = "cpu") -> VlaModel:
    """The model of :func:`load_checkpoint`."""
    return load_checkpoint(folder, engine=engine).model


def load_checkpoint(folder: str | Path, *, engine: str = "cpu") -> Checkpoint:
    """Read a checkpoint into a model on the CPU that computes in float32, ready for inference.

    :param folder: a folder as :func:`save_model` or
        :func:`~sqap_vla_ros.quantization.artifact.save_artifact` writes it, or a name in ``PACKAGED``
    :param engine: what multiplies the integers of a compressed one, by name
    :raises CheckpointError: naming the file or tensor that is missing, damaged or of another shape
    :raises ConfigError: for an unknown engine
    """
    folder = _find_folder(folder)
    values = _read_config(folder / CONFIG_FILE)
    model: Any = _build(folder / CONFIG_FILE, values)
    if is_artifact(values):
        artifact = read_artifact(folder, values)
        report = restore_artifact_(model, artifact, engine=engine)
        return Checkpoint(model.eval(), artifact, report)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(_read_tensors(folder / TENSOR_FILE, expected), assign=True)
    return Checkpoint(model.eval(), None, None)


def describe_checkpoint(folder: str | Path) -> CheckpointFacts:
    """Tell what a checkpoint is from its configuration and its tensors' header.

    :param folder: as for :func:`load_checkpoint`
    :raises CheckpointError: naming the file that is missing or damaged
    """
    folder = _find_folder(folder)
    values = _read_config(folder / CONFIG_FILE)
    model: Any = _build(folder / CONFIG_FILE, values)
    artifact = read_artifact(folder, values) if is_artifact(values) else None
    tensors = list_stored(folder / TENSOR_FILE)
    file_bytes = {name: (folder / name).stat().st_size for name in (CONFIG_FILE, TENSOR_FILE)}
    return CheckpointFacts(folder, values["family"], model, artifact, tensors, file_bytes)


def hash_checkpoint(folder: str | Path) -> dict[str, str]:
    """SHA-256 of a checkpoint's files, by name.

    :raises CheckpointError: when one cannot be read
    """
    folder = _find_folder(folder)
    hashes = {}
    for name in (CONFIG_FILE, TENSOR_FILE):
        digest = hashlib.sha256()
        try:
            with (folder / name).open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise CheckpointError(f"'{folder / name}' cannot be read: {error}") from error
        hashes[name] = digest.hexdigest()
    return hashes


def save_model(model: nn.Module, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write a checkpoint; each file appears whole or not at all.

    :param model: a float model of a known family, with ``config.to_json()``
    :param folder: created when missing; files of an earlier checkpoint are replaced
    :param dtype: how tensors are stored, one of ``STORED_DTYPES``
    :raises CheckpointError: when the folder cannot be written
    """
    folder = Path(folder)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in model.state_dict().items()}
    config: Any = model.config
    text = json.dumps(config.to_json(), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / TENSOR_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
        _replace(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write a checkpoint to '{folder}': {error}") from error


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(draft)
        draft.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(draft, path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def _find_folder(folder: str | Path) -> Path:
    found = checkpoint_folder(folder)
    if not found.is_dir():
        raise CheckpointError(f"no checkpoint folder at '{found}'; give a folder with {CONFIG_FILE} and "
                              f"{TENSOR_FILE}, or one of: {', '.join(PACKAGED)}")
    return found


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; a checkpoint folder holds {CONFIG_FILE} and {TENSOR_FILE}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is not readable as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object, it holds {type(values).__name__}")
    if values.get("family") not in list(FAMILIES):
        raise CheckpointError(f"'{path}' names the model family {values.get('family')!r}; known families are "
                              f"{', '.join(FAMILIES)}")
    return values


def _build(path: Path, values: dict[str, Any]) -> nn.Module:
    family = FAMILIES[values["family"]]
    try:
        with _NoDraws(), torch.device("meta"):
            return family.build(family.read_config(values))
    except CheckpointError as error:
        raise CheckpointError(f"'{path}': {error}") from error
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' describes a model that cannot be built: {error}") from error


class _NoDraws(TorchFunctionMode):
    # Weights come from the file. On the meta device even to draw none imports torch's compiler, which takes seconds.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _read_tensors(path: Path, expected: dict[str, torch.Size]) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; a checkpoint folder holds {CONFIG_FILE} and {TENSOR_FILE}")
    tensors = {}
    try:
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
            _check_names(path, stored, set(expected))
            for name, shape in expected.items():
                tensors[name] = _checked(path, name, file.get_tensor(name), shape)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"'{path}' is damaged or cut short: {error}") from error
    return tensors


def _check_names(path: Path, stored: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - stored), sorted(stored - expected)
    for names, fault in ((missing, "lacks"), (extra, "has, but the model does not know,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"'{path}' {fault} the tensor '{names[0]}'{more}; its {CONFIG_FILE} describes "
                                  "another model")


def _checked(path: Path, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.dtype not in STORED_DTYPES:
        raise CheckpointError(f"tensor '{name}' in '{path}' is {tensor.dtype}; allowed are "
                              f"{', '.join(map(str, STORED_DTYPES))}")
    if tensor.shape != shape:
        raise CheckpointError(f"tensor '{name}' in '{path}' has shape {tuple(tensor.shape)}; {CONFIG_FILE} describes "
                              f"{tuple(shape)}")
    tensor = tensor.to(torch.float32)
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"tensor '{name}' in '{path}' has values that are not finite")
    return tensor
