// The tiles kernel for fp16 weights.
#include "sparse24_tiles/launch.h"

namespace secateur::tiles {

int launch_fp16(const SecateurSparse24Tiles& arguments, cudaStream_t stream) {
  return launch_type<Fp16>(arguments, stream);
}

}  // namespace secateur::tiles
