// Files mapped into memory, and tensors over them without copying.
//
// The mapping is private: a write to a tensor copies the page and never reaches the file. It lives as long as its
// handle or any tensor over it. A file that another program truncates while it is mapped takes its pages with it, and
// reading them ends the process (SIGBUS); so the size is checked again before each tensor, and writers replace files
// instead.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/safe_numerics.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

#include "binding.h"
#include "convert.h"

namespace torchgraft {

namespace {

constexpr napi_type_tag kMappedFileTag{0x3f7a1c5e9b2d4860, 0xb1c8e6f04a7d2593};

// A tensor may start only where its elements are aligned; vector code reads whole elements at once.
bool is_aligned(const void* address, size_t item_size) {
  const size_t alignment = std::min(item_size, alignof(std::max_align_t));
  return reinterpret_cast<uintptr_t>(address) % alignment == 0;
}

#ifdef _WIN32

[[noreturn]] void fail(const std::string& path) {
  throw std::runtime_error(path + ": " + std::system_category().message(static_cast<int>(GetLastError())));
}

class OpenFile {
 public:
  explicit OpenFile(const std::string& path) {
    const int length = MultiByteToWideChar(CP_UTF8, 0, path.data(), static_cast<int>(path.size()), nullptr, 0);
    std::wstring wide(static_cast<size_t>(length), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, path.data(), static_cast<int>(path.size()), wide.data(), length);
    handle_ = CreateFileW(wide.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr, OPEN_EXISTING,
                          FILE_ATTRIBUTE_NORMAL, nullptr);
    if (handle_ == INVALID_HANDLE_VALUE) fail(path);
  }
  ~OpenFile() { CloseHandle(handle_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  int64_t size() const {
    LARGE_INTEGER size;
    return GetFileSizeEx(handle_, &size) ? size.QuadPart : -1;
  }
  HANDLE handle() const { return handle_; }

 private:
  HANDLE handle_;
};

class Mapping {
 public:
  Mapping(const OpenFile& file, const std::string& path) : size_(static_cast<size_t>(file.size())) {
    if (size_ == 0) return;
    const HANDLE section = CreateFileMappingW(file.handle(), nullptr, PAGE_WRITECOPY, 0, 0, nullptr);
    if (section == nullptr) fail(path);
    data_ = MapViewOfFile(section, FILE_MAP_COPY, 0, 0, 0);
    CloseHandle(section);
    if (data_ == nullptr) fail(path);
  }
  ~Mapping() {
    if (data_ != nullptr) UnmapViewOfFile(data_);
  }
#else

[[noreturn]] void fail(const std::string& path) {
  throw std::runtime_error(path + ": " + std::generic_category().message(errno));
}

class OpenFile {
 public:
  explicit OpenFile(const std::string& path) : descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) fail(path);
  }
  ~OpenFile() { close(descriptor_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  // -1 when it cannot be told or the file is not a regular one.
  int64_t size() const {
    struct stat status;
    return fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode) ? static_cast<int64_t>(status.st_size) : -1;
  }
  int handle() const { return descriptor_; }

 private:
  int descriptor_;
};

class Mapping {
 public:
  Mapping(const OpenFile& file, const std::string& path) : size_(static_cast<size_t>(file.size())) {
    if (size_ == 0) return;
    int flags = MAP_PRIVATE;
#ifdef MAP_NORESERVE
    // Writable pages would otherwise be charged in full against memory, although few or none are ever written.
    flags |= MAP_NORESERVE;
#endif
    data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, flags, file.handle(), 0);
    if (data_ == MAP_FAILED) {
      data_ = nullptr;
      fail(path);
    }
  }
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, size_);
  }
#endif
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return size_; }

 private:
  size_t size_;
  void* data_ = nullptr;
};

// What the JavaScript handle owns: the open file, for its size, and a share in the mapping. Both go with unmapFile.
struct MappedFile {
  std::string path;
  std::unique_ptr<OpenFile> file;
  std::shared_ptr<const Mapping> mapping;
};

