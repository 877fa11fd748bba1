// Where the largest of many magnitudes begin.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/dispatch.hpp"

namespace compressae {

// A magnitude that at least `wanted` of n keys reach, and hardly more, unless fewer are above 2^-60. It is found from
// the largest downwards by halves, then by halving the last step. Keys are floats, whose bits are in the order of their
// magnitudes, or other numbers in the order of their bits; their exponents begin at bit `exponent`.
inline float nearly_reached(const float* keys, std::size_t n, std::size_t wanted, float largest,
                            unsigned exponent = 23) {
  const std::uint32_t smallest = (127u - 60u) << exponent, half = 1u << exponent;
  const auto above = [&](std::uint32_t key) {
    return kernels().count_at_least(keys, n, __builtin_bit_cast(float, key));
  };
  std::uint32_t high = __builtin_bit_cast(std::uint32_t, std::fabs(largest)), low = high;
  std::size_t found = 0;
  while (found < wanted && low > smallest) {
    high = low;
    low = high - std::min(high - smallest, half);
    found = above(low);
  }
  while (found > wanted + wanted / 4 && high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    const std::size_t n_above = above(middle);
    if (n_above < wanted) {
      high = middle;
    } else {
      low = middle;
      found = n_above;
    }
  }
  return __builtin_bit_cast(float, std::max(low, smallest));
}

}  // namespace compressae
