// New tensors and views of tensors on the stand-in GPU.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>

#include "memory.h"

namespace stand_in {

inline const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

inline bool is_on_gpu(const at::Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == kGpu;
}

// The same memory as a tensor of the CPU, for as long as `tensor` lives.
inline at::Tensor on_cpu(const at::Tensor& tensor) {
  if (!is_on_gpu(tensor)) return tensor;
  const auto& storage = tensor.storage();
  auto* const data = const_cast<void*>(storage.data());
  c10::Storage of_cpu(c10::Storage::use_byte_size_t(), storage.nbytes(),
                      c10::DataPtr(data, c10::Device(c10::kCPU)), c10::GetAllocator(c10::kCPU),
                      /*resizable=*/true);
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      std::move(of_cpu), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                      tensor.storage_offset());
  result._set_conj(tensor.is_conj());
  result._set_neg(tensor.is_neg());
  return result;
}

inline at::Tensor empty_memory_format(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                                      std::optional<c10::Layout>, std::optional<c10::Device>,
                                      std::optional<bool>,
                                      std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &gpu_memory, kKeys, c10::dtype_or_default(dtype), format);
}

inline at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                                std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                                std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &gpu_memory, kKeys,
                                           c10::dtype_or_default(dtype));
}

inline at::Tensor empty_like_this(const at::Tensor& other) {
  return empty_strided(other.sizes(), other.strides(), other.scalar_type(), {}, {}, {});
}

// `self` seen as `of_cpu`, a view of its memory on the CPU, is.
inline at::Tensor seen_as(const at::Tensor& self, const at::Tensor& of_cpu) {
  auto result = at::detail::make_tensor<c10::TensorImpl>(
      c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(), of_cpu.dtype());
  result.unsafeGetTensorImpl()->set_sizes_and_strides(of_cpu.sizes(), of_cpu.strides(),
                                                      of_cpu.storage_offset());
  return result;
}

inline at::Tensor strided_view(const at::Tensor& self, c10::IntArrayRef size,
                               c10::IntArrayRef stride, std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

inline at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size,
                                c10::IntArrayRef stride) {
  return at::native::as_strided_tensorimpl(self, size, stride, self.storage_offset());
}

inline at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) {
  const auto of_cpu = on_cpu(self).view(size);
  return reshape_alias(self, of_cpu.sizes(), of_cpu.strides());
}

inline at::Tensor unfold(const at::Tensor& self, int64_t dim, int64_t size, int64_t step) {
  const auto of_cpu = on_cpu(self).unfold(dim, size, step);
  return strided_view(self, of_cpu.sizes(), of_cpu.strides(), of_cpu.storage_offset());
}

inline at::Tensor view_dtype(const at::Tensor& self, c10::ScalarType dtype) {
  return seen_as(self, on_cpu(self).view(dtype));
}

inline at::Tensor view_as_complex(const at::Tensor& self) {
  return seen_as(self, at::view_as_complex(on_cpu(self)));
}

inline at::Tensor view_as_real(const at::Tensor& self) {
  return seen_as(self, at::view_as_real(on_cpu(self)));
}

inline const at::Tensor& resize_in_place(const at::Tensor& self, c10::IntArrayRef size,
                                         std::optional<c10::MemoryFormat>) {
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt);
  return self;
}

inline at::Tensor& set_storage_and_sizes(at::Tensor& self, at::Storage storage, int64_t offset,
                                         c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

inline at::Tensor& set_storage(at::Tensor& self, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  const int64_t one = 1;
  return set_storage_and_sizes(self, std::move(storage), 0, count, one);
}

inline at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& other) {
  return set_storage_and_sizes(self, other.storage(), other.storage_offset(), other.sizes(),
                               other.strides());
}

}  // namespace stand_in
