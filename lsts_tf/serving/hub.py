"""A run folder that a model hub takes and `Predictor.load` reads.

Keras writes the model as Hugging Face has it: `config.json`, the network, and
`model.weights.h5`, numbers by name; neither holds code. Beside them lie the
settings, what the features come from, and README.md, the card.
"""

import dataclasses
import json
import pathlib
import shutil

from lsts_tf import experiment
from lsts_tf.features import front_end
from lsts_tf.scoring import summary

CARD = "README.md"
SCORES = "scores.json"
_CARD = """\
---
library_name: keras
pipeline_tag: image-to-image
tags: [video-saliency, visual-attention, eye-tracking, i3d]
---

# Where people look in a video

Frames in, a map of 360 x 640 values in [0, 1] for each out.{note}

```python
import lsts_tf  # the package lsts-tf

predictor = lsts_tf.Predictor.load("hf://OWNER/NAME")  # or this folder
maps = predictor(frames)  # uint8 [T, H, W, 3] -> float32 [T, 360, 640]
```

Trained on videos {videos} of {datasets}. `experiment.flags` says how, and
`front_end.json` what the features come from; I3D's weights are not in here.

## Scores

{scores}

## Limits

A map says where people look in a frame, more or less, and nothing about single
persons. Whoever publishes this folder adds its licence, the rights to the data
and what the model is for.
"""


def complete(
    folder: pathlib.Path, run: pathlib.Path, *, name: str, note: str = ""
) -> None:
    """Makes a folder that has a model a run folder with a card.

    Args:
        folder: The folder.
        run: The run folder that the model is of.
        name: What the folder will be called.
        note: What the card has to say of the weights.
    """
    settings = experiment.load(run / experiment.FLAGFILE)
    # Where data lie on this machine is of no use elsewhere.
    default = experiment.Experiment()
    dataclasses.replace(
        settings,
        run_dir=name,
        data_dir=default.data_dir,
        store_dir=default.store_dir,
    ).save(folder / experiment.FLAGFILE)
    shutil.copyfile(run / front_end.DESCRIPTION, folder / front_end.DESCRIPTION)
    if (run / CARD).is_file():
        shutil.copyfile(run / CARD, folder / CARD)
        return
    scores = "Not measured."
    if (run / SCORES).is_file():
        found = json.loads((run / SCORES).read_text("utf-8"))
        scores = (
            f"Videos {found['videos']} of {found['dataset']}, by `lsts "
            f"evaluate`:\n\n```\n{summary.text(found)}\n```"
        )
    card = _CARD.format(
        note=f" **{note}.**" if note else "",
        videos=settings.train_videos,
        datasets=", ".join(settings.dataset_names),
        scores=scores,
    )
    (folder / CARD).write_text(card, "utf-8")
