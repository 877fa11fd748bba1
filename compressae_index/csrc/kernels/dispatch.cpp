#include "kernels/dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace compressae {
namespace {

#if defined(__x86_64__)
// Whether this processor multiplies tiles of bytes, and the system lets this process use them: it saves their large
// registers for those that ask for it alone.
bool has_tiles() {
#if defined(__linux__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;  // of EDX, leaf 7
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0 || (edx & kTiles) == 0 || (edx & kInt8) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

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
        __builtin_cpu_supports("avx512vnni")) {
      if (has_tiles()) targets.push_back({"amx", &kernels_amx});
      targets.push_back({"avx512vbmi", &kernels_avx512vbmi});
    }
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
