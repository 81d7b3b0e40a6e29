// The second low-rank kernel for fp16.
#include "low_rank/launch.h"

namespace secateur::low_rank {

int up_fp16(const SecateurLowRank& a, cudaStream_t stream) {
  return launch_up<Fp16, false>(a, stream);
}

}  // namespace secateur::low_rank
