# make demo    a venv, an editable install, then: pretrain on the demo scenes, evaluate, report (CPU is enough)
# make test    the test suite, but for the tests marked slow, which .ci/run runs as well
# make simulator    the simulated GPU's own tests (some minutes; needs nvcc)
# make gpu     gpu-test, gpu-bench and gpu-train: under ten minutes each, after the build (needs a GPU and nvcc)
# make gpu-test     the ops' tests on the GPU, some of them under compute-sanitizer;   make sanitize    all of them
# make gpu-bench    the benchmarks on the GPU, into benchmarks/results and the tables of docs/results
# make gpu-train    the parts of a training step, and a short run in bfloat16
# make asan        the CPU ops and their tests with AddressSanitizer and UndefinedBehaviorSanitizer (GCC)
# make aarch64     the CPU ops for aarch64, cross-compiled and their tests emulated (see .ci/aarch64 for what it needs)
# make bench   every benchmark, into benchmarks/results: about an hour and a half on an otherwise idle machine
# make docs    the documentation as build/docs; warnings are errors
# make lint    ruff, clang-format, mypy and import-linter;   make format    what of it can change files
#
# PYTHON=python3.12 picks the interpreter, MASKCO_CUDA=AUTO|ON|OFF what is built (see README).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-$(or $(MASKCO_CUDA),AUTO)-$(or $(MASKCO_WERROR),OFF)
CSRC := $(shell git ls-files 'csrc/*' 'cmake/*' CMakeLists.txt pyproject.toml 2>/dev/null)

OPS := info_nce region_pool queue contrast

.PHONY: demo test simulator gpu gpu-test gpu-bench gpu-train sanitize asan aarch64 bench docs lint format clean

demo: $(INSTALLED)
	$(BIN)/maskco demo --out runs/demo

# (up to four processes of some 3 GB, each on one thread)
test simulator: export OMP_NUM_THREADS := 1
test simulator: export PYTEST_ADDOPTS ?= -n auto --maxprocesses 4 --dist loadfile

test: $(INSTALLED)
	$(BIN)/python -m pytest

simulator: $(INSTALLED)
	$(BIN)/python -m pytest tools/ptxsim

gpu:
	for step in test bench train; do $(MAKE) gpu-$$step || exit; done

# (the build takes minutes, so a missing GPU is noticed before)
gpu-test gpu-bench gpu-train sanitize: export MASKCO_CUDA := ON
gpu-test gpu-bench gpu-train sanitize: export CUDAARCHS ?= native
gpu-test gpu-bench gpu-train sanitize:
	@nvidia-smi -L >/dev/null 2>&1 || { echo "error: nvidia-smi lists no GPU. Install NVIDIA's driver" >&2; exit 1; }
	$(MAKE) $(if $(filter gpu-bench,$@),$(VENV)/peers,$(VENV)/installed-ON-$(or $(MASKCO_WERROR),OFF))
	$(BIN)/python -m benchmarks.gpu $(@:gpu-%=%)
	$(if $(filter gpu-bench gpu-train,$@),$(BIN)/python -m benchmarks.tables)

# A second environment that sees all packages of the first. Not what measures memory, nor what torch.compile compiles,
# which is torch's. Python itself leaks by design.
asan: $(INSTALLED)
	$(PYTHON) -m venv build/asan/venv
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		>$$(build/asan/venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth
	MASKCO_CUDA=OFF CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1" \
		build/asan/venv/bin/python -m pip install -q --no-build-isolation --no-deps -C build-dir=build/asan/cmake \
		-C cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O1 -e .
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		build/asan/venv/bin/python -m pytest tests/ops -m 'not sim and not cuda' -k 'not extra_memory and not compile' --timeout 0

aarch64: | $(VENV)/bin/python
	$(BIN)/pip install -q 'cmake>=3.24' ninja
	PATH="$(abspath $(BIN)):$$PATH" .ci/aarch64

bench: $(VENV)/peers
	for op in $(OPS); do \
		$(BIN)/python -m benchmarks.$$op --sweeps --json benchmarks/results/$${op}_cpu.json || exit; \
		$(BIN)/python -m benchmarks.$$op --keep-freed --json benchmarks/results/$${op}_cpu_kept.json || exit; \
	done
	$(BIN)/python -m benchmarks.plot $(OPS:%=benchmarks/results/%_cpu.json) benchmarks/results/contrast_cpu_kept.json
	$(BIN)/python -m benchmarks.tables

docs: $(VENV)/docs
	$(BIN)/python -m sphinx -W --keep-going -q -c docs -d build/doctrees . build/docs
	@echo build/docs/docs/index.html

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'benchmarks/*.cpp' 'tools/*.cpp' 'tools/*.h' 'tools/*.cu*')

format: $(VENV)/tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*' 'benchmarks/*.cpp' 'tools/*.cpp' 'tools/*.h' 'tools/*.cu*')

# torch goes in first, so that the build uses it instead of downloading a second copy into an isolated environment
$(INSTALLED): $(VENV)/tools $(CSRC)
	@rm -f $(VENV)/installed*
	$(BIN)/pip install -q 'torch>=2.11' 'torchvision>=0.26' 'scikit-build-core>=0.10' 'pybind11>=2.13' 'cmake>=3.24' ninja
	$(BIN)/pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/peers: $(INSTALLED)
	$(BIN)/pip install -q --no-build-isolation -e '.[peers]'
	@touch $@

$(VENV)/docs: $(INSTALLED)
	$(BIN)/pip install -q --no-build-isolation -e '.[docs]'
	@touch $@

$(VENV)/tools: | $(VENV)/bin/python
	$(BIN)/pip install -q ruff==0.17.6 clang-format==23.1.5
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build runs
