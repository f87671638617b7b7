// torchgraft::dcnv3: deformable convolution v3 (Wang et al., InternImage, CVPR 2023, arXiv 2211.05778). Every output
// pixel sums P bilinear samples of the input per group of channels, at learned offsets and with learned weights:
//
//   Y[n, y, x, g, c] = sum over p of M[n, y, x, g, p] * B(X[n, :, :, g, c]; position of p + s * O[n, y, x, g, p])
//
// Positions are in pixels and samples outside the image read 0; points run down the columns of the kernel. Dense
// float32 and float64 tensors, on a GPU where our CUDA kernels were compiled; lib/nn composes the same of ATen
// operators for everything else.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd.h"
#include "ops/dcnv3/dcnv3.h"

namespace torchgraft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

#ifdef TORCHGRAFT_WITH_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

int64_t output_size(int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t room = in + 2 * pad - (dilation * (kernel - 1) + 1);
  return room < 0 ? 0 : room / stride + 1;
}

struct Geometry {
  at::IntArrayRef kernel, stride, padding, dilation;
  int64_t groups;
  double offset_scale;
  bool remove_center;
};

Dcnv3Shape shape_of(const at::Tensor& x, const Geometry& o) {
  return {x.size(0),
          x.size(1),
          x.size(2),
          output_size(x.size(1), o.kernel[0], o.stride[0], o.padding[0], o.dilation[0]),
          output_size(x.size(2), o.kernel[1], o.stride[1], o.padding[1], o.dilation[1]),
          o.groups,
          x.size(3) / o.groups,
          o.kernel[0],
          o.kernel[1],
          o.stride[0],
          o.stride[1],
          o.padding[0],
          o.padding[1],
          o.dilation[0],
          o.dilation[1],
          o.offset_scale,
          o.remove_center};
}

void check(const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask, const Geometry& o) {
  constexpr int64_t kLargest = 1 << 20;  // of a size in the geometry, so that no position overflows
  const auto sizes = [&](at::IntArrayRef values, int64_t least, const char* name) {
    TORCH_CHECK(values.size() == 2 && values[0] >= least && values[1] >= least && values[0] <= kLargest &&
                    values[1] <= kLargest,
                "dcnv3: ", name, " must be two integers of at least ", least, ", got ", values);
  };
  sizes(o.kernel, 1, "kernel");
  sizes(o.stride, 1, "stride");
  sizes(o.padding, 0, "padding");
  sizes(o.dilation, 1, "dilation");
  TORCH_CHECK(x.dim() == 4, "dcnv3: x must be [N, H, W, C], got ", x.sizes());
  TORCH_CHECK(o.groups > 0 && x.size(3) % o.groups == 0, "dcnv3: ", x.size(3), " channels do not divide into ",
              o.groups, " groups");
  TORCH_CHECK(!o.remove_center || (o.kernel[0] == o.kernel[1] && o.kernel[0] % 2 == 1),
              "dcnv3: remove_center needs a square kernel of odd size, got ", o.kernel);
  TORCH_CHECK(o.kernel[0] * o.kernel[1] <= kLargest, "dcnv3: a kernel of ", o.kernel, " has too many points");
  const Dcnv3Shape s = shape_of(x, o);
  const int64_t points = o.groups * s.points();
  const auto expect = [&](const at::Tensor& tensor, int64_t channels, const char* name) {
    TORCH_CHECK(tensor.dim() == 4 && tensor.size(0) == s.batch && tensor.size(1) == s.out_height &&
                    tensor.size(2) == s.out_width && tensor.size(3) == channels,
                "dcnv3: ", name, " must be [", s.batch, ", ", s.out_height, ", ", s.out_width, ", ", channels,
                "], got ", tensor.sizes());
    TORCH_CHECK(tensor.scalar_type() == x.scalar_type() && tensor.device() == x.device(), "dcnv3: ", name,
                " must have the dtype and device of x");
  };
  expect(offset, 2 * points, "offset");
  expect(mask, points, "mask");
  TORCH_CHECK((x.device().is_cpu() || (kHasCuda && x.is_cuda())) &&
                  (x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble),
              "dcnv3: takes float32 or float64 tensors on ", kHasCuda ? "the CPU or a GPU" : "the CPU", ", got ",
              x.scalar_type(), " on ", x.device());
}

