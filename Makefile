# make demo    set up, then the whole road on real text: prepare, train, export, generate, remove each domain, report
# make test    set up, then the tests (SLOW=1 adds the slow ones)
# make check   what CI runs: lint, types, all tests
# make evidence     train the models of docs/evidence.md, five hours on one core, and measure its numbers again
# make clean-demo   forget the demo's run, to start it over
#
# PYTHON picks the interpreter of the new environment, TORCH the build of torch it gets; SEED repeats the demo with
# another seed beside the first run.

PYTHON ?= python3
TORCH ?= torch==2.13.0
SLOW ?=
PYTEST_ARGS ?=
SEED ?= 0

BIN := .venv/bin
DATA := data/demo
RUN := runs/demo$(if $(filter-out 0,$(SEED)),-seed$(SEED))

.PHONY: demo evidence test check lint clean-demo
.DELETE_ON_ERROR:

# One resolution for torch and everything else, so that nothing pulls in a second build of torch.
.venv/.ready: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@

# Every step keeps what it has finished, so a second `make demo` only repeats what is quick.
demo: .venv/.ready
	$(BIN)/monet data prepare --config configs/data/demo.yaml --out $(DATA)
	$(BIN)/python train.py fit --config configs/demo.yaml --run_dir $(RUN) \
		--seed_everything $(SEED) --data.seed $(SEED)
	rm -rf $(RUN)/export && $(BIN)/monet export --run $(RUN) --out $(RUN)/export
	$(BIN)/monet generate --model $(RUN)/export --prompt "def " --max_new_tokens 60
	$(BIN)/monet stats --config configs/eval/stats.yaml --model $(RUN)/export --data $(DATA) \
		--out $(RUN)/statistics.safetensors
	$(BIN)/monet select --config configs/eval/select.yaml --statistics $(RUN)/statistics.safetensors --out $(RUN)/masks
	$(BIN)/monet ablate --config configs/eval/ablate.yaml --model $(RUN)/export --data $(DATA) \
		--masks $(RUN)/masks --out $(RUN)/ablation
	$(BIN)/monet report --config configs/eval/report.yaml --result $(RUN)/ablation --out $(RUN)/report
	@echo "all of it lies in $(RUN); make clean-demo forgets it"

# Each step goes on where it was stopped; packages are fetched on the first run.
evidence: .venv/.ready
	test -d data/evidence-text || $(BIN)/python -m corpus.build --recipe evidence --out data/evidence-text
	$(BIN)/monet data prepare --config configs/data/evidence.yaml
	$(BIN)/python train.py fit --config configs/evidence.yaml --run_dir runs/evidence
	$(BIN)/python train.py fit --config configs/evidence.yaml --config configs/evidence_llama.yaml \
		--run_dir runs/evidence-llama
	for run in evidence evidence-llama; do \
		rm -rf runs/$$run/export && $(BIN)/monet export --run runs/$$run --out runs/$$run/export || exit 1; done
	$(BIN)/python -m benchmarks.evidence --model runs/evidence/export --dense runs/evidence-llama/export \
		--data data/evidence --text data/evidence-text/text --out runs/evidence-results --docs docs

clean-demo:
	rm -rf $(RUN) $(DATA) $(DATA).partial

test: .venv/.ready
	$(BIN)/python -m pytest $(if $(SLOW),-m "") $(PYTEST_ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted
	$(BIN)/python -m benchmarks.aot

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings --pythonpath $(BIN)/python

check: lint
	$(MAKE) test SLOW=1
