// For values that are cheaper to compute twice than to keep in registers throughout a loop.
#pragma once

#include "secateur/device.h"

namespace secateur::device {

// The same value, of which the compiler does not know that: whatever follows from it is computed
// anew.
SECATEUR_DEVICE int anew(int value) {
#if !defined(SECATEUR_EMULATED)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

template <typename T>
SECATEUR_DEVICE T* anew(T* pointer) {
#if !defined(SECATEUR_EMULATED)
  asm volatile("" : "+l"(pointer));
#endif
  return pointer;
}

// thread(), read from where the hardware keeps it.
SECATEUR_DEVICE int thread_anew() {
#if defined(SECATEUR_EMULATED)
  return thread();
#else
  int v;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(v));
  return v & 1023;
#endif
}

}  // namespace secateur::device
