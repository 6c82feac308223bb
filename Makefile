# make demo    set up, then the whole workflow on real text: prepare, train, export, generate, remove domains, report
# make look    set up, then open a page on the experts of models/monet-7m (monet view); no training
# make look-index   index that model again; make look opens the copy in the repository
# make test    set up, then the tests (SLOW=1 adds the slow ones, SLOW=ci those that CI runs)
# make test-oldest   the same tests with the lowest versions that pyproject.toml allows, in .venv-oldest
# make test-newest   the same tests with the newest releases, in .venv-newest
# make test-lens   the tests of docs/hook-points.md with TransformerLens, in .venv-lens
# make smoke   a short check of the newest releases, in .venv-smoke
# make lint    style, types, dependencies, spelling, English (tools/prose)
# make docs    the documentation site, in build/site; runs the notebooks
# make check   lint, then all tests, including the slow ones
# make pins    write constraints/tested.txt from the newest releases, then run the tests with it before you commit it
# make evidence     train the models of docs/evidence.md and measure its numbers again. Each model trains for an hour
#              on one core. SEEDS="0 1 2" are the training seeds of the Monet models, DENSE_SEEDS="0" those of the dense
#              twins. The Monet of seed 0 is models/monet-7m, in bfloat16.
# make knowledge    convert a dense model once for each of SEEDS, remove each domain, write docs/knowledge.md. QUICK=1
#              converts five layers once, with fewer tokens.
# make warm-start   train the evidence model from three starts: random, and with the weights of a dense twin; write the
#              table of docs/pretraining.md. Each run trains for 2.5 hours on one core.
# make clean-demo   remove the demo's run, so that it can start again
#
# PYTHON chooses the interpreter of a new environment, TORCH its release of torch. PYTEST_ARGS="tests/model -x" runs a
# part of the tests, SUITE="pytest interpreted aot" some of the three steps, WORKERS=0 the tests in one process. SEED
# repeats the demo with another seed and keeps the first run.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON ?= triton==3.7.1
SLOW ?=
PYTEST_ARGS ?=
SUITE ?= pytest interpreted aot
WORKERS ?= logical
SEED ?= 0
SEEDS ?= 0 1 2
DENSE_SEEDS ?= 0

BIN := .venv/bin
DATA := data/demo
RUN := runs/demo$(if $(filter-out 0,$(SEED)),-seed$(SEED))

# The tests start many processes. Each would compile the package again if Python kept no compiled modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo look look-index evidence knowledge warm-start test test-oldest test-newest test-lens smoke pins lint docs check clean-demo
.DELETE_ON_ERROR:

# constraints/tested.txt without the pins that depend on the torch release, if TORCH requests another release.
PINNED_TORCH := $(filter torch==%,$(shell cat constraints/tested.txt 2>/dev/null))
UNPIN := $(if $(filter $(PINNED_TORCH),$(TORCH)),,^(torch|triton|setuptools)==|)
# Each environment resolves torch and all other packages at once, so that no package installs a second build of torch.
SOURCES := pyproject.toml setup.py

TESTS := .[browser,dev,quantisation]

# Python compiles a module when it is first imported. pip would compile all 20,000 files, which takes minutes.
PIP_INSTALL := pip install --quiet --no-compile

# $(call install,FOLDER,REQUIREMENTS): create an environment, or update an existing one. Older releases of pip cannot
# build every package.
define install
$(PYTHON) -m venv $(1)
$(1)/bin/python -m $(PIP_INSTALL) "pip>=23.2"
$(1)/bin/python -m $(PIP_INSTALL) $(2)
endef

# $(call install_newest,FOLDER,EXTRA): the newest releases, also beyond the upper bounds of pyproject.toml, except the
# bound of torch. Every call looks for newer releases.
define install_newest
$(call install,$(1),packaging)
$(1)/bin/python constraints/pins.py newest $(2) > $(1)/requirements.txt
$(1)/bin/python -m $(PIP_INSTALL) --upgrade --upgrade-strategy eager "$(TORCH)" --requirement $(1)/requirements.txt
$(1)/bin/python -m $(PIP_INSTALL) --no-deps --editable .
endef

# $(call suite,FOLDER): run the tests with that environment.
# The tests of one file run in one process, one after the other, because they share fixtures. tests/conftest.py sets the
# order of the files.
WORKER_ARGS := --numprocesses $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
MARKS := $(if $(SLOW),-m "$(if $(filter ci,$(SLOW)),not nightly)")
define suite
$(if $(filter pytest,$(SUITE)),$(1)/bin/python -m pytest $(WORKER_ARGS) $(MARKS) $(PYTEST_ARGS))
$(if $(filter interpreted,$(SUITE)),TRITON_INTERPRET=1 $(1)/bin/python -m pytest $(WORKER_ARGS) $(MARKS) tests/interpreted)
$(if $(filter aot,$(SUITE)),$(1)/bin/python -m benchmarks.aot)
endef

