"""Build script: all metadata is in pyproject.toml; the compiled library will hook in here."""

from setuptools import setup

setup()
