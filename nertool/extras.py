"""Packages that only some commands need, and the extra of nertool that each comes with."""

import importlib.util

from nertool.errors import NertoolError

_EXTRAS = {
    "bioc": "formats",
    "defusedxml": "formats",
    "jinja2": "report",
    "label_studio_sdk": "label-studio",
    "matplotlib": "report",
    "nncf": "openvino",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "pyarrow": "formats",
    "ray": "ray",
    "spacy": "formats",
}


def is_installed(package: str) -> bool:
    """Tells whether an optional package is there."""
    return importlib.util.find_spec(package) is not None


def require(package: str) -> None:
    """Makes sure that an optional package is there.

    Raises:
        NertoolError: Naming the extra to install.
    """
    if not is_installed(package):
        raise NertoolError(f"{package} is not installed", f"pip install 'nertool[{_EXTRAS[package]}]'")
