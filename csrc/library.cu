// What the library says about itself, and what its codes mean.
#include <cuda_runtime.h>

#include "error_text.h"
#include "secateur/core.h"

// setup.py defines these.
#if !defined(SECATEUR_VERSION) || !defined(SECATEUR_ARCHITECTURES) || !defined(SECATEUR_FINGERPRINT)
#error "define SECATEUR_VERSION, SECATEUR_ARCHITECTURES and SECATEUR_FINGERPRINT as strings"
#endif

const char* secateur_error_text(int code) {
  return code > 0 ? cudaGetErrorString(static_cast<cudaError_t>(code)) : secateur::own_error_text(code);
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
