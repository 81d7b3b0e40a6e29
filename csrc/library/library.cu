// What the library says about itself, and what its codes mean.
#include <cuda_runtime.h>

#include "library/device_guard.h"
#include "library/error_text.h"
#include "secateur/core.h"

// setup.py defines these.
#if !defined(SECATEUR_VERSION) || !defined(SECATEUR_ARCHITECTURES) || !defined(SECATEUR_FINGERPRINT)
#error "define SECATEUR_VERSION, SECATEUR_ARCHITECTURES and SECATEUR_FINGERPRINT as strings"
#endif

const char* secateur_error_text(int code) {
  if (code <= 0) return secateur::own_error_text(code);
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

const char* secateur_version(void) { return SECATEUR_VERSION; }
const char* secateur_architectures(void) { return SECATEUR_ARCHITECTURES; }
const char* secateur_fingerprint(void) { return SECATEUR_FINGERPRINT; }
int secateur_cuda_version(void) { return CUDART_VERSION; }

int secateur_driver_version(void) {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int secateur_capture_id(void* stream, uint64_t* id) {
  *id = 0;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long found = 0;
  const cudaError_t error =
      cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(stream), &status, &found);
  if (error == cudaSuccess && status != cudaStreamCaptureStatusNone) *id = found;
  return static_cast<int>(error);
}

int secateur_zeroed_memory(int device, int64_t bytes, void** memory) {
  *memory = nullptr;
  const secateur::DeviceGuard guard(device);
  if (guard.error()) return guard.error();
  // Another thread may be capturing a graph, which otherwise forbids allocations to all.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  cudaStream_t stream = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) {
    error = cudaMalloc(memory, static_cast<size_t>(bytes));
    if (error == cudaSuccess) error = cudaMemsetAsync(*memory, 0, bytes, stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
  return static_cast<int>(error);
}
