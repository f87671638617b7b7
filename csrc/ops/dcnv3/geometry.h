// Where the points of deformable convolution v3 fall, for the CPU's and the GPU's kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "dcnv3.h"

#ifdef __CUDACC__
#define TORCHGRAFT_HOST_DEVICE __host__ __device__
#else
#define TORCHGRAFT_HOST_DEVICE
#endif

namespace torchgraft {

// Where a point falls: its corners, as offsets of pixels, and their bilinear weights. Corners outside have none.
template <typename T>
struct Sample {
  int64_t pixel[4];  // of (y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1); -1 outside
  T weight[4];
  T across, down;  // fractions of x and y
};

// False, and nothing filled in, for a point that lies a pixel or more outside, or nowhere.
template <typename T>
TORCHGRAFT_HOST_DEVICE inline bool locate(Sample<T>& sample, T y, T x, const Dcnv3Shape& s) {
  if (!(y > T(-1) && x > T(-1) && y < T(s.in_height) && x < T(s.in_width))) {
    return false;
  }
  const T floor_y = std::floor(y);
  const T floor_x = std::floor(x);
  const auto top = static_cast<int64_t>(floor_y);
  const auto left = static_cast<int64_t>(floor_x);
  sample.down = y - floor_y;
  sample.across = x - floor_x;
  const bool rows[2] = {top >= 0, top + 1 < s.in_height};
  const bool columns[2] = {left >= 0, left + 1 < s.in_width};
  const T vertical[2] = {T(1) - sample.down, sample.down};
  const T horizontal[2] = {T(1) - sample.across, sample.across};
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < 2; ++j) {
      sample.pixel[2 * i + j] = rows[i] && columns[j] ? (top + i) * s.in_width + left + j : -1;
      sample.weight[2 * i + j] = vertical[i] * horizontal[j];
    }
  }
  return true;
}

// Position, relative to its output pixel's, of the point in column i and row j of the kernel without its offset: the
// regular grid, scaled around the kernel's center.
template <typename T>
TORCHGRAFT_HOST_DEVICE inline T grid_position(int64_t index, int64_t kernel, int64_t pad, int64_t dilation, T scale) {
  const int64_t center = dilation * (kernel - 1) / 2;
  return static_cast<T>(center - pad) + scale * static_cast<T>(index * dilation - center);
}

}  // namespace torchgraft
