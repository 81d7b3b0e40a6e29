// secateur/device.h on a CPU. What each instruction does to registers is written down from its
// description in the PTX manual, and shares nothing with the kernels' own index arithmetic.
#pragma once

#include <cmath>
#include <cstring>

#include "emulated/machine.h"
#include "secateur/common.h"

#define SECATEUR_DEVICE inline

namespace secateur::device {

using emulation::Landing;
using emulation::Machine;

inline Machine& machine() { return *Machine::current(); }

inline int thread() { return machine().thread(); }
inline int lane() { return thread() % 32; }
inline int block() { return machine().block(); }
inline void sync_block() { machine().sync_block(); }
inline void sync_warp() {
  machine().collective<char, char>("sync_warp", 0, [](const char*, char* out) {
    for (int i = 0; i < 32; ++i) out[i] = 0;
  });
}

inline void let_successor_start() {}
inline void wait_for_predecessor() { machine().wait_for_predecessor(); }

inline void barrier_init(uint32_t barrier, int count) { machine().init_barrier(barrier, count); }
inline void barrier_init_fence() {}
inline void barrier_arrive(uint32_t barrier) { machine().arrive(barrier); }
inline void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  machine().barrier(barrier).bytes += bytes;
  machine().arrive(barrier);
}
inline void barrier_arrive_after_copies(uint32_t barrier) {
  machine().arrive_after_copies(barrier);
}
inline bool barrier_passed(uint32_t barrier, uint32_t parity) {
  if (machine().barrier(barrier).of_cluster) {
    machine().fail("a thread block's own wait for what others of the cluster do");
  }
  return machine().barrier(barrier).phase % 2 != parity;
}
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  while (!barrier_passed(barrier, parity)) machine().yield();
}

inline uint64_t read_once_policy() { return 0; }
inline void copy_bulk(uint32_t target, const void* source, uint32_t bytes, uint32_t barrier,
                      uint64_t) {
  if (bytes % 16 || target % 16 || reinterpret_cast<uintptr_t>(source) % 16) {
    machine().fail("bulk copy: expected multiples of 16 bytes");
  }
  Landing landing;
  landing.target = target;
  landing.source = static_cast<const uint8_t*>(source);
  landing.bytes = landing.valid = bytes;
  landing.barrier = barrier;
  landing.counted = bytes;
  machine().start_copy(landing, true);
}
inline void prefetch_bulk(const void* source, uint32_t bytes) {
  if (bytes % 16 || reinterpret_cast<uintptr_t>(source) % 16) {
    machine().fail("prefetch: expected multiples of 16 bytes");
  }
  machine().prefetch(source, bytes);
}
inline void fence_before_copies() { machine().fence_before_copies(); }
inline void copy16(uint32_t target, const void* source, int valid) {
  if (target % 16 || (valid > 0 && reinterpret_cast<uintptr_t>(source) % 16)) {
    machine().fail("cp.async: expected multiples of 16 bytes");
  }
  if (valid < 0 || valid > 16) machine().fail("cp.async: expected 0 to 16 bytes");
  Landing landing;
  landing.target = target;
  landing.source = static_cast<const uint8_t*>(source);
  landing.bytes = 16;
  landing.valid = valid;
  machine().start_copy(landing, false);
}
inline void wait_for_copies() { machine().wait_for_copies(); }

inline void store_shared16(uint32_t target, Words4 value) {
  std::memcpy(machine().shared(target, 16), &value, 16);
  machine().wrote(target, 16);
}
inline void store_shared4(uint32_t target, uint32_t value) {
  std::memcpy(machine().shared(target, 4), &value, 4);
  machine().wrote(target, 4);
}
inline Words4 load_shared16(uint32_t source) {
  Words4 value;
  machine().touch_registers();
  machine().accessed(source, 16);
  std::memcpy(&value, machine().shared(source, 16), 16);
  return value;
}
inline uint32_t load_shared4(uint32_t source) {
  uint32_t value;
  machine().touch_registers();
  machine().accessed(source, 4);
  std::memcpy(&value, machine().shared(source, 4), 4);
  return value;
}

