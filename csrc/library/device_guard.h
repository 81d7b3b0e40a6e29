// The device of a call: whether it can run it, and that it is the current one meanwhile.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

#include "secateur/core/status.h"

namespace secateur {

// Makes a device current, and the former one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    error_ = cudaGetDevice(&former_);
    if (error_ == cudaSuccess && former_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  int error() const { return static_cast<int>(error_); }

 private:
  cudaError_t error_ = cudaSuccess;
  int former_ = 0;
  bool changed_ = false;
};

// What is compiled for sm_90a alone is empty on other devices, newer ones too, and in a library
// that was built without it.
inline int require_sm90(int device) {
  constexpr std::string_view built_for = SECATEUR_ARCHITECTURES;
  if (built_for.find("sm_90a") == std::string_view::npos) return SECATEUR_NEEDS_SM90;
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  if (error != cudaSuccess) return static_cast<int>(error);
  return major == 9 && minor == 0 ? SECATEUR_OK : SECATEUR_NEEDS_SM90;
}

}  // namespace secateur
