// An arena for the memory of large CPU tensors.
//
// A training step allocates and frees the same few hundred blocks over and over. The C library gives blocks of
// megabytes back to the system as soon as they are free and gets them again as zeroed pages, one fault per 4 KiB: on
// the reference machine 0.6 ms per MiB, ten times what writing the memory costs, and a third of a ResNet-50 step. The
// arena keeps the pages, merges free neighbors, takes the best fit, and asks for huge pages.
//
// How much it keeps: never more than its high-water mark, and that mark sinks again. Every time that a multiple of the
// arena's size has been allocated, the pages beyond the largest use in that period (and a quarter more) go back.
//
// Linux grants more memory than there is and kills the process that then uses it. So a request that is larger than what
// is left gives an error here.
#include "cpu_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

#include "available_memory.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace torchgraft {
namespace {

#ifdef __linux__

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
// Smaller blocks stay with the C library, whose own lists serve them well.
constexpr std::size_t kSmallest = std::size_t{64} << 10;
// The arena grows by this much at least, so that system calls are rare.
constexpr std::size_t kGrowth = std::size_t{16} << 20;
constexpr std::size_t kSlack = std::size_t{32} << 20;
// From this size on a request is compared with the memory that is left; the comparison costs far less than the pages.
constexpr std::size_t kCompared = std::size_t{64} << 20;

constexpr std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

class Arena {
 public:
  // Reserves addresses, not memory: four times the machine's, or what the process may have.
  bool reserve() {
    const auto pages = sysconf(_SC_PHYS_PAGES);
    std::size_t size = round_up(static_cast<std::size_t>(std::max(pages, 1L)) * kPage * 4, kHugePage);
    for (; size >= (std::size_t{1} << 30); size /= 2) {
      void* start = mmap(nullptr, size + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (start != MAP_FAILED) {
        base_ = reinterpret_cast<char*>(round_up(reinterpret_cast<std::uintptr_t>(start), kHugePage));
        capacity_ = size;
        return true;
      }
    }
    return false;
  }

  // Null when the arena cannot serve the request.
  void* allocate(std::size_t bytes) {
    if (bytes < kSmallest || bytes > capacity_) {
      return nullptr;
    }
    const std::size_t size = round_up(bytes, kPage);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto fit = free_by_size_.lower_bound({size, 0});
    if (fit == free_by_size_.end()) {
      if (!grow(size)) {
        return nullptr;
      }
      fit = free_by_size_.lower_bound({size, 0});
    }
    const auto [found, offset] = *fit;
    remove_free(offset, found);
    if (found > size) {
      add_free(offset + size, found - size);
    }
    used_.emplace(offset, size);
    touched_ = std::max(touched_, offset + size);
    live_ += size;
    period_peak_ = std::max(period_peak_, live_);
    period_allocated_ += size;
    if (period_allocated_ > 8 * touched_ + kSlack) {
      end_period();
    }
    return base_ + offset;
  }

  bool owns(const void* pointer) const {
    const auto* p = static_cast<const char*>(pointer);
    return p >= base_ && p < base_ + capacity_;
  }

  void free(void* pointer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto block = used_.find(static_cast<std::size_t>(static_cast<char*>(pointer) - base_));
    if (block == used_.end()) {
      return;  // not a block that is in use; nothing safe can be done with it
    }
    std::size_t offset = block->first;
    std::size_t size = block->second;
    used_.erase(block);
    live_ -= size;
    auto next = free_by_offset_.lower_bound(offset);
    if (next != free_by_offset_.end() && next->first == offset + size) {
      const std::size_t more = next->second;
      remove_free(offset + size, more);
      size += more;
    }
    next = free_by_offset_.lower_bound(offset);
    if (next != free_by_offset_.begin()) {
      const auto [before, more] = *std::prev(next);
      if (before + more == offset) {
        remove_free(before, more);
        offset = before;
        size += more;
      }
    }
    add_free(offset, size);
  }

  void release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    give_back(0);
  }

  // Bytes of free blocks that still have their pages, or nearly: what a request can have without asking the system.
  std::size_t spare() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return touched_ - std::min(touched_, live_);
  }

