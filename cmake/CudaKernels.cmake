# Compiles the .cu files listed in ops_cuda when LibTorch is a CUDA build and an nvcc of the same CUDA release is there;
# otherwise the operator's composite formula serves on CUDA, and CMake says what is missing. Sets cuda_objects and
# cuda_libraries, empty when left out.
set(cuda_objects "")
set(cuda_libraries "")

set(cuda_wanted OFF)
if(ops_cuda AND TORCHGRAFT_CUDA AND LIBTORCH_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(cuda_wanted ON)
  else()
    message(STATUS "No nvcc: our CUDA kernels are left out, their composite formulas serve on CUDA")
  endif()
endif()

if(cuda_wanted)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 75 80 90 CACHE STRING "CUDA architectures of our kernels")
  endif()
  enable_language(CUDA)
  # nvcc has had C++20 since 12.0; CMake before 3.26 does not know.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION AND CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  endif()
  # LibTorch names the release it was built with; a kernel of another one would bring a second CUDA runtime.
  set(torch_cuda "")
  if(EXISTS "${LIBTORCH}/version.py")
    file(STRINGS "${LIBTORCH}/version.py" cuda_line REGEX "^cuda.*= *'[0-9.]+'")
    string(REGEX MATCH "[0-9]+\\.[0-9]+" torch_cuda "${cuda_line}")
  endif()
  string(REGEX MATCH "^[0-9]+" torch_cuda_major "${torch_cuda}")
  string(REGEX MATCH "^[0-9]+" nvcc_major "${CMAKE_CUDA_COMPILER_VERSION}")
  if(torch_cuda_major AND NOT torch_cuda_major STREQUAL nvcc_major)
    message(STATUS "nvcc ${CMAKE_CUDA_COMPILER_VERSION} does not fit LibTorch's CUDA ${torch_cuda}: our CUDA kernels are left out")
    set(cuda_wanted OFF)
  endif()
endif()

if(cuda_wanted)
  add_library(torchgraft_cuda_objects OBJECT ${ops_cuda})
  target_link_libraries(torchgraft_cuda_objects PRIVATE torchgraft_settings)
  set_target_properties(torchgraft_cuda_objects PROPERTIES
    CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Shared
    POSITION_INDEPENDENT_CODE ON CUDA_VISIBILITY_PRESET hidden)
  target_compile_options(torchgraft_cuda_objects PRIVATE
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;--expt-extended-lambda;-Xcompiler=-Wall>")
  find_library(TORCHGRAFT_CUDART cudart HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} REQUIRED)
  set(cuda_objects "$<TARGET_OBJECTS:torchgraft_cuda_objects>")
  set(cuda_libraries "${TORCHGRAFT_CUDART}")
endif()
