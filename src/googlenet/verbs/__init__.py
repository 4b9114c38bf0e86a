"""What each verb of the command line does: reads its arguments, calls the package, prints an answer.

A file is a verb, or verbs that share a subject. Heavy imports stand in the functions, so that a verb loads what it
uses and `--help` stays quick.
"""

from .benchmark import benchmark
from .catalogue import models, summary
from .convert import convert
from .detect import detect
from .ensemble import ensemble
from .evaluate import evaluate
from .explain import explain
from .export import export
from .fetch import fetch
from .predict import predict
from .serve import serve
from .train import train

__all__ = [
    "benchmark",
    "convert",
    "detect",
    "ensemble",
    "evaluate",
    "explain",
    "export",
    "fetch",
    "models",
    "predict",
    "serve",
    "summary",
    "train",
]
