"""Two logical CPU devices, seeds, and the golden data if it lies beside."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest


def pytest_configure(config):
    """Split the CPU in two before TensorFlow starts.

    Every test may then use a MirroredStrategy of two replicas.
    """
    del config
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def shared():
    """Folder of recorded reference data; too large for the repository."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"The recorded reference data is not at {folder}.")
    return folder
