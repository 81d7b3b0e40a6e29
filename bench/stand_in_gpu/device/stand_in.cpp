// Makes a torch that was built without CUDA believe in a GPU. See bench/stand_in_gpu/__init__.py.
#include "operators.h"
#include "runtime.h"
#include "views.h"

namespace stand_in {

C10_REGISTER_GUARD_IMPL(CUDA, Guard);

}  // namespace stand_in

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, ::stand_in::Hooks)
}  // namespace at

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&stand_in::run>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", stand_in::empty_memory_format);
  library.impl("empty_strided", stand_in::empty_strided);
  library.impl("as_strided", stand_in::strided_view);
  library.impl("_reshape_alias", stand_in::reshape_alias);
  library.impl("view", stand_in::view);
  library.impl("unfold", stand_in::unfold);
  library.impl("view.dtype", stand_in::view_dtype);
  library.impl("view_as_complex", stand_in::view_as_complex);
  library.impl("view_as_real", stand_in::view_as_real);
  library.impl("resize_", stand_in::resize_in_place);
  library.impl("set_.source_Storage_storage_offset", stand_in::set_storage_and_sizes);
  library.impl("set_.source_Storage", stand_in::set_storage);
  library.impl("set_.source_Tensor", stand_in::set_tensor);
  library.impl("copy_", stand_in::copy);
  library.impl("_copy_from", stand_in::copy_from);
  library.impl("_local_scalar_dense", stand_in::read_number);
  library.impl("histc", stand_in::histogram);
}

TORCH_LIBRARY_IMPL(aten, AutogradCUDA, library) {
  library.impl("scaled_dot_product_attention", stand_in::attention);
}

extern "C" {

void stand_in_begin() { c10::SetAllocator(stand_in::kGpu, &stand_in::gpu_memory, 100); }
void stand_in_compute(bool computes) { stand_in::computes = computes; }
int64_t stand_in_in_use() { return stand_in::in_use; }
int64_t stand_in_peak() { return stand_in::peak; }
void stand_in_reset_peak() { stand_in::peak = stand_in::in_use.load(); }
void stand_in_set_capacity(int64_t bytes) { stand_in::capacity = bytes; }
}
