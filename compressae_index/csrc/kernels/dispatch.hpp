// Run-time choice of the instruction set.
#pragma once

#include <string>

#include "kernels/kernels.hpp"

namespace compressae {

// The best table this processor runs, or the one that the environment variable COMPRESSAE_SIMD names
// (avx512vbmi, avx512, avx2, plain). Throws std::invalid_argument where that name is unknown or unsupported.
const Kernels& kernels();

// The name of the table in use.
std::string simd_name();

}  // namespace compressae
