// The first low-rank kernel for bf16.
#include "low_rank/launch.h"

namespace secateur::low_rank {

int down_bf16(const SecateurLowRank& a, cudaStream_t stream) {
  return launch_down<Bf16>(a, stream);
}

}  // namespace secateur::low_rank
