"""Files hidden in the frames of a video, and taken out again, exact or not at all.

::

    from firth import video

    video.capacity("holiday.mp4")
    video.hide("holiday.mp4", "notes.pdf", "out.mkv", password="...")
    video.inspect("out.mkv", password="...").found
    video.extract("out.mkv", password="...").data
"""

from firth.video.finding import Extracted as Extracted
from firth.video.finding import Inspection as Inspection
from firth.video.finding import extract as extract
from firth.video.finding import inspect as inspect
from firth.video.hiding import Hidden as Hidden
from firth.video.hiding import Room as Room
from firth.video.hiding import capacity as capacity
from firth.video.hiding import hide as hide

__all__ = ["Extracted", "Hidden", "Inspection", "Room", "capacity", "extract", "hide", "inspect"]
