// Memory of CPU tensors. See cpu_allocator.cpp.
#pragma once

#include <cstddef>

namespace torchgraft {

struct CpuAllocatorStats {
  bool installed;
  std::size_t live;      // bytes in use by large tensors
  std::size_t resident;  // bytes of the arena that have been handed out and not given back to the system
};

// Makes LibTorch take the memory of CPU tensors from an arena that keeps freed pages for the next step. Does nothing
// where it is not supported (other systems than Linux) or when TORCHGRAFT_ALLOCATOR=system. Call it before the first
// tensor is made; calling it again is harmless.
void install_cpu_allocator();

// Gives unused pages back to the system.
void release_cpu_memory();

CpuAllocatorStats cpu_allocator_stats();

}  // namespace torchgraft
