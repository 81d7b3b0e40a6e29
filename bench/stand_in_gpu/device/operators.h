// Operators on the stand-in GPU: the CPU's on the same memory, or their shapes only.
#pragma once

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "runtime.h"
#include "views.h"

namespace stand_in {

// Without computing, results take memory and hold zeros, by which a job of any size can be run.
inline bool computes = true;

template <typename Visit>
void visit_tensors(const c10::IValue& value, Visit&& visit) {
  if (value.isTensor()) {
    visit(value.toTensor());
  } else if (value.isTensorList()) {
    for (const at::Tensor& tensor : value.toTensorVector()) visit(tensor);
  } else if (value.isOptionalTensorList()) {
    for (const auto& tensor : value.toOptionalTensorVector()) {
      if (tensor.has_value()) visit(*tensor);
    }
  }
}

// As a GPU would: all operands are there, but for single numbers and indices, which alone come as
// a list of optional tensors.
inline void require_on_gpu(const c10::IValue& value, const std::string& name) {
  if (value.isOptionalTensorList()) return;
  visit_tensors(value, [&](const at::Tensor& tensor) {
    TORCH_CHECK(!tensor.defined() || is_on_gpu(tensor) || tensor.dim() == 0,
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and ", tensor.device(), "! (", name, ")");
  });
}

inline at::Tensor operand(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  if (computes) return on_cpu(tensor);
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(c10::kMeta));
}

inline c10::IValue operand(const c10::IValue& value) {
  if (value.isTensor()) return operand(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> result;
    for (const at::Tensor& tensor : value.toTensorVector()) result.push_back(operand(tensor));
    return result;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> result;
    for (const auto& tensor : value.toOptionalTensorVector()) {
      result.push_back(tensor ? std::optional(operand(*tensor)) : std::nullopt);
    }
    return result;
  }
  if (value.isGenerator()) {
    const auto generator = value.toGenerator();
    TORCH_CHECK(generator.device().type() == kGpu,
                "Expected a 'cuda' device type for generator but found '", generator.device(), "'");
    return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->of_cpu();
  }
  if (value.isDevice()) return c10::Device(computes ? c10::kCPU : c10::kMeta);
  return value;
}

inline at::Tensor result_on_gpu(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto result = empty_like_this(tensor);
  if (computes) on_cpu(result).copy_(tensor);
  return result;
}

inline c10::IValue result_on_gpu(const c10::IValue& value) {
  if (value.isTensor()) return result_on_gpu(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> result;
    for (const at::Tensor& tensor : value.toTensorVector()) result.push_back(result_on_gpu(tensor));
    return result;
  }
  return value;
}

// An operator that was given room to write to may have had to take other room.
inline void write_back(const at::Tensor& written, const at::Tensor& to) {
  if (!written.defined() || !is_on_gpu(to)) return;
  const bool moved = computes && written.storage().data() != to.storage().data();
  if (written.sizes() == to.sizes() && !moved) return;
  resize_in_place(to, written.sizes(), std::nullopt);
  if (computes) on_cpu(to).copy_(written);
}

inline void write_back(const c10::IValue& written, const c10::IValue& to) {
  if (written.isTensor()) return write_back(written.toTensor(), to.toTensor());
  if (!written.isTensorList()) return;
  const auto sources = written.toTensorVector();
  const auto targets = to.toTensorVector();
  for (size_t i = 0; i < sources.size(); ++i) write_back(sources[i], targets[i]);
}

// Whichever argument a result is, by its alias in the schema.
inline const c10::IValue& returned_argument(const c10::FunctionSchema& schema,
                                            const c10::AliasInfo& alias,
                                            const std::vector<c10::IValue>& given) {
  for (size_t i = 0; i < given.size(); ++i) {
    const auto* const info = schema.arguments()[i].alias_info();
    if (info != nullptr && *info == alias) return given[i];
  }
  TORCH_CHECK(false, "no argument of ", schema.name(), " is what it returns");
}

inline void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& parameters = schema.arguments();
  const size_t begin = stack->size() - parameters.size();
  const std::vector<c10::IValue> given(stack->begin() + begin, stack->end());
  std::vector<c10::IValue> operands;
  for (size_t i = 0; i < given.size(); ++i) {
    require_on_gpu(given[i], schema.name());
    operands.push_back(operand(given[i]));
    (*stack)[begin + i] = operands.back();
  }
  const auto key = computes ? c10::DispatchKey::CPU : c10::DispatchKey::Meta;
  op.redispatchBoxed(c10::DispatchKeySet(key), stack);
  for (size_t i = 0; i < given.size(); ++i) {
    const auto* const alias = parameters[i].alias_info();
    if (alias != nullptr && alias->isWrite()) write_back(operands[i], given[i]);
  }
  const size_t first = stack->size() - schema.returns().size();
  for (size_t i = 0; i < schema.returns().size(); ++i) {
    auto& result = (*stack)[first + i];
    const auto* const alias = schema.returns()[i].alias_info();
    TORCH_CHECK(alias == nullptr || alias->isWrite(), "the stand-in GPU does not know the view ",
                schema.name(), ".", schema.overload_name());
    result = alias ? returned_argument(schema, *alias, given) : result_on_gpu(result);
  }
}

