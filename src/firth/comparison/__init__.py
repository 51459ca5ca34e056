"""Several sets of vectors: side by side (``compare``), in one space (``align``), made one (``merge``).

The sets may differ in dimension, corpus and vocabulary; keys that are equal strings are the same word.
"""

from firth.comparison.alignment import Alignment, Fit, align, read_anchors
from firth.comparison.merging import METHODS, MISSING, merge
from firth.comparison.report import Comparison
from firth.comparison.side_by_side import compare

__all__ = [
    "METHODS",
    "MISSING",
    "Alignment",
    "Comparison",
    "Fit",
    "align",
    "compare",
    "merge",
    "read_anchors",
]
