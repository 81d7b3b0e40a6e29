// The first low-rank kernel for fp16.
#include "low_rank/launch.h"

namespace secateur::low_rank {

int down_fp16(const SecateurLowRank& a, cudaStream_t stream) {
  return launch_down<Fp16>(a, stream);
}

}  // namespace secateur::low_rank