  CpuAllocatorStats stats() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {true, live_, touched_};
  }

 private:
  void add_free(std::size_t offset, std::size_t size) {
    free_by_offset_.emplace(offset, size);
    free_by_size_.emplace(size, offset);
  }

  void remove_free(std::size_t offset, std::size_t size) {
    free_by_offset_.erase(offset);
    free_by_size_.erase({size, offset});
  }

  // Makes a free block of at least `size` bytes at the end of the arena.
  bool grow(std::size_t size) {
    std::size_t start = end_;
    std::size_t missing = size;
    if (!free_by_offset_.empty()) {
      const auto [offset, length] = *free_by_offset_.rbegin();
      if (offset + length == end_) {
        start = offset;
        missing = size - length;
      }
    }
    // In whole huge pages, since the system commits by range.
    const std::size_t step = round_up(std::max(missing, kGrowth), kHugePage);
    if (step > capacity_ - end_ || mprotect(base_ + end_, step, PROT_READ | PROT_WRITE) != 0) {
      return false;
    }
    madvise(base_ + end_, step, MADV_HUGEPAGE);
    if (start < end_) {
      remove_free(start, end_ - start);
    }
    end_ += step;
    add_free(start, end_ - start);
    return true;
  }

  void end_period() {
    const std::size_t keep = period_peak_ + period_peak_ / 4 + kSlack;
    if (touched_ > keep) {
      give_back(keep);
    }
    period_peak_ = live_;
    period_allocated_ = 0;
  }

  // Returns the pages of free blocks, from the end of the arena, until `keep` bytes are left.
  void give_back(std::size_t keep) {
    std::size_t resident = touched_;
    for (auto block = free_by_offset_.rbegin(); block != free_by_offset_.rend() && resident > keep; ++block) {
      const auto [offset, size] = *block;
      const std::size_t last = std::min(offset + size, touched_);
      if (last <= offset) {
        continue;
      }
      madvise(base_ + offset, last - offset, MADV_DONTNEED);
      resident -= last - offset;
      if (last == touched_) {
        touched_ = offset;
      }
    }
  }

  char* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::mutex mutex_;
  std::size_t end_ = 0;      // committed part
  std::size_t touched_ = 0;  // part that has ever been handed out since it was given back
  std::size_t live_ = 0;
  std::size_t period_peak_ = 0;
  std::size_t period_allocated_ = 0;
  std::map<std::size_t, std::size_t> free_by_offset_;
  std::set<std::pair<std::size_t, std::size_t>> free_by_size_;
  std::unordered_map<std::size_t, std::size_t> used_;
};

// Never destroyed: tensors in static storage are freed after everything else.
Arena& arena() {
  static Arena* instance = new Arena();
  return *instance;
}

void must_fit(std::size_t bytes) {
  const std::size_t available = available_memory();
  const std::size_t spare = arena().spare();
  if (available > bytes || spare > bytes - available) {
    return;
  }
  TORCH_CHECK_WITH(OutOfMemoryError, false, "out of memory: ", bytes, " bytes asked for, ", available + spare,
                   " bytes left");
}

void free_block(void* pointer) {
  if (pointer == nullptr) {
    return;
  }
  if (arena().owns(pointer)) {
    arena().free(pointer);
  } else {
    c10::free_cpu(pointer);
  }
}

class ArenaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    void* pointer = nullptr;
    if (bytes != 0) {
      if (bytes >= kCompared) {
        must_fit(bytes);
      }
      pointer = arena().allocate(bytes);
      if (pointer == nullptr) {
        pointer = c10::alloc_cpu(bytes);  // throws what LibTorch throws when memory is short
      }
    }
    return {pointer, pointer, &free_block, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* target, const void* source, std::size_t count) const override {
    default_copy_data(target, source, count);
  }
};

bool installed = false;

void install_once() {
  const char* choice = std::getenv("TORCHGRAFT_ALLOCATOR");
  if ((choice != nullptr && std::strcmp(choice, "system") == 0) || !arena().reserve()) {
    return;
  }
  // Above LibTorch's own, which has priority 0.
  c10::SetCPUAllocator(new ArenaAllocator(), 1);
  installed = true;
}

#endif

}  // namespace

void install_cpu_allocator() {
#ifdef __linux__
  static std::once_flag once;
  std::call_once(once, install_once);
#endif
}

void release_cpu_memory() {
#ifdef __linux__
  if (installed) {
    arena().release();
  }
#endif
}

CpuAllocatorStats cpu_allocator_stats() {
#ifdef __linux__
  if (installed) {
    return arena().stats();
  }
#endif
  return {false, 0, 0};
}

}  // namespace torchgraft