MappedFile& mapped_file(napi_env env, napi_value value, const char* function) {
  bool ours = false;
  void* data = nullptr;
  if (type_of(env, value) != napi_external ||
      napi_check_object_type_tag(env, value, &kMappedFileTag, &ours) != napi_ok || !ours ||
      napi_get_value_external(env, value, &data) != napi_ok) {
    throw ArgumentError(std::string(function) + ": file: expected what mapFile returned, given " +
                        describe(env, value));
  }
  MappedFile& file = *static_cast<MappedFile*>(data);
  return file;
}

const Mapping& open_mapping(const MappedFile& file, const char* function) {
  if (!file.mapping) throw ArgumentError(std::string(function) + ": " + file.path + " has been unmapped");
  if (file.file->size() < static_cast<int64_t>(file.mapping->size())) {
    throw std::runtime_error(file.path + ": the file has become shorter since it was opened; open it again");
  }
  return *file.mapping;
}

size_t offset_in(const Mapping& mapping, const std::string& path, int64_t offset, uint64_t length) {
  if (offset < 0 || static_cast<uint64_t>(offset) > mapping.size() ||
      length > mapping.size() - static_cast<uint64_t>(offset)) {
    throw OutOfRange(path + ": " + std::to_string(length) + " bytes at offset " + std::to_string(offset) +
                     " are outside the file, which has " + std::to_string(mapping.size()));
  }
  return static_cast<size_t>(offset);
}

napi_value map_file(napi_env env, napi_callback_info info) {
  return guard(env, "mapFile", [&] {
    const Args<1> args(env, info);
    auto result = std::make_unique<MappedFile>();
    result->path = string_arg(env, args[0], "mapFile: path");
    if (result->path.find('\0') != std::string::npos) throw ArgumentError("mapFile: path: contains a zero byte");
    result->file = std::make_unique<OpenFile>(result->path);
    if (result->file->size() < 0)
      throw std::runtime_error(result->path + ": not a regular file, so it cannot be mapped");
    result->mapping = std::make_shared<const Mapping>(*result->file, result->path);
    napi_value external;
    check(env, napi_create_external(
                   env, result.get(), [](napi_env, void* data, void*) { delete static_cast<MappedFile*>(data); },
                   nullptr, &external));
    result.release();
    check(env, napi_type_tag_object(env, external, &kMappedFileTag));
    return external;
  });
}

napi_value map_size(napi_env env, napi_callback_info info) {
  return guard(env, "mapSize", [&] {
    const Args<1> args(env, info);
    const Mapping& mapping = open_mapping(mapped_file(env, args[0], "mapSize"), "mapSize");
    return from_int(env, static_cast<int64_t>(mapping.size()));
  });
}

napi_value unmap_file(napi_env env, napi_callback_info info) {
  return guard(env, "unmapFile", [&] {
    const Args<1> args(env, info);
    MappedFile& file = mapped_file(env, args[0], "unmapFile");
    file.mapping.reset();
    file.file.reset();
    return undefined(env);
  });
}

napi_value map_bytes(napi_env env, napi_callback_info info) {
  return guard(env, "mapBytes", [&] {
    const Args<3> args(env, info);
    const MappedFile& file = mapped_file(env, args[0], "mapBytes");
    const Mapping& mapping = open_mapping(file, "mapBytes");
    const int64_t offset = int_arg(env, args[1], "mapBytes: byteOffset");
    const int64_t length = int_arg(env, args[2], "mapBytes: length");
    if (length < 0) throw OutOfRange("mapBytes: length must not be negative, given " + std::to_string(length));
    const size_t start = offset_in(mapping, file.path, offset, static_cast<uint64_t>(length));
    void* data = nullptr;
    napi_value buffer;
    napi_value array;
    check(env, napi_create_arraybuffer(env, static_cast<size_t>(length), &data, &buffer));
    if (length > 0) std::memcpy(data, mapping.data() + start, static_cast<size_t>(length));
    check(env, napi_create_typedarray(env, napi_uint8_array, static_cast<size_t>(length), buffer, 0, &array));
    return array;
  });
}

