// The second low-rank kernel with a 2:4 weight beside the factors, for fp16.
#include "low_rank/launch.h"

namespace secateur::low_rank {

int sparse_up_fp16(const SecateurLowRank& a, cudaStream_t stream) {
  return launch_up<Fp16, true>(a, stream);
}

}  // namespace secateur::low_rank
