// The skinny kernel for fp16 weights.
#include "sparse24_skinny/launch.h"

namespace secateur::skinny {

int launch_fp16(const Problem& problem, int row_tiles, bool dependent, int device,
                cudaStream_t stream) {
  return launch_shape<Fp16>(problem, row_tiles, dependent, device, stream);
}

}  // namespace secateur::skinny
