"""What each recipe makes of the same clips, steps and seeds.

    make sample                                # the clips and their flows
    python -m benchmarks.recipes               # 21 runs of LSTS-Flow
    python -m benchmarks.recipes --recipes=paper --seeds=0 --epochs=1  # a check

Trains on the sample's training clips, one 79-frame window each, and scores the
last frame (of "8 maps" the last eight) of the windows of all clips that were
not trained on. I3D's weights are those that `experiments/sample.flags` finds;
where they are random, the figures are about decoder, loss and schedule only.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

METRICS = ("cc", "nss", "sim", "auc_judd")
LATER = (
    "--loss=kld-cc",
    "--learning_rate=1e-3",
    "--lr_halving_steps=0",
    "--optimizer=adamw",
    "--weight_decay=1e-2",
    "--schedule=cosine",
    "--warmup_steps=10",
    "--ema=0.9",
)
SKIPS = ("--decoder=skip", "--skips=Mixed_4f,Mixed_3c,Conv3d_2c_3x3")
PAPER = ("--loss=mse", "--learning_rate=1e-4", "--ema=0")
# By the names of the command line.
RECIPES = {
    "paper": ("paper", (*PAPER, "--lr_halving_steps=0")),
    "halved": (
        "paper, rate halved each 50 steps",
        (*PAPER, "--lr_halving_steps=50"),
    ),
    "mse": (
        "MSE, RMSProp at 1e-3",
        (
            *("--loss=mse", "--learning_rate=1e-3", "--ema=0"),
            "--lr_halving_steps=0",
        ),
    ),
    "kld": (
        "KLD - CC",
        (
            *("--loss=kld-cc", "--learning_rate=1e-3", "--ema=0"),
            "--lr_halving_steps=0",
        ),
    ),
    "plus": ("KLD - CC, AdamW, cosine, average", LATER),
    "skip": ("the same, skips", (*LATER, *SKIPS)),
    "eight": ("the same, 8 maps a window", (*LATER, "--targets=8")),
}


def train(recipe: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """The last scores of one run; of an earlier one if it is there."""
    folder = pathlib.Path(args.output, f"{args.streams}-{recipe}-{seed}")
    _, flags = RECIPES[recipe]
    command = [
        *(sys.executable, "-m", "lsts_tf.train"),
        "--flagfile=experiments/sample.flags",
        f"--streams={args.streams}",
        "--val_videos=501-504,601-608",
        *flags,
        f"--epochs={args.epochs}",
        f"--seed={seed}",
        f"--run_dir={folder}",
        "--image_windows=0",
    ]
    subprocess.run(command, check=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--streams", default="flow")
    parser.add_argument("--output", default="workspace/sample/recipes")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    rows = {}
    for recipe in args.recipes.split(","):
        title, _ = RECIPES[recipe]
        rows[title] = [train(recipe, seed, args) for seed in seeds]
    spread = statistics.stdev if len(seeds) > 1 else lambda _: 0.0
    print(f"| recipe ({len(seeds)} seeds) | CC | NSS | SIM | AUC-Judd |")
    print("|---|---|---|---|---|")
    for title, found in rows.items():
        cells = [
            f"{statistics.mean(values):.3f} ± {spread(values):.3f}"
            for values in ([run[m] for run in found] for m in METRICS)
        ]
        print(f"| {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
