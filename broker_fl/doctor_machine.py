"""What is on this machine: Python, packages, optional extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping

from broker_fl.doctor import Finding

_NEWEST_TESTED = (3, 13)
_PACKAGES = ("broker-fl", "numpy", "numexpr", "pika", "redis", "pydantic", "msgpack", "safetensors")
_EXTRAS: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow",),
    "sklearn": ("scikit-learn",),
    "jax": ("jax",),
    "xgboost": ("xgboost",),
    "he": ("tenseal",),
    "identity": ("cryptography",),
    "report": ("jinja2", "matplotlib"),
}
_OTHER_BUILDS: Mapping[str, str] = {"xgboost": "xgboost-cpu"}
"""The same modules in a package of another name."""


def check_machine() -> list[Finding]:
    """Versions of what is installed; nothing is imported for it."""
    return [*_python(), *_packages(), *_extras()]


def _python() -> Iterator[Finding]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    what = f"Python {platform.python_version()} on {machine}"
    if sys.version_info[:2] > _NEWEST_TESTED:
        newest = ".".join(map(str, _NEWEST_TESTED))
        yield Finding(level="warning", what=what, advice=f"broker_fl is tested with Python 3.11 to {newest}")
    else:
        yield Finding(level="ok", what=what)


def _packages() -> Iterator[Finding]:
    found = {name: _version(name) for name in _PACKAGES}
    missing = [name for name, version in found.items() if version is None]
    if missing:
        advice = "the installation is damaged: pip install --force-reinstall broker-fl"
        yield Finding(level="error", what=f"not installed: {', '.join(missing)}", advice=advice)
    there = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield Finding(level="ok", what=there)


def _extras() -> Iterator[Finding]:
    for extra, packages in _EXTRAS.items():
        versions = {name: _version(name) or _version(_OTHER_BUILDS.get(name, name)) for name in packages}
        if all(versions.values()):
            there = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield Finding(level="ok", what=f"extra {extra}: {there}")
        else:
            missing = ", ".join(name for name, version in versions.items() if version is None)
            install = f"pip install 'broker-fl[{extra}]' if it is wanted"
            what = f"extra {extra} is not installed ({missing}): {install}"
            yield Finding(level="ok", what=what, sort="absent")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