// ldmatrix.x4: matrix i has its rows at the addresses of lanes 8 * i to 8 * i + 7; lane L gets of
// every matrix two values of row L / 4, from column 2 * (L % 4) on.
inline Words4 load_matrices(uint32_t source) {
  machine().accessed(source, 16);
  return machine().collective<uint32_t, Words4>(
      "ldmatrix", source, [](const uint32_t* addresses, Words4* out) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int matrix = 0; matrix < 4; ++matrix) {
            const uint8_t* row = machine().shared(addresses[8 * matrix + lane / 4], 16);
            std::memcpy(&out[lane].word[matrix], row + 4 * (lane % 4), 4);
          }
        }
      });
}

// ldmatrix.x4.trans: a lane gets of every matrix two values of column L / 4, from row 2 * (L % 4)
// on.
inline Words4 load_transposed_matrices(uint32_t source) {
  machine().accessed(source, 16);
  return machine().collective<uint32_t, Words4>(
      "ldmatrix.trans", source, [](const uint32_t* addresses, Words4* out) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int item = 0; item < 8; ++item) {
            const int matrix = item / 2, row = 2 * (lane % 4) + item % 2;
            uint16_t value;
            std::memcpy(&value, machine().shared(addresses[8 * matrix + row], 16) + lane / 4 * 2,
                        2);
            std::memcpy(reinterpret_cast<uint8_t*>(&out[lane]) + 2 * item, &value, 2);
          }
        }
      });
}

// stmatrix.x4.trans: what load_transposed_matrices would get.
inline void store_transposed_matrices(uint32_t target, Words4 value) {
  struct In {
    uint32_t address;
    Words4 value;
  };
  machine().wrote(target, 16);
  machine().collective<In, char>(
      "stmatrix.trans", In{target, value}, [](const In* in, char* out) {
        for (int lane = 0; lane < 32; ++lane) {
          for (int item = 0; item < 8; ++item) {
            const int matrix = item / 2, row = 2 * (lane % 4) + item % 2;
            uint8_t* to = machine().shared(in[8 * matrix + row].address, 16) + lane / 4 * 2;
            std::memcpy(to, reinterpret_cast<const uint8_t*>(&in[lane].value) + 2 * item, 2);
          }
          out[lane] = 0;
        }
      });
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

template <typename Value>
float unpack(uint32_t bits);
template <>
inline float unpack<Bf16>(uint32_t bits) {
  const uint32_t wide = bits << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
template <>
inline float unpack<Fp16>(uint32_t bits) {
  const uint16_t narrow = static_cast<uint16_t>(bits);
  _Float16 value;
  std::memcpy(&value, &narrow, 2);
  return static_cast<float>(value);
}

inline uint32_t round_to(Bf16, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return 0x7FFF;
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}
inline uint32_t round_to(Fp16, float value) {
  const _Float16 narrow = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &narrow, 2);
  return bits;
}
template <typename Value>
uint32_t pack(float low, float high) {
  return round_to(Value{}, low) | (round_to(Value{}, high) << 16);
}

struct MmaIn {
  float sum[4];
  Words4 a, b;
  uint32_t metadata;
};
struct MmaOut {
  float sum[4];
};

// mma.sp::ordered_metadata.m16n8k32, 16-bit values. A, of 16 x 16 kept values: lane 4q + t,
// register r, item e: row q + 8 * (r % 2), kept column 2t + e + 8 * (r / 2). Metadata of selector
// s: lanes 4q + 2s (kept columns 0 to 7) and 4q + 2s + 1 (8 to 15); low half row q, high half row
// q + 8; two bits a kept value. B, 32 x 8: register r, item e: row 8r + 2t + e, column q. C, 16 x
// 8: item i: row q + 8 * (i / 2), column 2t + i % 2.
template <typename Value, int Selector>
void multiply_sparse(float (&sum)[4], Words4 a, Words4 b, uint32_t metadata) {
  MmaIn in{{sum[0], sum[1], sum[2], sum[3]}, a, b, metadata};
  const auto half = [](uint32_t word, int item) { return item ? word >> 16 : word & 0xFFFF; };
  const MmaOut out = machine().collective<MmaIn, MmaOut>(
      Selector ? "mma.sp selector 1" : "mma.sp selector 0", in,
      [&half](const MmaIn* lanes, MmaOut* results) {
        float dense[16][32] = {};
        bool kept_column[16][32] = {};
        float tokens[32][8];
        for (int lane = 0; lane < 32; ++lane) {
          const int q = lane / 4, t = lane % 4;
          for (int r = 0; r < 4; ++r) {
            for (int e = 0; e < 2; ++e) {
              tokens[8 * r + 2 * t + e][q] = unpack<Value>(half(lanes[lane].b.word[r], e));
              const int row = q + 8 * (r % 2), kept = 2 * t + e + 8 * (r / 2);
              const uint32_t word = lanes[4 * q + 2 * Selector + kept / 8].metadata;
              const uint32_t indices = half(word, row / 8);
              const int index = (indices >> (2 * (kept % 8))) & 3;
              if (e == 1 && index <= static_cast<int>((indices >> (2 * (kept % 8) - 2)) & 3)) {
                machine().fail("mma.sp: metadata is not ordered");
              }
              dense[row][4 * (kept / 2) + index] = unpack<Value>(half(lanes[lane].a.word[r], e));
              kept_column[row][4 * (kept / 2) + index] = true;
            }
          }
        }
        for (int lane = 0; lane < 32; ++lane) {
          for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            float total = lanes[lane].sum[i];
            for (int k = 0; k < 32; ++k) {
              if (kept_column[row][k]) total += dense[row][k] * tokens[k][column];
            }
            results[lane].sum[i] = total;
          }
        }
      });
  for (int i = 0; i < 4; ++i) sum[i] = out.sum[i];
}

