"""Compiled templates, kept beside compiled modules: compiling them anew is a quarter of the daemon's start."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from jinja2 import FileSystemBytecodeCache
from jinja2.bccache import Bucket


class TemplateBytecode(FileSystemBytecodeCache):
    """Follows Python's rules for its own bytecode: PYTHONPYCACHEPREFIX and PYTHONDONTWRITEBYTECODE are heeded, and a
    folder that cannot be written to is no error.
    """

    def __init__(self, module: Path) -> None:
        """``module``: the source file in which the environment's options stand."""
        directory = Path(importlib.util.cache_from_source(str(module))).parent
        super().__init__(str(directory), "template-%s." + f"{sys.implementation.cache_tag}.cache")
        # What compiles and how is told by neither the template nor its name.
        self._compiler = f"{version('jinja2')} {module.read_text()}"

    def get_source_checksum(self, source: str) -> str:
        return hashlib.sha256(f"{self._compiler}\0{source}".encode()).hexdigest()

    def load_bytecode(self, bucket: Bucket) -> None:
        try:
            super().load_bytecode(bucket)
        except Exception:  # what a damaged file makes of Jinja's pickle can be anything; the source is there
            bucket.reset()

    def dump_bytecode(self, bucket: Bucket) -> None:
        if not sys.dont_write_bytecode:
            with suppress(OSError):
                super().dump_bytecode(bucket)
                Path(self._get_cache_filename(bucket)).chmod(0o644)  # for the daemon's user, when root compiles
