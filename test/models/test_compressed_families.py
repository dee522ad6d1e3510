"""Every family, compressed and pruned, against itself in float: figures with ``pytest -s``, and what must be equal."""


import numpy as np
import pytest

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation
from sqap_vla_ros.models.random_checkpoint import make_random
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.policy import build_policy

FAMILIES = {"openvla": 1, "openvla-oft": 2, "cogact-base": 1}


@pytest.fixture(scope="module", params=FAMILIES)
def folders(request, tmp_path_factory):
    """A family's name, a float checkpoint of it and the compressed one."""
    place = tmp_path_factory.mktemp(request.param)
    make_random(request.param, place / "float", "tiny")
    for name in ("w4a4-rtn", "w8a8"):
        compress_checkpoint(place / "float", place / name, name)
    return request.param, place


def observe(name):
    rng = np.random.default_rng(4)
    pictures = tuple(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(FAMILIES[name]))
    state = rng.normal(size=8) * 0.05 if name == "openvla-oft" else None
    return Observation(0, pictures, "put the spoon on the plate", (None,) * len(pictures), state=state)


def act(name, checkpoint, recipe, **prune):
    policy = build_policy(build_config({"model.checkpoint": str(checkpoint), "model.recipe": recipe,
                                        "control.execute_steps": 1, **{f"prune.{k}": v for k, v in prune.items()}}))
    inference = policy.infer(observe(name))
    return inference.chunk.steps, [len(use.kept) for use in inference.tokens]


def cosine(a, b):
    return float(a.ravel() @ b.ravel() / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_what_compression_does_to_actions(folders):
    name, place = folders
    plain, kept = act(name, place / "float", "float", rule="none")
    assert set(kept) == {256} and np.isfinite(plain).all()
    rows = {}
    for recipe, checkpoint in (("float", "float"), ("w8a8", "w8a8"), ("w4a4", "w4a4-rtn")):
        for ratio in (0.0, 0.5):
            steps, kept = act(name, place / checkpoint, "float" if recipe == "float" else "stored", rule="sqap",
                              pruned_ratio=ratio)
            assert set(kept) == {round(256 * (1 - ratio))}
            rows[recipe, ratio] = cosine(steps, plain)
            if recipe == "float" and ratio == 0.0:
                np.testing.assert_array_equal(steps, plain)
    print(f"\n{name}: " + ", ".join(f"{recipe}@{ratio}: {value:.4f}" for (recipe, ratio), value in rows.items()))
    assert rows["w8a8", 0.0] > 0.99 and rows["w8a8", 0.5] > 0.95 and min(rows.values()) > 0.8
