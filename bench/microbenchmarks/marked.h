// Marks of csrc/include/secateur/device/marks.h, written to global memory: the clock of the
// multiprocessor at which a thread block passes each point. To be included before any kernel.
#pragma once

#define SECATEUR_MARKED
#include "harness.h"
#include "secateur/device/marks.h"

namespace micro {

namespace device = secateur::device;

using Mark = unsigned long long;

// What a thread block writes: a clock for each point, zero for one that it does not pass, and then
// the number of its multiprocessor plus one.
constexpr int points = static_cast<int>(device::Point::count);
constexpr int marks_of_block = points + 1;

// In front of the kernel's own shared memory: where the thread block's marks go, or null.
constexpr int marks_shared_bytes = 128;
extern __shared__ __align__(128) uint8_t marked_shared[];
__device__ __forceinline__ Mark** place_of_marks() {
  return reinterpret_cast<Mark**>(marked_shared);
}

__device__ __forceinline__ int multiprocessor() {
  int v;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(v));
  return v;
}

// Before anything of the kernel. `marks`: [thread block][marks_of_block], all zero, or null.
__device__ __forceinline__ void begin_marks(Mark* marks) {
  if (device::thread() == 0) {
    Mark* mine = marks == nullptr ? nullptr : marks + device::block() * marks_of_block;
    *place_of_marks() = mine;
    if (mine != nullptr) mine[points] = static_cast<Mark>(multiprocessor() + 1);
  }
  device::sync_block();
}

// Clocks of multiprocessors have nothing to do with each other. Each is read beside that of the
// whole GPU, at moments at which that one steps: it may do so once a microsecond only.
constexpr int readings = 16;
struct Clocks {
  int64_t* at;  // [multiprocessor][reading][own clock, nanoseconds]
};

__device__ __forceinline__ int64_t nanoseconds() {
  int64_t v;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v)::"memory");
  return v;
}

// One thread on every multiprocessor.
__global__ void read_clocks(const __grid_constant__ Clocks clocks) {
  int64_t* mine = clocks.at + multiprocessor() * readings * 2;
  for (int i = 0; i < readings; ++i) {
    const int64_t before = nanoseconds();
    int64_t now;
    do {
      now = nanoseconds();
    } while (now == before);
    mine[2 * i] = clock_now();
    mine[2 * i + 1] = now;
  }
}

}  // namespace micro

namespace secateur::device {

SECATEUR_DEVICE void mark(Point point, bool when) {
  if (!when || lane() != 0) return;
  micro::Mark* marks = *micro::place_of_marks();
  if (marks == nullptr) return;
  // As an instruction: the compiler does not know that it is global memory, and would wait to hear.
  asm volatile("red.relaxed.gpu.global.max.u64 [%0], %1;" ::"l"(marks + static_cast<int>(point)),
               "l"(micro::clock_now())
               : "memory");
}

SECATEUR_DEVICE void mark_first(Point point, bool when) {
  if (!when || lane() != 0) return;
  micro::Mark* marks = *micro::place_of_marks();
  if (marks == nullptr) return;
  asm volatile(
      "{\n.reg .b64 old;\natom.relaxed.gpu.global.cas.b64 old, [%0], 0, %1;\n}" ::"l"(
          marks + static_cast<int>(point)),
      "l"(micro::clock_now())
      : "memory");
}

}  // namespace secateur::device
