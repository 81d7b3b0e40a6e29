// The tiles kernel for bf16 weights.
#include "sparse24_tiles/launch.h"

namespace secateur::tiles {

int launch_bf16(const SecateurSparse24Tiles& arguments, cudaStream_t stream) {
  return launch_type<Bf16>(arguments, stream);
}

}  // namespace secateur::tiles
