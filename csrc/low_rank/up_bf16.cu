// The second low-rank kernel for bf16.
#include "low_rank/launch.h"

namespace secateur::low_rank {

int up_bf16(const SecateurLowRank& a, cudaStream_t stream) {
  return launch_up<Bf16, false>(a, stream);
}

}  // namespace secateur::low_rank
