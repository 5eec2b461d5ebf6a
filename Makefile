# make run      set up, then open the app on the built-in scenes        make test   set up, then lint, types, tests
# make install  set up alone (.venv, pinned packages)                   make bench  benchmarks
# make test-fast  the tests that take no browser and no seconds, for work in between; WORKERS=4 for more processes
# make test-busy  all tests beside four busy loops: none may depend on how fast the machine is
#               ARGS="-p tests.helpers.cpu_times" shows what each file and test costs, in any of the three
# make install-cluster  what a cluster takes, see docs/cluster.md
# make run-photos IMAGES=~/Pictures  index a folder of photographs, then open the app on it
# make run-coco  the paper's world, for those who have a network: fetches COCO's validation images (1 GB) and OpenAI's RN50,
#               scores and indexes them by CLIP, Dense-CLIP and Cluster-CLIP, opens the app on them; goes on where it was
#               stopped. COCO=DIR for another folder than ~/.cache/for/coco, MODEL="--backbone RN50x4" for another model
# make leaderboards  train and score every table that has data: the built-in scenes, and DATA=~/datasets for coco, lvis
#               and nuimages in it; ARGS="--dataset miniscenes --only main --seeds 1" for some
# make attack   the long form of tests/attack: kills, flipped bits, odd images, junk requests, slow connections, many
#               clients; a quarter of an hour
# make lock     pin again from requirements*.in

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
REQUIREMENTS ?= requirements.txt
ARGS ?=
DATA ?=
COCO ?= $(HOME)/.cache/for/coco
MODEL ?= --backbone RN50
WORKERS ?= 2
BIN = .venv/bin
# a file a process at a time, as tests/conftest.py orders them
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --benchmark-disable
UV = uv==0.13.9
.DEFAULT_GOAL := run
.PHONY: install install-photos install-encoders install-compiled install-cluster run run-photos run-coco test test-fast test-busy \
	bench leaderboards attack lock

install: .venv/installed

.venv/installed: $(REQUIREMENTS) pyproject.toml
	@test -n "$(PYTHON)" || { echo "FOR needs Python 3.10, 3.11 or 3.12 with venv; none was found. Try make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q "$(UV)"
	$(BIN)/uv pip install -q -p $(BIN)/python -r $(REQUIREMENTS)
	$(BIN)/uv pip install -q -p $(BIN)/python --no-deps -e .
	touch $@

install-photos: .venv/photos

.venv/photos: .venv/installed requirements-photos.txt
	$(BIN)/uv pip install -q -p $(BIN)/python --no-deps -r requirements-photos.txt
	touch $@

install-encoders: .venv/encoders

.venv/encoders: .venv/installed requirements-encoders.txt
	$(BIN)/uv pip install -q -p $(BIN)/python -r requirements-encoders.txt
	touch $@

install-cluster: .venv/cluster

.venv/cluster: .venv/installed requirements-cluster.txt
	$(BIN)/uv pip install -q -p $(BIN)/python -r requirements-cluster.txt
	touch $@

install-compiled: .venv/compiled

.venv/compiled: .venv/installed requirements-compiled.txt
	$(BIN)/uv pip install -q -p $(BIN)/python -r requirements-compiled.txt
	touch $@

run: install
	$(BIN)/python app.py $(ARGS)

run-photos: install-photos
	@test -n "$(IMAGES)" || { echo "which photographs? make run-photos IMAGES=~/Pictures" >&2; exit 2; }
	$(BIN)/python app.py --images "$(IMAGES)" $(ARGS)

# of a folder of stores by several methods, an index of each, and the app on all of them
run-coco: install
	$(BIN)/python -m for_eval fetch coco --root "$(COCO)" --splits val
	$(BIN)/python -m for_eval leaderboard --dataset coco --root "$(COCO)" --methods clip,dense-clip,cluster-clip --stores "$(COCO)/stores" $(MODEL)
	@set --; for store in "$(COCO)"/stores/*_cluster-clip_*/ "$(COCO)"/stores/*_dense-clip_*/ "$(COCO)"/stores/*_clip_*/; do \
		index="$(COCO)/indexes/$$(basename "$$store")"; \
		$(BIN)/python -m for_search index "$$store" --out "$$index" || exit $$?; \
		set -- "$$@" --index "$$index"; done; \
	exec $(BIN)/python app.py "$$@" $(ARGS)

# types and contracts are checked beside the tests, which now and then leave a core idle; what they say comes last
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@said=$$(mktemp); { $(BIN)/mypy && $(BIN)/lint-imports --no-logo; } > $$said 2>&1 & checks=$$!; \
	$(PYTEST) $(ARGS); tests=$$?; \
	wait $$checks; checked=$$?; cat $$said; rm $$said; test $$tests = 0 && test $$checked = 0

test-fast: install
	$(PYTEST) -m "not slow and not browser" $(ARGS)

test-busy: install
	@loops=; for loop in 1 2 3 4; do (while :; do :; done) & loops="$$loops $$!"; done; \
	trap "kill $$loops" EXIT; trap "exit 130" INT TERM; $(PYTEST) $(ARGS)

bench: install
	$(BIN)/python -m pytest tests/benchmarks/bench_*.py --benchmark-only --benchmark-columns=median,stddev,rounds $(ARGS)

leaderboards: install
	$(BIN)/python -m for_eval tables $(if $(DATA),--data "$(DATA)") $(ARGS)
	$(BIN)/python -m for_eval leaderboard --dataset miniscenes --methods clip,dense-clip,cluster-clip,cluster-clip:4,for,for+

attack: install
	$(BIN)/python -m tests.attack.kill_growing --kills 100
	for what in embed index train; do $(BIN)/python -m tests.attack.kill_fresh --what $$what --kills 100 || exit $$?; done
	$(BIN)/python -m tests.attack.flip_bytes --positions 1000
	$(BIN)/python -m tests.attack.odd_images --images 1000
	$(BIN)/python -m tests.attack.junk_requests --requests 5000
	$(BIN)/python -m tests.attack.slow_connections --connections 200
	$(BIN)/python -m tests.benchmarks.load --clients 50 --seconds 300 --pause 1 --ratio 20

lock: install
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --no-header requirements.in requirements-dev.in -o requirements.txt
	sed 's/^faiss-cpu==.*/faiss-gpu-cu12/' requirements.in | $(BIN)/uv pip compile -q --universal --python-version 3.10 --no-header - requirements-dev.in -o requirements-gpu.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --no-header --no-annotate -c requirements.txt -c requirements-photos.txt requirements-encoders.in -o requirements-encoders.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --no-header --no-annotate -c requirements.txt requirements-compiled.in -o requirements-compiled.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --no-header --no-annotate -c requirements.txt requirements-cluster.in -o requirements-cluster.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --no-header --no-annotate -c requirements.txt requirements-rivals.in -o requirements-rivals.txt