// Elements from the first to the last that sizes and strides reach; 0 if there are none.
uint64_t extent_of(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  uint64_t last = 0;
  bool empty = false;
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0 || strides[i] < 0) throw OutOfRange("tensorFromMap: sizes and strides must not be negative");
    uint64_t step = 0;
    if (sizes[i] == 0) {
      empty = true;
    } else if (c10::mul_overflows(static_cast<uint64_t>(sizes[i]) - 1, static_cast<uint64_t>(strides[i]), &step) ||
               c10::add_overflows(last, step, &last)) {
      throw OutOfRange("tensorFromMap: sizes and strides reach beyond 2^64 elements");
    }
  }
  return empty ? 0 : last + 1;
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  uint64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = static_cast<int64_t>(step);
    const uint64_t size = static_cast<uint64_t>(std::max<int64_t>(sizes[i], 1));
    if (c10::mul_overflows(step, size, &step) || step > static_cast<uint64_t>(INT64_MAX)) {
      throw OutOfRange("tensorFromMap: the shape has too many elements");
    }
  }
  return strides;
}

// C++ takes a byte that is neither 0 nor 1 for no bool at all; kernels may then do anything.
void check_bools(const char* data, uint64_t count, const std::string& path) {
  for (uint64_t i = 0; i < count; ++i) {
    if (static_cast<unsigned char>(data[i]) > 1) {
      throw std::runtime_error(path + ": a tensor of booleans holds the byte " +
                               std::to_string(static_cast<unsigned char>(data[i])) + "; the file is damaged");
    }
  }
}

napi_value tensor_from_map(napi_env env, napi_callback_info info) {
  return guard(env, "tensorFromMap", [&] {
    const Args<5> args(env, info);
    const MappedFile& file = mapped_file(env, args[0], "tensorFromMap");
    const Mapping& mapping = open_mapping(file, "tensorFromMap");
    const int64_t offset = int_arg(env, args[1], "tensorFromMap: byteOffset");
    const std::vector<int64_t> sizes = ints_arg(env, args[2], "tensorFromMap: shape");
    const at::ScalarType dtype = dtype_arg(env, args[3], "tensorFromMap: dtype");
    const std::vector<int64_t> contiguous = contiguous_strides(sizes);
    const bool given = type_of(env, args[4]) != napi_undefined;
    const std::vector<int64_t> strides = given ? ints_arg(env, args[4], "tensorFromMap: strides") : contiguous;
    if (strides.size() != sizes.size()) {
      throw ArgumentError("tensorFromMap: strides: expected " + std::to_string(sizes.size()) + ", given " +
                          std::to_string(strides.size()));
    }
    const uint64_t extent = extent_of(sizes, strides);
    const size_t item_size = c10::elementSize(dtype);
    uint64_t bytes = 0;
    if (c10::mul_overflows(extent, static_cast<uint64_t>(item_size), &bytes)) {
      throw OutOfRange("tensorFromMap: the shape has too many elements");
    }
    char* data = mapping.data() + offset_in(mapping, file.path, offset, bytes);
    if (dtype == at::kBool) check_bools(data, extent, file.path);
    Environment& environment = Environment::of(env);
    const auto options = at::TensorOptions().dtype(dtype);
    if (extent == 0) return environment.wrap(at::empty(sizes, options));
    if (!is_aligned(data, item_size)) {
      at::Tensor copy = at::empty({static_cast<int64_t>(extent)}, options);
      std::memcpy(copy.mutable_data_ptr(), data, bytes);
      return environment.wrap(copy.as_strided(sizes, strides));
    }
    std::shared_ptr<const Mapping> share = file.mapping;
    return environment.wrap(at::from_blob(data, sizes, strides, [share](void*) mutable { share.reset(); }, options));
  });
}

}  // namespace

void define_files(napi_env env, napi_value exports) {
  define(env, exports,
         {{"mapFile", map_file},
          {"mapSize", map_size},
          {"tensorFromMap", tensor_from_map},
          {"mapBytes", map_bytes},
          {"unmapFile", unmap_file}});
}

}  // namespace torchgraft
