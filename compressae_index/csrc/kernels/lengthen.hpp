// Scores of directions and norms of documents as scores by distance.
#pragma once

#include "base/half.hpp"
#include "kernels/kernels.hpp"

namespace compressae {
namespace {

void lengthen(const std::uint16_t* norms, std::size_t count, const Lengthening& by, std::int16_t* scores) {
#pragma omp simd
  for (std::size_t i = 0; i < count; ++i) {
    const float norm = length_of(norms[i]);
    const float steps = (by.score * static_cast<float>(scores[i]) + by.length * norm + by.shift) * norm + by.offset;
    const float held = steps < -Lengthening::kMost ? -Lengthening::kMost : steps;
    scores[i] =
        static_cast<std::int16_t>(static_cast<std::int32_t>(held > Lengthening::kMost ? Lengthening::kMost : held));
  }
}

}  // namespace
}  // namespace compressae