.venv/.ready: $(SOURCES) constraints/tested.txt
	mkdir -p .venv
	grep -Ev '$(UNPIN)^#' constraints/tested.txt > .venv/constraints.txt
	$(call install,.venv,--constraint .venv/constraints.txt "$(TORCH)" --editable ".[dev]")
	touch $@

# Packages only for tests: torch warns when transformers imports torchao, and the demo's output has no such warnings.
.venv/.tests-ready: .venv/.ready
	$(BIN)/python -m $(PIP_INSTALL) --constraint .venv/constraints.txt "$(TORCH)" --editable "$(TESTS)"
	touch $@

.venv-oldest/.ready: $(SOURCES) constraints/oldest.txt
	$(call install,.venv-oldest,--constraint constraints/oldest.txt --editable "$(TESTS)")
	touch $@

# Every step keeps its finished work, so a second `make demo` repeats only the quick parts.
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
	@echo "all results are in $(RUN); make clean-demo removes them"

# The index of models/monet-7m is in the repository, compressed.
SHIPPED_INDEX := models/monet-7m/index.tar.xz

look: .venv/.ready
	test -f runs/look/index.json || { mkdir -p runs && $(BIN)/python -m tarfile --extract $(SHIPPED_INDEX) runs; }
	$(BIN)/monet view runs/look --model models/monet-7m --out runs/look-masks --open

# Writes that file again, after the model or the format of an index has changed.
look-index: .venv/.ready
	test -f data/look/manifest.json || $(BIN)/monet data prepare --source corpus/text --tokenizer models/monet-7m \
		--out data/look
	rm -rf runs/look runs/look.partial
	$(BIN)/monet index --model models/monet-7m --data data/look --out runs/look --tokens 60000 --seq_len 256 --top 12
	tar --create --xz --file $(SHIPPED_INDEX) --directory runs --sort=name --mtime=@0 --owner=0 --group=0 \
		--numeric-owner --mode=u=rwX,go=rX look

# $(call runs,NAME,SEEDS): folders of the runs with these training seeds; the name of seed 0 has no suffix.
runs = $(foreach seed,$(2),runs/$(1)$(if $(filter-out 0,$(seed)),-seed$(seed)))

# $(call train,RUN,CONFIGS): train and export the run with the seed in its name.
define train
	$(BIN)/python train.py fit $(2) --run_dir $(1) \
		--seed_everything $(call seed_of,$(1)) --data.seed $(call seed_of,$(1))
	rm -rf $(1)/export && $(BIN)/monet export --run $(1) --out $(1)/export

endef
seed_of = $(or $(word 2,$(subst -seed, ,$(1))),0)
EVIDENCE := $(call runs,evidence,$(SEEDS))
EVIDENCE_DENSE := $(call runs,evidence-llama,$(DENSE_SEEDS))

# Each step continues where it was stopped; the first run fetches the packages.
evidence: .venv/.ready
	test -f data/evidence-text/manifest.json || $(BIN)/python -m corpus.build --recipe evidence --out data/evidence-text
	$(BIN)/monet data prepare --config configs/data/evidence.yaml
	$(foreach run,$(EVIDENCE),$(call train,$(run),--config configs/evidence.yaml))
	$(foreach run,$(EVIDENCE_DENSE),$(call train,$(run),\
		--config configs/evidence.yaml --config configs/evidence_llama.yaml))
	$(if $(filter runs/evidence,$(EVIDENCE)),rm -rf models/monet-7m && \
		$(BIN)/monet export --run runs/evidence --dtype bfloat16 --out models/monet-7m)
	$(BIN)/python -m studies.evidence --model $(EVIDENCE:=/export) --dense $(EVIDENCE_DENSE:=/export) \
		--data data/evidence --text data/evidence-text/text --out runs/evidence-results --docs docs

QUICK ?=
# The last layer of SmolLM2-135M costs most, because its output goes to the logits directly.
LAYERS := $(if $(QUICK),22-26,19-28)
TOKENS := $(if $(QUICK),--tokens 150000 --distil_tokens 30000)
# Few facts, so that they cost a quick run less than two minutes.
QUESTIONS := $(if $(QUICK),,data/questions)
FACTS := data/facts$(if $(QUICK),-languages)
FACTS_DOMAINS := $(if $(QUICK),--domains "[languages]")
KNOWLEDGE_NAME := knowledge$(if $(QUICK),-quick)
KNOWLEDGE := $(call runs,$(KNOWLEDGE_NAME),$(if $(QUICK),0,$(SEEDS)))

