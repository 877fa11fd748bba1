// Where the 16-bit scores of a window begin, if its documents have norms.
#pragma once

#include "base/half.hpp"
#include "kernels/kernels.hpp"

namespace compressae {
namespace {

void starts(const std::uint16_t* norms, std::size_t count, float base, float factor, float most,
            std::int16_t* scores) {
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) {
    const float steps = (half_square(norms[i]) - base) * factor;
    const float held = steps < -most ? -most : steps > most ? most : steps;
    scores[i] = static_cast<std::int16_t>(static_cast<std::int32_t>(held));
  }
}

}  // namespace
}  // namespace compressae
