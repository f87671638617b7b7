#include "available_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace torchgraft {

namespace {

constexpr std::size_t kUnknown = std::numeric_limits<std::size_t>::max();

// The number after `key` in a file of lines `key number`; the first number of the file for an empty key.
std::size_t number_in(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (!key.empty() && word != key) continue;
    if (!key.empty() && !(file >> word)) break;
    try {
      return std::stoull(word);
    } catch (const std::exception&) {
      break;  // "max"
    }
  }
  return kUnknown;
}

std::size_t left_of(std::size_t limit, std::size_t used, std::size_t reclaimable) {
  if (limit == kUnknown || used == kUnknown) return kUnknown;
  const std::size_t taken = used - std::min(used, reclaimable == kUnknown ? 0 : reclaimable);
  return limit - std::min(limit, taken);
}

// The limits of this group and of those that it is part of.
std::size_t left_in_groups(const std::string& root, std::string group, const char* limit, const char* used,
                           const char* cache) {
  std::size_t left = kUnknown;
  for (;;) {
    const std::string folder = root + (group == "/" ? "" : group) + "/";
    left = std::min(left, left_of(number_in(folder + limit, ""), number_in(folder + used, ""),
                                  number_in(folder + "memory.stat", cache)));
    const std::size_t slash = group.rfind('/');
    if (slash == std::string::npos || group.size() <= 1) return left;
    group.resize(std::max<std::size_t>(slash, 1));
  }
}

}  // namespace

std::size_t available_memory() {
  std::size_t left = number_in("/proc/meminfo", "MemAvailable:");
  const std::size_t swap = number_in("/proc/meminfo", "SwapFree:");
  if (left != kUnknown) left = (left + (swap == kUnknown ? 0 : swap)) * 1024;
  // Lines are `id:controllers:path`; the one group of version 2 has no controllers.
  std::ifstream groups("/proc/self/cgroup");
  std::string line;
  while (std::getline(groups, line)) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      left = std::min(left, left_in_groups("/sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file"));
    } else if (controllers == "memory") {
      left = std::min(left, left_in_groups("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes",
                                           "memory.usage_in_bytes", "total_inactive_file"));
    }
  }
  return left;
}

}  // namespace torchgraft