// movmatrix.trans: before and after, lane L holds columns 2 * (L % 4) and the next of row L / 4.
inline uint32_t transpose8x8(uint32_t pair) {
  return machine().collective<uint32_t, uint32_t>(
      "movmatrix", pair, [](const uint32_t* in, uint32_t* out) {
        uint16_t matrix[8][8];
        for (int lane = 0; lane < 32; ++lane) {
          std::memcpy(&matrix[lane / 4][2 * (lane % 4)], &in[lane], 4);
        }
        for (int lane = 0; lane < 32; ++lane) {
          const uint32_t low = matrix[2 * (lane % 4)][lane / 4];
          const uint32_t high = matrix[2 * (lane % 4) + 1][lane / 4];
          out[lane] = low | (high << 16);
        }
      });
}

template <typename T>
T shuffle(T value, int from) {
  struct In {
    T value;
    int from;
  };
  return machine().collective<In, T>("shuffle", In{value, from}, [](const In* in, T* out) {
    for (int lane = 0; lane < 32; ++lane) out[lane] = in[in[lane].from].value;
  });
}

inline float exponential(float v) { return std::exp(v); }
inline float reciprocal(float v) { return 1.0f / v; }

template <typename T>
T load(const void* source) {
  return *machine().global<T>(source, false);
}
template <>
inline Words4 load<Words4>(const void* source) {
  Words4 value;
  if (reinterpret_cast<uintptr_t>(source) % 16) machine().fail("global: misaligned access");
  std::memcpy(&value, machine().global<Words4>(source, false), 16);
  return value;
}
template <typename T>
void store(void* target, T value) {
  *machine().global<T>(target, true) = value;
}

inline void store_partial(float* target, const float (&v)[4]) {
  if (reinterpret_cast<uintptr_t>(target) % 16) machine().fail("global: misaligned access");
  machine().leave_sums(target, v);
}
inline void add_partial(float (&sum)[4], const float* source) {
  machine().check_global(source, 16, false);
  if (reinterpret_cast<uintptr_t>(source) % 16) machine().fail("global: misaligned access");
  for (int i = 0; i < 4; ++i) sum[i] += source[i];
}
inline void fence_device() {}
inline uint32_t take_ordered_ticket(uint32_t* counter) {
  machine().order_sums();
  return (*machine().global<uint32_t>(counter, true))++;
}
// It may see what was there before: with every other counter it does, so that both ways are taken.
inline uint32_t peek_ticket(const uint32_t* counter) {
  const uint32_t now = *machine().global<uint32_t>(counter, false);
  return reinterpret_cast<uintptr_t>(counter) / 4 % 2 ? now : 0;
}

}  // namespace secateur::device
