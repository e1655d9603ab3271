"""The page with a cheap predictor, whose frames take a moment each.

On standard error it says which addresses of others it looks up or calls.
"""

import sys

from absl import app as absl_app

from lsts_tf import app, experiment
from lsts_tf import predictor as predictor_lib
from tests import cheap_prediction

_OWN = ("127.0.0.1", "::1", "localhost", "0.0.0.0")
OUTSIDE = "Calls another machine:"


def load(*_, **__):
    return cheap_prediction.predictor(cheap_prediction.Slow(0.02))


def audit(event, arguments):
    address = None
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        address = arguments[1][0]
    elif event == "socket.getaddrinfo":
        address = arguments[0]
    if address not in (None, *_OWN):
        sys.stderr.write(f"{OUTSIDE} {address}\n")


if __name__ == "__main__":
    sys.addaudithook(audit)
    predictor_lib.Predictor.load = load
    experiment.define_flags()
    app.define_flags()
    absl_app.run(app.main)