define convert
	$(BIN)/monet convert --model data/smollm2 --data data/subjects --layers $(LAYERS) --out $(1) \
		$(TOKENS) --seed $(call seed_of,$(1))

endef

knowledge: .venv/.ready
	test -f data/subjects-text/manifest.json || $(BIN)/python -m corpus.build --recipe subjects --out data/subjects-text
	test -f $(FACTS)/facts.jsonl || $(BIN)/python -m corpus.build --recipe facts --out $(FACTS) $(FACTS_DOMAINS)
	$(if $(QUESTIONS),test -d $(QUESTIONS) || $(BIN)/python -m corpus.questions --out $(QUESTIONS))
	test -d data/smollm2 || $(BIN)/python -m corpus.dense_model --out data/smollm2
	$(BIN)/monet data prepare --config configs/data/subjects.yaml
	$(foreach run,$(KNOWLEDGE),$(call convert,$(run)))
	$(BIN)/python -m studies.knowledge --model $(KNOWLEDGE) --dense data/smollm2 --data data/subjects \
		--facts $(FACTS)/facts.jsonl $(if $(QUESTIONS),--questions $(QUESTIONS)) --families programming=cpp,lua,python \
		--out runs/$(KNOWLEDGE_NAME)-results --docs docs $(if $(QUICK),--quick)

STARTS := random rest pieces
TWIN := runs/evidence-llama
FROM := runs/evidence-from

# $(call start,NAME,OPTIONS): the evidence model, trained from one start.
define start
	$(BIN)/python train.py fit --config configs/evidence.yaml --config configs/evidence_starts.yaml \
		--run_dir $(FROM)-$(1) $(2)

endef

warm-start: .venv/.ready
	test -f data/evidence-text/manifest.json || $(BIN)/python -m corpus.build --recipe evidence --out data/evidence-text
	$(BIN)/monet data prepare --config configs/data/evidence.yaml
	$(call train,$(TWIN),--config configs/evidence.yaml --config configs/evidence_llama.yaml)
	$(BIN)/monet convert --config configs/convert/evidence.yaml --init random --out runs/start-rest
	$(BIN)/monet convert --config configs/convert/evidence.yaml --out runs/start-pieces
	$(call start,random)
	$(foreach name,rest pieces,$(call start,$(name),--model.init_from runs/start-$(name)))
	$(BIN)/python -m studies.warm_start $(foreach name,$(STARTS),--$(name) $(FROM)-$(name)) --twin $(TWIN) \
		--out runs/warm-start --docs docs

clean-demo:
	rm -rf $(RUN) $(DATA) $(DATA).partial

test: .venv/.tests-ready
	$(call suite,.venv)

test-oldest: .venv-oldest/.ready
	$(call suite,.venv-oldest)

test-newest:
	$(call install_newest,.venv-newest,browser dev quantisation)
	$(call suite,.venv-newest)

test-lens: .venv/.tests-ready
	$(call install,.venv-lens,--constraint .venv/constraints.txt "$(TORCH)" --editable ".[dev,lens]")
	.venv-lens/bin/python -m pytest tests/docs/test_hook_points.py tests/eval/inspection/test_lens.py

smoke:
	$(call install_newest,.venv-smoke)
	.venv-smoke/bin/python -m tests.smoke

# torch's CUDA build requires one release of triton, its CPU build requires none; the pin works for both.
pins:
	rm -rf .venv-pins
	$(call install,.venv-pins,"$(TORCH)" "$(TRITON)" --editable ".[browser,dev,docs,quantisation]")
	.venv-pins/bin/python constraints/pins.py write
	rm -rf .venv-pins

lint: .venv/.tests-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings --pythonpath $(BIN)/python
	$(BIN)/deptry .
	$(BIN)/deptry monet kernels eval --optional-dependencies-dev-groups dev
	$(BIN)/codespell
	$(BIN)/python -m tools.prose

.venv/.docs-ready: .venv/.ready
	$(BIN)/python -m $(PIP_INSTALL) --constraint .venv/constraints.txt "$(TORCH)" --editable ".[docs]"
	touch $@

# The notebooks use the model of `make demo`; without it they train a small one in runs/quick.
docs: .venv/.docs-ready
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/site
	@echo "open build/site/index.html"

check: lint docs
	$(MAKE) test SLOW=1
