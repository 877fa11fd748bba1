#include "kernels/dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

namespace compressae {
namespace {

Target choose() {
  const std::vector<Target> targets = supported_targets();
  const char* asked = std::getenv("COMPRESSAE_SIMD");
  if (asked == nullptr || *asked == '\0') return targets.front();
  std::string names;
  for (const Target& target : targets) {
    if (std::string(asked) == target.name) return target;
    names += std::string(names.empty() ? "" : ", ") + target.name;
  }
  throw std::invalid_argument("COMPRESSAE_SIMD is '" + std::string(asked) + "', but this processor supports: " + names);
}

const Target& target() {
  static const Target chosen = choose();
  return chosen;
}

}  // namespace

std::vector<Target> supported_targets() {
  std::vector<Target> targets;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
        __builtin_cpu_supports("avx512vnni"))
      targets.push_back({"avx512vbmi", &kernels_avx512vbmi});
    targets.push_back({"avx512", &kernels_avx512});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    targets.push_back({"avx2", &kernels_avx2});
#elif defined(__aarch64__)
  targets.push_back({"neon", &kernels_neon});
#endif
  targets.push_back({"plain", &kernels_plain});
  return targets;
}

const Kernels& kernels() { return *target().kernels; }

std::string simd_name() { return target().name; }

}  // namespace compressae
