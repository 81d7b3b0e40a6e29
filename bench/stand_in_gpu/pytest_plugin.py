"""`pytest -p bench.stand_in_gpu.pytest_plugin`: tests of a GPU on the stand-in."""

from bench.stand_in_gpu.begin import begin

begin()
