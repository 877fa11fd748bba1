#include "kernels/dispatch.hpp"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace compressae {
namespace {

struct Path {
  const char* name;
  const Kernels* table;
};

std::vector<Path> supported_paths() {
  std::vector<Path> paths;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512vnni"))
      paths.push_back({"avx512vbmi", &kernels_avx512vbmi});
    paths.push_back({"avx512", &kernels_avx512});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    paths.push_back({"avx2", &kernels_avx2});
#endif
  paths.push_back({"plain", &kernels_plain});
  return paths;
}

Path choose() {
  const std::vector<Path> paths = supported_paths();
  const char* asked = std::getenv("COMPRESSAE_SIMD");
  if (asked == nullptr || *asked == '\0') return paths.front();
  std::string names;
  for (const Path& path : paths) {
    if (std::string(asked) == path.name) return path;
    names += std::string(names.empty() ? "" : ", ") + path.name;
  }
  throw std::invalid_argument("COMPRESSAE_SIMD is '" + std::string(asked) + "', but this processor supports: " + names);
}

const Path& path() {
  static const Path chosen = choose();
  return chosen;
}

}  // namespace

const Kernels& kernels() { return *path().table; }

std::string simd_name() { return path().name; }

}  // namespace compressae
