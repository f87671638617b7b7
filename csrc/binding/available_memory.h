// How much memory a process may still take before the system would kill it.
#pragma once

#include <cstddef>

namespace torchgraft {

// Bytes that the machine and the control groups of this process have left, counting what they can take back from file
// caches. The largest number there is where the system does not say.
std::size_t available_memory();

}  // namespace torchgraft
