"""What a kernel offers to be compiled without a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One specialisation of one Triton kernel."""

    name: str
    """Says kernel, dtype and config; unique."""
    kernel: Any
    """What `triton.jit` returned."""
    signature: Mapping[str, str]
    """Argument name -> Triton type, such as "*bf16", "i32", or "constexpr"."""
    constexprs: Mapping[str, Any]
    """Argument name -> value of every constexpr argument."""
    divisible_by_16: tuple[str, ...] = field(default=())
    """Arguments that the launcher would specialise on: pointers and sizes divisible by 16."""
    num_warps: int = 4
    num_stages: int = 2
    capabilities: tuple[int, ...] | None = None
    """10 * major + minor of the GPUs that run it, such as (90,); None: any."""

    def runs_on(self, capability: int) -> bool:
        """Whether a GPU of this compute capability would be given this specialisation."""
        return self.capabilities is None or capability in self.capabilities
