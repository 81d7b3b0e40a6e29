// torch.ops.secateur_cuda.unpack24.
#include "library/registration.h"

namespace {

using namespace secateur::registration;

void unpack24(const Tensor& data, Tensor dense, bool gate_up) {
  STD_TORCH_CHECK(dense.dim() == 2 && dense.is_contiguous() && dense.element_size() == 2,
                  "expected dense [N, K], contiguous, of 16-bit values");
  check_weight(data, dense.size(0), dense.size(1));
  SecateurUnpack24 a{};
  a.device = data.get_device_index();
  check_same_device(dense, "dense", a.device);
  a.weight = data.const_data_ptr();
  a.dense = dense.mutable_data_ptr();
  a.rows = dense.size(0);
  a.columns = dense.size(1);
  a.gate_up = gate_up;
  check(secateur_unpack24(&a, current_stream(a.device)));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(secateur_cuda, library) {
  library.def("unpack24(Tensor data, Tensor(a!) dense, bool gate_up) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(secateur_cuda, CUDA, library) {
  library.impl("unpack24", TORCH_BOX(&unpack24));
}
