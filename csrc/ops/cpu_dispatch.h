// Run-time choice among the variants of a CPU kernel that the build makes of every *_kernel.cpp
// (cmake/CpuVariants.cmake).
//
//   ops/foo/foo.h:           TORCHGRAFT_CPU_KERNEL(void, foo_kernel, (at::Tensor & out, const at::Tensor& x))
//   ops/foo/foo_kernel.cpp:  namespace torchgraft::CPU_CAPABILITY { void foo_kernel(at::Tensor& out, const at::Tensor&
//   x) {...} } ops/foo/foo.cpp:         TORCHGRAFT_CHOOSE_KERNEL(foo_kernel)(out, x);
//
// The choice follows LibTorch's own, so ATEN_CPU_CAPABILITY=avx2|default selects here too.
#pragma once

#include <ATen/Version.h>

#include <string>

namespace torchgraft {

enum class CpuCapability { DEFAULT, AVX2, AVX512 };

inline CpuCapability cpu_capability() {
  static const CpuCapability capability = [] {
    const std::string name = at::get_cpu_capability();
    if (name == "AVX512") {
      return CpuCapability::AVX512;
    }
    return name == "AVX2" ? CpuCapability::AVX2 : CpuCapability::DEFAULT;
  }();
  return capability;
}

}  // namespace torchgraft

#if defined(TORCHGRAFT_HAS_CPU_AVX512) && defined(TORCHGRAFT_HAS_CPU_AVX2)
#define TORCHGRAFT_CPU_KERNEL(result, name, arguments) \
  namespace torchgraft::DEFAULT {                      \
  result name arguments;                               \
  }                                                    \
  namespace torchgraft::AVX2 {                         \
  result name arguments;                               \
  }                                                    \
  namespace torchgraft::AVX512 {                       \
  result name arguments;                               \
  }
#define TORCHGRAFT_CHOOSE_KERNEL(name)                                                                    \
  (::torchgraft::cpu_capability() == ::torchgraft::CpuCapability::AVX512                                  \
       ? &::torchgraft::AVX512::name                                                                      \
       : (::torchgraft::cpu_capability() == ::torchgraft::CpuCapability::AVX2 ? &::torchgraft::AVX2::name \
                                                                              : &::torchgraft::DEFAULT::name))
#else
#define TORCHGRAFT_CPU_KERNEL(result, name, arguments) \
  namespace torchgraft::DEFAULT {                      \
  result name arguments;                               \
  }
#define TORCHGRAFT_CHOOSE_KERNEL(name) (&::torchgraft::DEFAULT::name)
#endif
