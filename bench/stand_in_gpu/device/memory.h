// Memory of the stand-in GPU: pages of the host, counted as a GPU's allocator would count them.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <map>
#include <mutex>
#include <unordered_map>

namespace stand_in {

constexpr auto kGpu = c10::DeviceType::CUDA;

inline std::atomic<int64_t> in_use{0};
inline std::atomic<int64_t> peak{0};
inline std::atomic<int64_t> capacity{std::numeric_limits<int64_t>::max()};

// Blocks by address, and their bytes.
inline std::mutex blocks_mutex;
inline std::unordered_map<void*, int64_t> blocks;

inline int64_t rounded_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

constexpr int64_t kPage = 4096;
// What torch's allocator rounds small requests to.
constexpr int64_t kGranule = 512;

inline void release(void* data) {
  const std::lock_guard<std::mutex> guard(blocks_mutex);
  const auto found = blocks.find(data);
  if (found == blocks.end()) return;
  in_use -= found->second;
  munmap(data, rounded_up(found->second, kPage));
  blocks.erase(found);
}

class GpuMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t asked) override {
    const c10::Device device(kGpu, 0);
    if (asked == 0) return {nullptr, nullptr, &release, device};
    const int64_t bytes = rounded_up(static_cast<int64_t>(asked), kGranule);
    const std::lock_guard<std::mutex> guard(blocks_mutex);
    TORCH_CHECK_WITH(OutOfMemoryError, in_use + bytes <= capacity,
                     "CUDA out of memory. Tried to allocate ", bytes, " bytes on the stand-in GPU, "
                     "where ", in_use.load(), " of ", capacity.load(), " are in use.");
    // Pages that nobody touches take no memory and read as zeros.
    void* data = mmap(nullptr, rounded_up(bytes, kPage), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    TORCH_CHECK(data != MAP_FAILED, "no address space for ", bytes, " bytes");
    blocks[data] = bytes;
    in_use += bytes;
    peak = std::max(peak.load(), in_use.load());
    return {data, data, &release, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

inline GpuMemory gpu_memory;

// Pinned blocks by address, and where they end.
inline std::mutex pinned_mutex;
inline std::map<const void*, const void*> pinned;

inline void unpin(void* data) {
  {
    const std::lock_guard<std::mutex> guard(pinned_mutex);
    pinned.erase(data);
  }
  std::free(data);
}

inline bool is_pinned(const void* data) {
  const std::lock_guard<std::mutex> guard(pinned_mutex);
  auto after = pinned.upper_bound(data);
  return after != pinned.begin() && data < (--after)->second;
}

class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &unpin, c10::Device(c10::DeviceType::CPU)};
    void* data = std::aligned_alloc(64, rounded_up(static_cast<int64_t>(bytes), 64));
    const std::lock_guard<std::mutex> guard(pinned_mutex);
    pinned[data] = static_cast<const char*>(data) + bytes;
    return {data, data, &unpin, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

inline PinnedMemory pinned_memory;

}  // namespace stand_in
