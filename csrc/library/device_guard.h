// Makes a device current and the former one again at the end.
#pragma once

#include <cuda_runtime_api.h>

namespace secateur {

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

}  // namespace secateur
