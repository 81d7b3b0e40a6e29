"""What the kernels' design expects of an H200, by the name of the measurement."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """A figure in the unit of its measurement."""

    value: float
    why: str
    """Where it comes from: assumed by the design, measured elsewhere, or arithmetic."""


_STREAM = "weights were read at this rate by a sum over 4.3 GB"
_BOXES = "a guess: bulk copies of 4.5 KB reach 4.52, and 512 B in a row open more pages of DRAM"
_L2 = "assumed for re-reads of x and small layers, the limit at 64 to 256 tokens"
_PORT = "128 bytes a clock: 32 banks of 4 bytes"
_SPARSE = "assumed; cuSPARSELt reaches 1000 to 1190"
_FULL = "full rate: 2048 multiply-adds a clock, twice that for 2:4"
_FED = "as without loads, if two warpgroups hide them; one cannot at 64 tokens"
_WARP = "assumed: 9 clocks an instruction and scheduler; 4 would be the rate of wgmma.sp"
_FIXED = "fixed cost of the prototype, 3.4 to 3.7 us at few tokens"
_DEPENDENT = "assumed with programmatic dependent launch"
_CLUSTER = "about 200 clocks were measured by others"
_NEIGHBOUR = "3.3 TB/s at clusters of 2 were measured by others, less in larger ones"
_IN_A_ROW = "16 B of 32 rows came at 4.8 on an H200; 512 B in a row as others measured"
_COPIED = "a guess: nearly twice what loads get, as nothing has to be asked for"

# The longest name that a measurement's name begins with decides.
PREDICTED = {
    "memory read, ring of 5": Prediction(4.24, _STREAM),
    "memory read, ring of 11": Prediction(4.24, _STREAM),
    "memory read, two rings": Prediction(4.24, _STREAM),
    "memory read, ring of 7 x 4.5 KB": Prediction(4.0, "32 KB in flight are about enough"),
    "memory read, loads of 16 B": Prediction(4.24, _STREAM),
    "memory read, boxes of": Prediction(4.2, _BOXES),
    "memory read, boxes of 16 rows, 8": Prediction(4.35, _BOXES),
    "L2 to shared memory, ring": Prediction(6.5, _L2),
    "L2 to shared memory, shared by 2": Prediction(10.0, "a guess: L2 reads halve"),
    "L2 to shared memory, shared by 4": Prediction(14.0, "a guess: L2 reads are a quarter"),
    "L2 to registers": Prediction(6.5, _L2),
    "shared memory loads, ": Prediction(128, _PORT),
    "shared memory loads beside": Prediction(96, "the port is shared: 128 with what copies write"),
    "bulk copies beside": Prediction(28, "6.5 TB/s over 132 multiprocessors at 1.75 GHz"),
    "ldmatrix": Prediction(128, _PORT),
    "mma.sp m16n8k32, 4 warps, clocks": Prediction(9, _WARP),
    "mma.sp m16n8k32, 8 warps, clocks": Prediction(9, _WARP),
    "mma.sp m16n8k32, 16 warps, clocks": Prediction(9, _WARP),
    "mma m16n8k16, ": Prediction(6.4, "0.63 of wgmma's rate was measured by others on an H100"),
    "wgmma.sp m64n64, ": Prediction(32, _FULL),
    "wgmma.sp m64n128, ": Prediction(64, _FULL),
    "wgmma.sp m64n256, ": Prediction(128, _FULL),
    "wgmma m64n64, ": Prediction(32, _FULL),
    "wgmma m64n128, ": Prediction(64, _FULL),
    "wgmma m64n256, ": Prediction(128, _FULL),
    "fed wgmma.sp m64n64, ": Prediction(32, _FED),
    "fed wgmma.sp m64n128, ": Prediction(64, _FED),
    "fed wgmma.sp m64n256, ": Prediction(128, _FED),
    "launch of nothing": Prediction(2.0, "a guess"),
    "launch of nothing, dependent": Prediction(1.0, "a guess"),
    "launch of nothing, clusters of 8": Prediction(2.3, "a guess"),
    "launch of nothing, clusters of 8, dependent": Prediction(1.3, "a guess"),
    "layer of 10 MB": Prediction(5.8, "9.7 MB at 4.24 TB/s and the fixed cost"),
    "layer of 10 MB, dependent with": Prediction(3.7, "9.7 MB at 4.24 TB/s and the fixed cost"),
    "fixed cost of a layer": Prediction(3.5, _FIXED),
    "fixed cost of a layer, dependent with": Prediction(1.4, _DEPENDENT),
    "rate of layers": Prediction(4.24, _STREAM),
    "barrier of a cluster": Prediction(200, _CLUSTER),
    "loads of a neighbour's shared memory, cluster of 2": Prediction(14, _NEIGHBOUR),
    "loads of a neighbour's shared memory": Prediction(12, _NEIGHBOUR),
    "contiguous loads of a neighbour's shared memory": Prediction(14, _IN_A_ROW),
    "bulk copies to a neighbour's shared memory": Prediction(25, _COPIED),
    "mbarrier there and back": Prediction(100, "a guess: an arrival and a wait, twice"),
    "mbarrier there and back, cluster": Prediction(450, "a guess: two trips of about 200"),
    "partial sums, ordered ticket": Prediction(
        1035, "what a fence of all lanes and a ticket took on an H200: still two trips to L2"
    ),
}
_RATES = {
    "mma.sp m16n8k32": Prediction(840, "9 clocks, 132 multiprocessors, 1.75 GHz"),
    "mma m16n8k16": Prediction(590, "6.4 clocks, 132 multiprocessors, 1.75 GHz"),
    "wgmma.sp": Prediction(1150, _SPARSE),
    "fed wgmma.sp": Prediction(1150, _SPARSE),
    "wgmma m": Prediction(700, "cuBLAS reaches 736 to 790 on 8192^3"),
}


_CLOCKS = {"": Prediction(1.75, "assumed; 1.98 without load")}
_BY_LAST_PART = {"dense-equivalent rate": _RATES, "multiprocessor clock": _CLOCKS}


def prediction_of(name: str) -> Prediction | None:
    """What was expected of a measurement; None where nothing was."""
    table = _BY_LAST_PART.get(name.rpartition(", ")[2], PREDICTED)
    found = [prefix for prefix in table if name.startswith(prefix)]
    return table[max(found, key=len)] if found else None
