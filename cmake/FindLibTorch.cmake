# LibTorch from the folder LIBTORCH (a torch package or an unpacked LibTorch: include/, lib/). Defines LibTorch::LibTorch,
# LIBTORCH_VERSION, LIBTORCH_CUDA, LIBTORCH_LIB_DIR.
#
# Torch's own package file is not used: on a CUDA build it demands a CUDA toolkit even from code that only calls operators.
set(LIBTORCH "$ENV{LIBTORCH}" CACHE PATH "Folder of LibTorch")
if(NOT LIBTORCH)
  find_package(Python3 COMPONENTS Interpreter QUIET)
  if(Python3_FOUND)
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -c
        "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '', end='')"
      OUTPUT_VARIABLE libtorch_of_python ERROR_QUIET)
    if(libtorch_of_python)
      set(LIBTORCH "${libtorch_of_python}" CACHE PATH "Folder of LibTorch" FORCE)
    endif()
  endif()
endif()
if(NOT EXISTS "${LIBTORCH}/include/torch/library.h")
  message(FATAL_ERROR "No LibTorch in '${LIBTORCH}' (include/torch/library.h is missing). Pass -DLIBTORCH=DIR, or run "
    "'npm run build:native', which finds or fetches it.")
endif()
set(LIBTORCH_LIB_DIR "${LIBTORCH}/lib")

# Version: torch/headeronly/version.h since 2.9, torch/version.h before.
set(version_header "${LIBTORCH}/include/torch/headeronly/version.h")
if(NOT EXISTS "${version_header}")
  set(version_header "${LIBTORCH}/include/torch/csrc/api/include/torch/version.h")
endif()
file(STRINGS "${version_header}" version_lines REGEX "#define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
string(REGEX REPLACE "[^0-9;]" "" version_numbers "${version_lines}")
string(REPLACE ";" "." LIBTORCH_VERSION "${version_numbers}")
if(LIBTORCH_VERSION VERSION_LESS 2.11 OR NOT LIBTORCH_VERSION VERSION_LESS 2.15)
  message(FATAL_ERROR "LibTorch ${LIBTORCH_VERSION} in ${LIBTORCH} does not fit: torchgraft needs at least 2.11 and less than "
    "2.15; set LIBTORCH to a folder with one of these.")
endif()

set(LIBTORCH_CUDA OFF)
if(EXISTS "${LIBTORCH_LIB_DIR}/${CMAKE_SHARED_LIBRARY_PREFIX}torch_cuda${CMAKE_SHARED_LIBRARY_SUFFIX}")
  set(LIBTORCH_CUDA ON)
endif()

add_library(LibTorch::LibTorch INTERFACE IMPORTED)
target_include_directories(LibTorch::LibTorch SYSTEM INTERFACE
  "${LIBTORCH}/include" "${LIBTORCH}/include/torch/csrc/api/include")

# The C++ library ABI that LibTorch was compiled with, where it says so.
set(torch_config "${LIBTORCH}/share/cmake/Torch/TorchConfig.cmake")
set(abi 1)
if(EXISTS "${torch_config}")
  file(STRINGS "${torch_config}" abi_lines REGEX "_GLIBCXX_USE_CXX11_ABI=[01]")
  if(abi_lines MATCHES "_GLIBCXX_USE_CXX11_ABI=([01])")
    set(abi "${CMAKE_MATCH_1}")
  endif()
endif()
target_compile_definitions(LibTorch::LibTorch INTERFACE "_GLIBCXX_USE_CXX11_ABI=${abi}")

set(libraries torch torch_cpu c10)
if(LIBTORCH_CUDA)
  list(APPEND libraries torch_cuda c10_cuda)
endif()
set(library_files "")
foreach(library IN LISTS libraries)
  list(APPEND library_files "${LIBTORCH_LIB_DIR}/${CMAKE_SHARED_LIBRARY_PREFIX}${library}${CMAKE_SHARED_LIBRARY_SUFFIX}")
endforeach()
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # Nothing refers to torch_cuda by name: without this the linker would drop it, and with it every CUDA kernel.
  target_link_libraries(LibTorch::LibTorch INTERFACE -Wl,--no-as-needed ${library_files} -Wl,--as-needed)
else()
  target_link_libraries(LibTorch::LibTorch INTERFACE ${library_files})
endif()

# at::parallel_for is an OpenMP loop compiled into our code. It must use LibTorch's own OpenMP library: a second one in the
# process would have a second pool of threads.
file(GLOB libtorch_openmp "${LIBTORCH_LIB_DIR}/libgomp*.so*" "${LIBTORCH_LIB_DIR}/libomp.dylib" "${LIBTORCH}/../torch.libs/libgomp*.so*")
if(libtorch_openmp AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(GET libtorch_openmp 0 libtorch_openmp)
  target_compile_options(LibTorch::LibTorch INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-fopenmp>")
  target_link_libraries(LibTorch::LibTorch INTERFACE "${libtorch_openmp}")
else()
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(OpenMP_CXX_FOUND)
    target_link_libraries(LibTorch::LibTorch INTERFACE OpenMP::OpenMP_CXX)
  else()
    message(STATUS "No OpenMP for ${CMAKE_CXX_COMPILER_ID}: our own CPU kernels will run on one thread")
  endif()
endif()

if(LIBTORCH_CUDA)
  set(kind "CUDA")
else()
  set(kind "CPU")
endif()
message(STATUS "LibTorch ${LIBTORCH_VERSION} (${kind}) in ${LIBTORCH}")
