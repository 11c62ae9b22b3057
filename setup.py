"""Builds the Cython core: one extension a `.pyx` in shmbroker/_core.

`SHMB_EXT=batch,engine python setup.py build_ext --inplace` builds only those named.
No `-march` flag: instructions beyond the baseline are chosen at run time.
"""

import os
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ONLY = set(filter(None, os.environ.get("SHMB_EXT", "").split(",")))
HEADERS = sorted(glob("shmbroker/_core/*.h"))
extensions = [
    Extension(
        f"shmbroker._core.{Path(pyx).stem}",
        [pyx],
        depends=HEADERS,
        define_macros=[("_GNU_SOURCE", "1")],
        extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wno-unused-function"],
        libraries=["pthread", "rt"],
    )
    for pyx in sorted(glob("shmbroker/_core/*.pyx"))
    if not ONLY or Path(pyx).stem in ONLY
]

if not extensions:  # a package without its core would build, install, and fail at the first use
    raise SystemExit(f"no .pyx in shmbroker/_core{' named ' if ONLY else ''}{', '.join(ONLY)}")

setup(
    ext_modules=cythonize(
        extensions,
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": False,
            "wraparound": False,
            "embedsignature": True,
        },
    )
)
