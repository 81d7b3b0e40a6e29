// Both low-rank kernels that fetch boxes, for bf16.
#include "low_rank/boxes_launch.h"

namespace secateur::low_rank {

int box_down_bf16(const SecateurLowRank& a, cudaStream_t stream) {
  return boxes::launch_down<Bf16>(a, stream);
}
int box_up_bf16(const SecateurLowRank& a, cudaStream_t stream) {
  return boxes::launch_up<Bf16>(a, stream);
}

}  // namespace secateur::low_rank