void run_forward(const at::Tensor& out, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                 const Dcnv3Shape& s) {
#ifdef TORCHGRAFT_WITH_CUDA
  if (x.is_cuda()) return cuda::dcnv3_forward(out, x, offset, mask, s);
#endif
  TORCHGRAFT_CHOOSE_KERNEL(dcnv3_forward_kernel)(out, x, offset, mask, s);
}

void run_backward(const variable_list& gradients, const at::Tensor& grad, const variable_list& inputs,
                  const Dcnv3Shape& s) {
#ifdef TORCHGRAFT_WITH_CUDA
  if (grad.is_cuda()) {
    at::globalContext().alertNotDeterministic("torchgraft::dcnv3's gradient");  // atomic sums
    return cuda::dcnv3_backward(gradients[0], gradients[1], gradients[2], grad, inputs[0], inputs[1], inputs[2], s);
  }
#endif
  TORCHGRAFT_CHOOSE_KERNEL(dcnv3_backward_kernel)
  (gradients[0], gradients[1], gradients[2], grad, inputs[0], inputs[1], inputs[2], s);
}

at::Tensor sampled(const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask, const Dcnv3Shape& s) {
  at::Tensor out = at::empty({s.batch, s.out_height, s.out_width, s.channels()}, x.options());
  if (out.numel() > 0) {
    run_forward(out, x, offset, mask, s);
  }
  return out;
}

struct Dcnv3 : torch::autograd::Function<Dcnv3> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask,
                            const Geometry& o) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({x, offset, mask});
    ctx->saved_data["kernel"] = o.kernel;
    ctx->saved_data["stride"] = o.stride;
    ctx->saved_data["padding"] = o.padding;
    ctx->saved_data["dilation"] = o.dilation;
    ctx->saved_data["groups"] = o.groups;
    ctx->saved_data["offset_scale"] = o.offset_scale;
    ctx->saved_data["remove_center"] = o.remove_center;
    return sampled(x, offset, mask, shape_of(x, o));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    TORCH_CHECK_NOT_IMPLEMENTED(!needs_graph({grads[0], saved[0], saved[1], saved[2]}),
                                "dcnv3: its gradient cannot be differentiated again");
    const auto kernel = ctx->saved_data["kernel"].toIntVector();
    const auto stride = ctx->saved_data["stride"].toIntVector();
    const auto padding = ctx->saved_data["padding"].toIntVector();
    const auto dilation = ctx->saved_data["dilation"].toIntVector();
    const Dcnv3Shape shape =
        shape_of(saved[0], {kernel, stride, padding, dilation, ctx->saved_data["groups"].toInt(),
                            ctx->saved_data["offset_scale"].toDouble(), ctx->saved_data["remove_center"].toBool()});
    variable_list result(4);
    if (ctx->needs_input_grad(0)) result[0] = at::zeros_like(saved[0]);
    if (ctx->needs_input_grad(1)) result[1] = at::zeros_like(saved[1]);
    if (ctx->needs_input_grad(2)) result[2] = at::zeros_like(saved[2]);
    if (grads[0].numel() > 0) {
      run_backward(result, grads[0].contiguous(), saved, shape);
    }
    return result;
  }
};

at::Tensor dcnv3(const at::Tensor& x, const at::Tensor& offset, const at::Tensor& mask, at::IntArrayRef kernel,
                 at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                 double offset_scale, bool remove_center) {
  const Geometry o{kernel, stride, padding, dilation, groups, offset_scale, remove_center};
  check(x, offset, mask, o);
  const at::Tensor dense_x = x.contiguous();
  const at::Tensor dense_offset = offset.contiguous();
  const at::Tensor dense_mask = mask.contiguous();
  if (!needs_graph({x, offset, mask})) return sampled(dense_x, dense_offset, dense_mask, shape_of(x, o));
  return Dcnv3::apply(dense_x, dense_offset, dense_mask, o);
}

TORCH_LIBRARY_FRAGMENT(torchgraft, m) {
  m.def(
      "dcnv3(Tensor x, Tensor offset, Tensor mask, int[2] kernel=3, int[2] stride=1, int[2] padding=1, int[2] "
      "dilation=1, int groups=1, float offset_scale=1.0, bool remove_center=False) -> Tensor");
}
TORCH_LIBRARY_IMPL(torchgraft, CompositeImplicitAutograd, m) { m.impl("dcnv3", dcnv3); }

}  // namespace
}  // namespace torchgraft
