// The device code of the one-hot probe and of the microbenchmarks' stream on an emulated GPU.
#include "box_stream.h"
#include "emulated/run.h"
#include "probe.h"
#include "stream.h"

using namespace micro;
using emulation::Machine;
using emulation::shared_base;

namespace {

std::string text;

template <typename Value>
void probe(const uint8_t* units, int64_t count, float* sums, uint32_t one) {
  for (int64_t unit = 0; unit < count; ++unit) {
    // Dynamic shared memory is aligned to 16 bytes only.
    const int misplaced = 16 * (unit % 64);
    Machine machine(warpgroup_threads, misplaced + probe_shared_bytes, unit);
    machine.allow(units, count * fragment24::unit_bytes, false);
    machine.allow(sums, count * sums_of_unit * 4, true);
    machine.run(static_cast<int>(unit),
                [&] { probe_unit<Value>({units, sums, one}, shared_base + misplaced); });
  }
}

template <int Cluster>
void stream(const Stream& s, int blocks, bool dependent, uint64_t seed) {
  for (int block = 0; block < blocks; block += Cluster) {
    Machine machine(64, shared_bytes(s), seed + block, Cluster);
    machine.allow(s.source, s.units * unit_bytes, false, true);
    machine.allow(s.sink, 4, true);
    if (dependent) machine.launch_dependent();
    machine.run(block, [&] { run_stream<Cluster>(s, shared_base); });
  }
}

}  // namespace

namespace emulation {
std::string& message() { return text; }
}  // namespace emulation

extern "C" const char* message() { return text.c_str(); }

extern "C" int emulate_probe(const uint8_t* units, int64_t count, float* sums, int bf16) {
  return emulation::guarded([&] {
    if (bf16) {
      probe<secateur::Bf16>(units, count, sums, 0x3F80u);
    } else {
      probe<secateur::Fp16>(units, count, sums, 0x3C00u);
    }
  });
}

extern "C" int emulate_stream(const uint8_t* source, int64_t units, int64_t block_units, int stages,
                              int stage_units, int prefetch, uint32_t* sink, int blocks,
                              int cluster, int dependent, uint64_t seed) {
  const int64_t start = units / (blocks / cluster);
  const Stream s{source,      units, block_units,   start, stages,
                 stage_units, true,  prefetch != 0, sink};
  return emulation::guarded([&] {
    switch (cluster) {
      case 1:
        return stream<1>(s, blocks, dependent != 0, seed);
      case 2:
        return stream<2>(s, blocks, dependent != 0, seed);
      default:
        return stream<4>(s, blocks, dependent != 0, seed);
    }
  });
}

// A matrix of whole boxes, whose row blocks `blocks` thread blocks share.
extern "C" int emulate_boxes(const uint8_t* matrix, int row_blocks, int box_rows, int row_stages,
                             int stage_boxes, int stages, int blocks, uint64_t seed) {
  const int64_t columns = int64_t{box_columns} * row_stages * stage_boxes;
  const int64_t rows = int64_t{row_blocks} * box_rows;
  const BoxStream s{{matrix, columns, rows, 2 * columns, box_rows},
                    row_blocks, box_rows, row_stages, stage_boxes, stages, blocks};
  return emulation::guarded([&] {
    for (int block = 0; block < blocks; ++block) {
      const int misplaced = 16 * (block % 64);
      Machine machine(64, misplaced + shared_bytes(s), seed + block);
      machine.allow(matrix, 2 * rows * columns, false);
      machine.run(block, [&] { run_boxes(s, shared_base + misplaced); });
    }
  });
}
