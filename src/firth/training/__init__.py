"""Making vectors: settings, objectives, the loop and its checkpoints."""

from firth.training.callbacks import Callback, Moment
from firth.training.initial import load_start
from firth.training.loop import train
from firth.training.objectives import SkipGram

__all__ = ["Callback", "Moment", "SkipGram", "load_start", "train"]
