// The second low-rank kernel with a 2:4 weight beside the factors, for bf16.
#include "low_rank/launch.h"

namespace secateur::low_rank {

int sparse_up_bf16(const SecateurLowRank& a, cudaStream_t stream) {
  return launch_up<Bf16, true>(a, stream);
}

}  // namespace secateur::low_rank
