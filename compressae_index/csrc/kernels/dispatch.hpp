// Run-time choice of the instruction set.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernels.hpp"

namespace compressae {

// A table of kernels and the name of the instruction set it is compiled for.
struct Target {
  const char* name;
  const Kernels* kernels;
};

// The instruction sets that this processor runs, the best first and "plain" last.
std::vector<Target> supported_targets();

// The best table this processor runs, or the one that the environment variable COMPRESSAE_SIMD names
// (amx, avx512vbmi, avx512, avx2, neon, plain). Throws std::invalid_argument where that name is unknown or unsupported.
const Kernels& kernels();

// The name of the table in use.
std::string simd_name();

}  // namespace compressae
