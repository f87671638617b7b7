// The LibTorch headers that nearly every file of csrc/ needs; parsing them is most of a file's compile time.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