inline at::Tensor& copy(at::Tensor& self, const at::Tensor& source, bool) {
  if (computes) {
    on_cpu(self).copy_(on_cpu(source));
  } else if (!is_on_gpu(self)) {
    self.zero_();
  } else {
    at::infer_size(self.sizes(), source.sizes());
  }
  return self;
}

inline at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool) {
  at::Tensor self = target;
  return copy(self, source, false);
}

// Numbers that were not computed: checks pass, and nothing is divided by zero.
inline c10::Scalar read_number(const at::Tensor& tensor) {
  if (computes) return on_cpu(tensor).item();
  if (tensor.scalar_type() == c10::kBool) return true;
  return at::isFloatingType(tensor.scalar_type()) ? c10::Scalar(1.0) : c10::Scalar(0);
}

// A GPU counts integers, too, which the CPU refuses.
inline at::Tensor histogram(const at::Tensor& values, int64_t bins, const at::Scalar& low,
                            const at::Scalar& high) {
  if (!computes) return at::empty({bins}, values.options());
  const auto counts = at::histc(on_cpu(values).to(at::kDouble), bins, low, high);
  return result_on_gpu(counts.to(values.scalar_type()));
}

inline at::Tensor added_to_scores(const at::Tensor& mask, const at::Tensor& query) {
  if (mask.scalar_type() != at::kBool) return mask;
  const auto nothing = at::zeros_like(mask, query.options());
  return nothing.masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
}

inline at::Tensor attention(const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const std::optional<at::Tensor>& mask,
                            double dropout, bool causal, std::optional<double> scale,
                            bool grouped) {
  const auto bias = mask ? std::optional(added_to_scores(*mask, query)) : std::nullopt;
  if (computes) {
    return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, bias, dropout,
                                                              causal, {}, scale, grouped));
  }
  // As on a GPU, scores are never whole in memory.
  if (!bias) {
    return std::get<0>(at::_scaled_dot_product_flash_attention(query, key, value, dropout, causal,
                                                               false, scale));
  }
  const auto repeats = query.size(1) / key.size(1);
  const auto repeated = [&](const at::Tensor& heads) {
    return repeats > 1 ? heads.repeat_interleave(repeats, 1) : heads;
  };
  const auto size = {query.size(0), query.size(1), query.size(2), key.size(2)};
  return std::get<0>(at::_scaled_dot_product_efficient_attention(
      query, repeated(key), repeated(value), bias->expand(size), true, dropout, causal, scale));
}

}  // namespace stand_in
