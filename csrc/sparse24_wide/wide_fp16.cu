// The wide kernel for fp16 weights.
#include "sparse24_wide/launch.h"

namespace secateur::wide {

int launch_fp16(const SecateurSparse24Wide& arguments, const Problem& problem,
                cudaStream_t stream) {
  return launch<Fp16>(arguments, problem, stream);
}

}  // namespace secateur::wide
