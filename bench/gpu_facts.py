"""What is on this machine: device, driver, tools, versions, the compiled library, two ceilings.

python -m bench.gpu_facts
"""

import shutil
from importlib.util import find_spec

import torch

from bench.ceilings import measure_ceilings
from bench.kernel_records import machine_facts, package_versions
from secateur_kernels.library import library_status

_TOOLS = ("nvidia-smi", "nvcc", "gcc", "compute-sanitizer", "ncu", "cuobjdump", "nvdisasm")
_MODULES = ("pytest", "hypothesis", "pytest_benchmark", "xdist", "transformers", "matplotlib")


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = {**machine_facts(device), **package_versions()}
    facts |= {tool: shutil.which(tool) or "not there" for tool in _TOOLS}
    facts |= {name: "there" if find_spec(name) else "not there" for name in _MODULES}
    status = library_status()
    built = ", ".join(status.architectures)
    facts["library"] = f"built for {built}" if status.loaded else f"not there: {status.reason}"
    facts["GPUs"] = str(torch.cuda.device_count())
    for name, value in facts.items():
        print(f"{name:24} {value}")
    if device.type == "cuda":
        ceilings = measure_ceilings(device)
        print(f"{'read':24} {ceilings.read / 1e12:.2f} TB/s")
        print(f"{'copy, read and written':24} {ceilings.copy / 1e12:.2f} TB/s")


if __name__ == "__main__":
    main()
