"""Files hidden in the frames of a video, and taken out again, exact or not at all."""
