# The targets of this repository; CI runs the same ones. `just` alone lists them.

venv := absolute_path(env("SHMB_VENV", ".venv"))
export PATH := venv / "bin" + ":" + env("PATH")

# three processes that each have a /dev/shm and a network of their own (two cores wait a third of the time),
# where the host lets us; one otherwise
side_by_side := `.ci/worker --possible && echo "--dist loadfile --tx 3*popen//python=$PWD/.ci/worker" || true`

# list the targets
_default:
    @just --list --unsorted

# make .venv and install the package with everything that tests and linters need
setup:
    .ci/setup

# build the native core in place, after a change to a .pyx or a header
build:
    python setup.py --quiet build_ext --inplace

# all tests but the long crash rounds: just test -k ring
test *args:
    python -m pytest {{ side_by_side }} {{ args }}

# the crash tests with all their rounds
test-crash *args:
    python -m pytest tests/crash tests/integration/test_example_payments.py -m "crash_long or not crash_long" --timeout=1800 {{ args }}

# the C tests, natively and as aarch64 under qemu
test-native *args:
    python -m pytest tests/unit/test_native.py {{ args }}

# ruff
lint:
    ruff check

# mypy, strict
types:
    mypy

# what must pass before a commit
check: lint types test

# every benchmark at its smallest size
bench-smoke:
    python -m shmbroker.perf core --smoke

# the measurements, with their report under perf/out
bench *args:
    python -m shmbroker.perf core {{ args }}

# storage devices and the broker on them: just perf --ssd DIR --model-hdd --quick
perf *args:
    shmbroker perf {{ args }}

# the broker beside Kafka, Redis, NATS and others: just perf-peers --ssd DIR --quick
perf-peers *args:
    shmbroker perf --peers --no-devices {{ args }}

# the drivers of these, each started once: fetches what this machine lacks
test-peers *args:
    python -m pytest tests/integration/peers -m peers --timeout=900 {{ args }}

# broker up, real input in and out again, verified; rates and latencies
demo *args:
    shmbroker demo {{ args }}

# the payments example under a killer for a minute: no letter is missing
example-payments seconds="60":
    python examples/payments/under_fire.py {{ seconds }}

# remove what was built, except .venv
clean:
    rm -rf build dist perf/out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
    rm -f shmbroker/_core/*.so
    find . -name __pycache__ -not -path "./.venv*" -prune -exec rm -rf {} +
