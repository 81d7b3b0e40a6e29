// The skinny kernel for fp16 weights.
#include "sparse24_skinny_launch.h"

namespace secateur::skinny {

int launch_fp16(const Problem& problem, int row_tiles, int token_tiles, int device,
                cudaStream_t stream) {
  return launch_shape<Fp16>(problem, row_tiles, token_tiles, device, stream);
}

}  // namespace secateur::skinny
