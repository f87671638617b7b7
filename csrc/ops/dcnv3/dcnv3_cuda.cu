// Deformable convolution v3 on a GPU. Forward: a thread for each channel of each output pixel, so that neighboring
// threads read neighboring channels. Backward: a team of threads, a power of two up to a warp, for the points of one
// group of one output pixel; each thread takes every team-th channel, and the products with the corners are summed
// across the team by shuffles.
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <ATen/cuda/Atomic.cuh>

#include <algorithm>

#include "dcnv3.h"
#include "geometry.h"

namespace torchgraft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// Enough blocks to fill the machine; each thread goes on by the size of the whole grid.
int blocks_for(int64_t work) {
  return static_cast<int>(std::min<int64_t>((work + kThreads - 1) / kThreads, int64_t{1} << 20));
}

template <typename T>
struct Point {
  T y, x;
};

// Where point p of a group of an output pixel falls. Points run down the kernel's columns; the center may be left out.
template <typename T>
__device__ Point<T> position(const Dcnv3Shape& s, int64_t row, int64_t column, int64_t p, const T* shift) {
  const int64_t center = s.kernel_height * s.kernel_width / 2;
  const int64_t index = s.remove_center && p >= center ? p + 1 : p;
  const T scale = static_cast<T>(s.offset_scale);
  const T across = grid_position(index / s.kernel_height, s.kernel_width, s.pad_width, s.dilation_width, scale);
  const T down = grid_position(index % s.kernel_height, s.kernel_height, s.pad_height, s.dilation_height, scale);
  return {static_cast<T>(row * s.stride_height) + down + scale * shift[1],
          static_cast<T>(column * s.stride_width) + across + scale * shift[0]};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) forward(T* out, const T* x, const T* offset, const T* mask, Dcnv3Shape s) {
  const int64_t channels = s.channels();
  const int64_t points = s.points();
  const int64_t total = s.batch * s.out_height * s.out_width * channels;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < total; i += int64_t{gridDim.x} * kThreads) {
    const int64_t channel = i % channels;
    const int64_t pixel = i / channels;
    const int64_t column = pixel % s.out_width;
    const int64_t row = pixel / s.out_width % s.out_height;
    const int64_t image = pixel / s.out_width / s.out_height;
    const T* values = x + image * s.in_height * s.in_width * channels + channel;
    const int64_t first = (pixel * s.groups + channel / s.depth) * points;
    T sum = 0;
    for (int64_t p = 0; p < points; ++p) {
      const Point<T> at = position(s, row, column, p, offset + 2 * (first + p));
      Sample<T> sample;
      if (!locate(sample, at.y, at.x, s)) {
        continue;
      }
      T value = 0;
      for (int corner = 0; corner < 4; ++corner) {
        if (sample.pixel[corner] >= 0) {
          value += sample.weight[corner] * values[sample.pixel[corner] * channels];
        }
      }
      sum += mask[first + p] * value;
    }
    out[i] = sum;
  }
}

// The sum over the team, in each of its threads.
template <typename T>
__device__ T team_sum(T value, int team) {
  for (int step = team / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step, team);
  }
  return value;
}

// Each of the gradients may be null. All threads of a warp make the same number of rounds, as the shuffles need.
template <typename T>
__global__ void __launch_bounds__(kThreads) backward(T* grad_x, T* grad_offset, T* grad_mask, const T* grad, const T* x,
                                                     const T* offset, const T* mask, Dcnv3Shape s, int team) {
  const int64_t channels = s.channels();
  const int64_t points = s.points();
  const int64_t total = s.batch * s.out_height * s.out_width * s.groups * points;
  const int64_t teams = int64_t{gridDim.x} * kThreads / team;
  const int lane = threadIdx.x % team;
  const T scale = static_cast<T>(s.offset_scale);
  const int64_t mine = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / team;
  const int64_t rounds = (total + teams - 1) / teams;
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t place = mine + round * teams;
    const bool there = place < total;
    const int64_t unit = there ? place : 0;
    const int64_t p = unit % points;
    const int64_t g = unit / points % s.groups;
    const int64_t pixel = unit / points / s.groups;
    const int64_t column = pixel % s.out_width;
    const int64_t row = pixel / s.out_width % s.out_height;
    const int64_t image = pixel / s.out_width / s.out_height;
    const Point<T> at = position(s, row, column, p, offset + 2 * unit);
    const T factor = mask[unit];
    Sample<T> sample;
    const bool inside = there && locate(sample, at.y, at.x, s);
    const T* t = grad + pixel * channels + g * s.depth;
    const int64_t start = image * s.in_height * s.in_width * channels + g * s.depth;
    T dots[4] = {0, 0, 0, 0};
    for (int corner = 0; inside && corner < 4; ++corner) {
      if (sample.pixel[corner] < 0) {
        continue;
      }
      const int64_t from = start + sample.pixel[corner] * channels;
      for (int64_t c = lane; c < s.depth; c += team) {
        dots[corner] += t[c] * x[from + c];
        if (grad_x != nullptr) {
          gpuAtomicAddNoReturn(grad_x + from + c, factor * sample.weight[corner] * t[c]);
        }
      }
    }
    for (T& dot : dots) {
      dot = team_sum(dot, team);
    }
    if (!there || lane != 0) {
      continue;
    }
    if (grad_mask != nullptr) {
      T sum = 0;
      for (int corner = 0; inside && corner < 4; ++corner) {
        sum += sample.weight[corner] * dots[corner];
      }
      grad_mask[unit] = sum;
    }
    if (grad_offset != nullptr) {
      const T down = inside ? sample.down : T(0);
      const T across = inside ? sample.across : T(0);
      const T by_x = (T(1) - down) * (dots[1] - dots[0]) + down * (dots[3] - dots[2]);
      const T by_y = (T(1) - across) * (dots[2] - dots[0]) + across * (dots[3] - dots[1]);
      grad_offset[2 * unit] = scale * factor * by_x;
      grad_offset[2 * unit + 1] = scale * factor * by_y;
    }
  }
}

template <typename T>
T* pointer_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

}  // namespace

void dcnv3_forward(const at::Tensor& out, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                   const Dcnv3Shape& shape) {
  const c10::cuda::CUDAGuard device(x.device());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "dcnv3", [&] {
    forward<scalar_t><<<blocks_for(out.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        out.mutable_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), offset.const_data_ptr<scalar_t>(),
        mask.const_data_ptr<scalar_t>(), shape);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void dcnv3_backward(const at::Tensor& grad_x, const at::Tensor& grad_offset, const at::Tensor& grad_mask,
                    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                    const Dcnv3Shape& shape) {
  const c10::cuda::CUDAGuard device(x.device());
  int team = 1;
  while (team < kWarp && team < shape.depth) {
    team *= 2;
  }
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "dcnv3_backward", [&] {
    backward<scalar_t><<<blocks_for(mask.numel() * team), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        pointer_or_null<scalar_t>(grad_x), pointer_or_null<scalar_t>(grad_offset), pointer_or_null<scalar_t>(grad_mask),
        grad.const_data_ptr<scalar_t>(), x.const_data_ptr<scalar_t>(), offset.const_data_ptr<scalar_t>(),
        mask.const_data_ptr<scalar_t>(), shape, team);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

}  // namespace torchgraft::cuda
