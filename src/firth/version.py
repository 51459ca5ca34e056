"""The version of the package, for its files and for ``firth --version``."""

__version__ = "0.1.0"
