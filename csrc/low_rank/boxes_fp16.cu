// Both low-rank kernels that fetch boxes, for fp16.
#include "low_rank/boxes_launch.h"

namespace secateur::low_rank {

int box_down_fp16(const SecateurLowRank& a, cudaStream_t stream) {
  return boxes::launch_down<Fp16>(a, stream);
}
int box_up_fp16(const SecateurLowRank& a, cudaStream_t stream) {
  return boxes::launch_up<Fp16>(a, stream);
}

}  // namespace secateur::low_rank
