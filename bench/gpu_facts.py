"""What is on this machine: device, driver, tools, versions, the compiled library, ceilings.

python -m bench.gpu_facts

Its products also bring cuBLAS from the disk, which would otherwise count as the first test's time.
"""

import shutil
from importlib.util import find_spec

import torch

from bench.ceilings import measure_ceilings
from bench.kernel_records import machine_facts, package_versions
from secateur_kernels.library import library_status
from secateur_kernels.timing import time_in_turns

_TOOLS = ("nvidia-smi", "nvcc", "gcc", "compute-sanitizer", "ncu", "cuobjdump", "nvdisasm")
_MODULES = ("pytest", "hypothesis", "pytest_benchmark", "xdist", "transformers", "matplotlib")


_PRODUCTS = ((torch.bfloat16, 8192), (torch.float64, 4096))


def product_rate(dtype: torch.dtype, size: int, device: torch.device) -> float:
    """Floating-point operations a second of torch's product of two square matrices."""
    matrix = torch.empty(size, size, dtype=dtype, device=device).normal_()
    timed = time_in_turns({"product": lambda index: matrix @ matrix}, device, rounds=5)
    return 2 * size**3 / timed["product"].median * 1e6


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
        for dtype, size in _PRODUCTS:
            name, rate = f"{dtype} {size}^3", product_rate(dtype, size, device)
            print(f"{name:24} {rate / 1e12:.0f} TFLOP/s", flush=True)


if __name__ == "__main__":
    main()
